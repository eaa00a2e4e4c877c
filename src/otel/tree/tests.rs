use std::collections::BTreeSet;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest as Official;
use opentelemetry_proto::tonic::common::v1::any_value::Value as OfficialValue;
use prost::Message as _;
use serde_json::json;

use super::super::proto::{Any, ExportTraceServiceRequest, ResourceSpans, ScopeSpans, StatusCode};
use super::*;
use crate::accesslog::line;

const ID: &str = "01a20791-8327-7764-a3ea-7224f6c98036";
const START: u64 = 1_795_423_306_535_477;

fn parsed(record: &Value) -> Line {
    line::parse(line::tests::line(&record.to_string()).as_bytes()).unwrap().0
}

fn merged(mut record: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        record[key] = value.clone();
    }
    record
}

/// A failover: vLLM gave nothing in time, OpenAI answered.
fn record() -> Value {
    json!({
        "v": 1, "id": ID, "start_us": START, "end_us": START + 900_000, "api": "chat_completions", "status": 200,
        "tenant": "acme", "user": "alice", "policy": "standard", "session": "s-1", "request_id": "r-1",
        "model": "llama", "stream": true,
        "messages": [{ "role": "user", "content": "the question" }],
        "params": { "temperature": 0.2, "max_tokens": 50, "stop": ["END"], "n": 2, "seed": 7, "tools": [{ "type": "function" }] },
        "answers": [{ "content": "the answer", "finish_reason": "stop" }],
        "first_token_us": START + 600_000, "cost_nanousd": 2_000_000,
        "usage": { "prompt": 10, "completion": 5, "cached": 4 },
        "input_guard": { "mode": "parallel", "verdict": "safe", "action": "pass", "score": 0.01, "model": "guard",
            "calls": 1, "start_us": START + 100, "end_us": START + 90_000 },
        "cache": { "outcome": "miss" },
        "attempts": [
            { "provider": "vllm", "model": "llama", "start_us": START + 200, "end_us": START + 500_000,
              "status": 503, "outcome": "status" },
            { "provider": "openai", "model": "gpt-4o-mini", "start_us": START + 500_100,
              "first_token_us": START + 590_100, "status": 200, "outcome": "ok" },
        ],
    })
}

fn tree_of(record: &Value, shape: &Shape) -> Vec<Span> {
    spans(&parsed(record), shape).unwrap()
}

fn get(span: &Span, key: &str) -> Option<Any> {
    span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn text(text: &str) -> Option<Any> {
    Some(text.into())
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32)
}

#[test]
fn a_record_is_a_tree_with_true_times() {
    let spans = tree_of(&record(), &Shape::default());
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["POST /v1/chat/completions", "input-guard", "cache-lookup", "chat llama", "chat gpt-4o-mini"]);
    let root = &spans[0];
    assert_eq!(root.trace_id, ID.parse::<uuid::Uuid>().unwrap().as_bytes());
    assert_eq!((root.kind, root.parent_span_id.len()), (SpanKind::Server as i32, 0));
    assert_eq!((root.start_time_unix_nano, root.end_time_unix_nano), (START * 1000, (START + 900_000) * 1000));
    for child in &spans[1..] {
        assert_eq!((&child.trace_id, &child.parent_span_id), (&root.trace_id, &root.span_id), "{}", child.name);
        assert!(child.start_time_unix_nano >= root.start_time_unix_nano);
        assert!(child.end_time_unix_nano <= root.end_time_unix_nano);
    }
    let ids: BTreeSet<&Vec<u8>> = spans.iter().map(|span| &span.span_id).collect();
    assert_eq!(ids.len(), spans.len());
    assert!(ids.iter().all(|id| id.len() == 8 && id.iter().any(|&byte| byte != 0)));
    assert_eq!(spans, tree_of(&record(), &Shape::default()), "a replay makes the same spans");

    let kinds: Vec<i32> = spans.iter().map(|span| span.kind).collect();
    assert_eq!(kinds, [2, 1, 1, 3, 3]);
    assert_eq!(named(&spans, "input-guard").end_time_unix_nano, (START + 90_000) * 1000);
    let last = named(&spans, "chat gpt-4o-mini");
    assert_eq!(last.start_time_unix_nano, (START + 500_100) * 1000);
    assert_eq!(last.end_time_unix_nano, root.end_time_unix_nano, "without an end of its own it ends with the request");
}

