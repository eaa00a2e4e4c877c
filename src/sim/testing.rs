//! What the simulators' tests share: a client, the events of a stream, waiting for a condition.

use std::{
    sync::Once,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Faults, Simulator, chat::Options};

pub(super) fn client() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    // Fails only where another test was first.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    reqwest::Client::new()
}

pub(super) fn fast() -> Options {
    Options { first_token_ms: 0, token_ms: 0, ..Options::default() }
}

pub(super) async fn send(simulator: &Simulator, path: &str, body: &Value) -> reqwest::Response {
    client().post(simulator.url() + path).json(body).send().await.unwrap()
}

/// Status and body, `Null` when it is no JSON.
pub(super) async fn answer(simulator: &Simulator, path: &str, body: &Value) -> (u16, Value) {
    let response = send(simulator, path, body).await;
    let status = response.status().as_u16();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default())
}

pub(super) async fn fetch(simulator: &Simulator, path: &str) -> (u16, String) {
    let response = client().get(simulator.url() + path).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

pub(super) const CHAT: &str = "/v1/chat/completions";

pub(super) fn say(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

pub(super) fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

pub(super) fn streamed(model: &str, text: &str, more: Value) -> Value {
    with(with(say(model, text), json!({"stream": true})), more)
}

/// The data of a stream's events as JSON, `[DONE]` as that string; and whether the body ended cleanly.
pub(super) async fn events(mut response: reqwest::Response) -> (Vec<Value>, bool) {
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let mut text = Vec::new();
    let clean = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    let text = String::from_utf8(text).unwrap();
    assert!(text.is_empty() || text.ends_with("\n\n"), "{text}");
    let event = |event: &str| {
        let data = event.strip_prefix("data: ").unwrap();
        serde_json::from_str(data).unwrap_or_else(|_| Value::String(data.to_owned()))
    };
    (text.split_terminator("\n\n").map(event).collect(), clean)
}

pub(super) fn contents(events: &[Value], index: u64) -> String {
    let choices =
        events.iter().filter_map(|event| event.pointer("/choices/0")).filter(|choice| choice["index"] == index);
    choices.filter_map(|choice| choice.pointer("/delta/content")?.as_str()).collect()
}

pub(super) fn misbehave(simulator: &Simulator, faults: Value) {
    simulator.set_faults(serde_json::from_value::<Faults>(faults).unwrap()).unwrap();
}

pub(super) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
