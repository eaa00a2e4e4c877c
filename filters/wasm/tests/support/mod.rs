//! A gateway under test: its configuration, what clients send, what guard and provider say.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use parapet_engine::record::Record;
use parapet_testhost::{Callout, Host, Message, Stream, Vm};
use parapet_wasm as _;

/// `policy` is the JSON of the one policy there is.
pub(crate) fn configuration(policy: &str) -> String {
    format!(
        r#"{{"max_request_bytes": 100000,
        "providers": [
            {{"name": "vllm", "cluster": "vllm", "authority": "vllm:1", "base_path": "/v1"}},
            {{"name": "openai", "cluster": "openai", "authority": "openai:2", "base_path": "/o", "api_key_env": "PATH_OF_NO_KEY"}},
            {{"name": "third", "cluster": "third", "authority": "third:3"}}],
        "models": [{{"name": "m", "cluster": "chain", "spill_cluster": "rest", "chain": [
            {{"provider": "vllm", "model": "x"}}, {{"provider": "third", "model": "x"}}, {{"provider": "openai", "model": "a-longer-name"}}]}},
            {{"name": "lone", "cluster": "only", "chain": [{{"provider": "openai", "model": "a-longer-name"}}]}}],
        "guard": {{"cluster": "guard", "authority": "guard:4", "model": "lg"}},
        "sidecar": {{"cluster": "sidecar", "authority": "sidecar:5"}},
        "keys": [{{"sha256": "32a642c5fd761670c7f9989b70138c93c56ea519529eb544d46b91a8e59f3075", "tenant": "t", "user": "u", "policy": "p"}}],
        "policies": {{"p": {policy}}}}}"#
    )
}

pub(crate) const PARALLEL: &str = r#"{"input_guard": {"mode": "parallel"}}"#;
pub(crate) const BLOCKING: &str = r#"{"input_guard": {"mode": "blocking"}}"#;
pub(crate) const HOLD: &str = r#"{"output_guard": {"mode": "hold", "window_tokens": [2]}}"#;
pub(crate) const ASYNC: &str = r#"{"output_guard": {"mode": "async", "window_tokens": [2]}}"#;
pub(crate) const TWO_A_MINUTE: &str = r#"{"limits": {"requests_per_minute": 2}}"#;

pub(crate) fn start(policy: &str) -> (Host, Vm) {
    let json = configuration(policy);
    let host = Host::new().configuration("gateway", &json).configuration("provider", &json);
    let host = host.cluster("guard").cluster("sidecar");
    let vm = host.start_vm().expect("the configuration is accepted");
    (host, vm)
}

/// As [`start`], behind the guard's self-check, so that what ticks from now on is the streams'.
pub(crate) fn start_checked(policy: &str) -> (Host, Vm) {
    let (host, vm) = start(policy);
    vm.tick("gateway");
    verdict(&host, "unsafe");
    vm.tick("gateway");
    assert_eq!(vm.tick_period("gateway"), None);
    (host, vm)
}

pub(crate) const HEAD: [(&str, &str); 6] = [
    (":method", "POST"),
    (":path", "/v1/chat/completions"),
    (":authority", "gateway"),
    (":scheme", "http"),
    ("x-forwarded-proto", "http"),
    ("authorization", "Bearer sk-demo-alice"),
];

pub(crate) const QUESTION: &str = r#"{"messages":[{"role":"user","content":"hello"}]}"#;
pub(crate) const STREAMED: &str = r#"{"messages":[{"role":"user","content":"hello"}],"stream":true}"#;

pub(crate) fn asked(vm: &Vm, body: &str) -> Stream {
    let mut stream = vm.stream("gateway");
    stream.request(HEAD, body.as_bytes());
    stream
}

/// The guard's word.
pub(crate) fn verdict(host: &Host, text: &str) {
    say(host, &host.pending_callout("guard"), text);
}

pub(crate) fn say(host: &Host, callout: &Callout, text: &str) {
    let body = serde_json::json!({"choices": [{"text": text}]}).to_string();
    host.answer(callout, 200, [], body.as_bytes());
}

pub(crate) fn head_of(content_type: &'static str) -> [(&'static str, &'static str); 3] {
    [(":status", "200"), ("content-type", content_type), ("x-parapet-provider", "vllm")]
}

pub(crate) const JSON: &str = "application/json";
pub(crate) const SSE: &str = "text/event-stream";

pub(crate) fn whole(model: &str, text: &str) -> String {
    format!(
        r#"{{"model":"{model}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":9,"completion_tokens":5}}}}"#
    )
}

pub(crate) fn chunk(model: &str, text: &str) -> String {
    format!("data: {{\"model\":\"{model}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

pub(crate) fn finish(model: &str) -> String {
    let choice = r#"{"index":0,"delta":{},"finish_reason":"stop"}"#;
    format!("data: {{\"model\":\"{model}\",\"choices\":[{choice}]}}\n\ndata: [DONE]\n\n")
}

/// A whole stream: a role, `words`, the end.
pub(crate) fn events(model: &str, words: &[&str]) -> String {
    let texts: String = words.iter().map(|word| chunk(model, word)).collect();
    format!("{}{texts}{}", chunk(model, ""), finish(model))
}

pub(crate) fn record(stream: &Stream) -> Record {
    serde_json::from_slice(&stream.filter_state("parapet.record").expect("on_log wrote it")).expect("a record")
}

pub(crate) fn error_code(answer: &Message) -> (Option<u16>, String) {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    (answer.status(), body["error"]["code"].as_str().unwrap_or_default().to_owned())
}