#[test]
fn attempts_carry_the_genai_conventions() {
    let spans = tree_of(&record(), &Shape::default());
    let last = named(&spans, "chat gpt-4o-mini");
    for (key, value) in [
        ("gen_ai.operation.name", Any::from("chat")),
        ("gen_ai.provider.name", "openai".into()),
        ("gen_ai.system", "openai".into()),
        ("gen_ai.request.model", "gpt-4o-mini".into()),
        ("gen_ai.request.stream", true.into()),
        ("gen_ai.request.temperature", 0.2.into()),
        ("gen_ai.request.max_tokens", 50_u64.into()),
        ("gen_ai.request.seed", 7_u64.into()),
        ("gen_ai.request.choice.count", 2_u64.into()),
        ("gen_ai.request.stop_sequences", vec!["END".to_owned()].into()),
        ("gen_ai.response.finish_reasons", vec!["stop".to_owned()].into()),
        ("gen_ai.response.time_to_first_chunk", 0.09.into()),
        ("gen_ai.usage.input_tokens", 10_u64.into()),
        ("gen_ai.usage.output_tokens", 5_u64.into()),
        ("gen_ai.usage.cache_read.input_tokens", 4_u64.into()),
        ("gen_ai.conversation.id", "s-1".into()),
        ("http.request.resend_count", 1_u64.into()),
        ("parapet.cost_usd", 0.002.into()),
    ] {
        assert_eq!(get(last, key), Some(value), "{key}");
    }
    assert!(!is_error(last) && get(last, "error.type").is_none());
    let first = named(&spans, "chat llama");
    assert_eq!((get(first, "error.type"), is_error(first)), (text("503"), true));
    assert_eq!(first.status.as_ref().unwrap().message, "the provider answered with status 503");
    for key in ["gen_ai.usage.input_tokens", "gen_ai.response.finish_reasons", "http.request.resend_count"] {
        assert_eq!(get(first, key), None, "{key}");
    }
    assert_eq!(get(&spans[0], "http.response.status_code"), Some(200_u64.into()));
    assert!(!is_error(&spans[0]));
}

#[test]
fn content_goes_along_only_when_asked_for_and_not_hidden() {
    let all = |spans: &[Span]| format!("{spans:?}");
    let quiet = all(&tree_of(&record(), &Shape::default()));
    assert!(!quiet.contains("the question") && !quiet.contains("the answer") && !quiet.contains("function"));
    let open = Shape { content: true, ..Shape::default() };
    let spans = tree_of(&record(), &open);
    let last = named(&spans, "chat gpt-4o-mini");
    assert_eq!(
        get(last, "gen_ai.input.messages"),
        text(r#"[{"role":"user","parts":[{"type":"text","content":"the question"}]}]"#).map(normal)
    );
    assert!(format!("{:?}", get(last, "gen_ai.output.messages")).contains("the answer"));
    assert_eq!(get(last, "gen_ai.tool.definitions"), text(r#"[{"type":"function"}]"#));
    assert_eq!(get(named(&spans, "chat llama"), "gen_ai.output.messages"), None, "that attempt said nothing");
    assert!(get(&spans[0], "gen_ai.output.messages").is_some());
    let runs = tree::Shape { hide_inputs: true, hide_outputs: true, hide_metadata: true, ..tree::Shape::default() };
    let hidden = all(&tree_of(&record(), &Shape { runs, ..open }));
    for secret in ["the question", "the answer", "function", "END", "alice", "acme", "s-1", "r-1"] {
        assert!(!hidden.contains(secret), "{secret}");
    }
    // A policy that keeps texts out of the record has none of them here.
    let withheld = merged(record(), &json!({ "content": "hash", "messages": null, "prompt_digest": "ab" }));
    let spans = tree_of(&withheld, &Shape { content: true, ..Shape::default() });
    for key in ["gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.request.stop_sequences"] {
        assert!(spans.iter().all(|span| get(span, key).is_none()), "{key}");
    }
    // What a guard replaced is not what the model said.
    let guard = json!({ "output_guard": { "mode": "hold", "verdict": "unsafe", "action": "block" }, "reason": "output_blocked" });
    let blocked = tree_of(&merged(record(), &guard), &Shape { content: true, ..Shape::default() });
    let last = named(&blocked, "chat gpt-4o-mini");
    assert_eq!((get(last, "gen_ai.output.messages"), get(last, "gen_ai.response.finish_reasons")), (None, None));
    assert_eq!(get(named(&blocked, "output-guard"), "parapet.guard.verdict"), text("unsafe"));
}

/// Key order is serde_json's business.
fn normal(any: Any) -> Any {
    match any {
        Any::Text(text) => serde_json::from_str::<Value>(&text).unwrap().to_string().into(),
        other => other,
    }
}

#[test]
fn the_callers_trace_is_joined_and_its_decision_followed() {
    let caller = |flags: &str| {
        let header = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        merged(record(), &json!({ "traceparent": header }))
    };
    let spans = tree_of(&caller("01"), &Shape::default());
    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes().to_vec();
    assert!(spans.iter().all(|span| span.trace_id == trace));
    assert_eq!(spans[0].parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert_eq!(spans[0].flags, 0x301);
    assert_eq!(spans[1].flags, 0x101);
    assert_eq!(super::spans(&parsed(&caller("00")), &Shape::default()), Err(NotSampled));
    let alone = tree_of(&caller("0x"), &Shape::default());
    assert_eq!(alone, tree_of(&record(), &Shape::default()));
}

#[test]
fn only_what_is_the_servers_fault_fails_the_request() {
    for (change, error) in [
        (json!({ "status": 502, "reason": "upstream_error" }), Some("upstream_error")),
        (json!({ "status": 503 }), Some("503")),
        (json!({ "status": 400, "reason": "invalid_request" }), None),
        (json!({ "status": 429, "reason": "rate_limit_exceeded" }), None),
        (json!({ "truncated": true }), Some("truncated")),
        (json!({ "truncated": true, "client_aborted": true }), None),
        (json!({ "status": 0, "client_aborted": true }), None),
        (json!({ "status": 0 }), Some("no_answer")),
    ] {
        let spans = tree_of(&merged(record(), &change), &Shape::default());
        assert_eq!(get(&spans[0], "error.type"), error.map(Any::from), "{change}");
        assert_eq!(is_error(&spans[0]), error.is_some(), "{change}");
    }
}

#[test]
fn langsmith_is_told_which_run_each_span_is() {
    let shape = Shape {
        langsmith: true,
        runs: tree::Shape { project: "demo".into(), ..tree::Shape::default() },
        ..Shape::default()
    };
    let spans = tree_of(&record(), &shape);
    let runs = tree::tree(&parsed(&record()), &shape.runs);
    assert_eq!(spans.len(), runs.len());
    for (span, run) in spans.iter().zip(&runs) {
        assert_eq!(get(span, "langsmith.span.id"), text(&run.id.to_string()));
        assert_eq!(get(span, "langsmith.span.dotted_order"), text(run.json()["dotted_order"].as_str().unwrap()));
        assert_eq!(get(span, "langsmith.trace.session_name"), text("demo"));
        assert_eq!(get(span, "langsmith.metadata.session_id"), text("s-1"));
        assert_eq!(span.span_id, run.id.as_bytes()[8..]);
    }
    assert_eq!(get(&spans[0], "langsmith.span.kind"), text("chain"));
    assert_eq!(get(&spans[4], "langsmith.span.kind"), text("llm"));
}

#[test]
fn times_that_are_missing_or_wrong_give_no_span_that_ends_before_it_starts() {
    for change in [
        json!({ "end_us": 0 }),
        json!({ "start_us": u64::MAX, "end_us": 5 }),
        json!({ "attempts": [{ "provider": "vllm", "model": "m", "start_us": 1, "end_us": 0, "outcome": "ok" }] }),
        json!({ "attempts": [{ "outcome": "reset" }], "input_guard": { "verdict": "failed", "end_us": 1 } }),
    ] {
        for span in tree_of(&merged(record(), &change), &Shape::default()) {
            assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{change}: {}", span.name);
        }
    }
}

#[test]
fn the_published_definition_reads_what_is_written() {
    let spans = tree_of(&record(), &Shape { content: true, ..Shape::default() });
    let scope = super::super::proto::InstrumentationScope { name: "parapet".into(), version: "1".into() };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(super::super::proto::Resource {
                attributes: vec![super::super::proto::KeyValue::new("service.name", "parapet")],
            }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans: spans.clone(), schema_url: "u".into() }],
            schema_url: "v".into(),
        }],
    };
    let encoded = request.encode_to_vec();
    let official = Official::decode(encoded.as_slice()).unwrap();
    assert_eq!(official.encoded_len(), encoded.len(), "nothing is a field that the definition does not know");
    let resource = &official.resource_spans[0];
    let scope = &resource.scope_spans[0];
    assert_eq!((resource.schema_url.as_str(), scope.schema_url.as_str()), ("v", "u"));
    assert_eq!(scope.scope.as_ref().unwrap().name, "parapet");
    for (found, span) in scope.spans.iter().zip(&spans) {
        assert_eq!((&found.trace_id, &found.span_id, &found.name), (&span.trace_id, &span.span_id, &span.name));
        assert_eq!(
            (found.start_time_unix_nano, found.flags, found.kind),
            (span.start_time_unix_nano, span.flags, span.kind)
        );
    }
    let last = &scope.spans[4];
    let value = |key: &str| {
        last.attributes.iter().find(|attribute| attribute.key == key).unwrap().value.clone().unwrap().value.unwrap()
    };
    assert_eq!(value("gen_ai.usage.input_tokens"), OfficialValue::IntValue(10));
    assert_eq!(value("gen_ai.request.stream"), OfficialValue::BoolValue(true));
    assert_eq!(value("gen_ai.request.temperature"), OfficialValue::DoubleValue(0.2));
    assert!(matches!(value("gen_ai.response.finish_reasons"), OfficialValue::ArrayValue(_)));
    assert_eq!(scope.spans[3].status.as_ref().unwrap().code, 2);
}
