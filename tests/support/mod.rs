//! The whole product under test: `parapet up` with the real Envoy and the real module, between simulated servers that run
//! in the test's own process, so that a test sees what they saw and makes them fail.
//!
//! `scripts/test e2e` sets what this needs: `ENVOY_BIN`, `PARAPET_WASM`.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does; no test file uses all of it, and `pub` is all that a module of each can say"
)]

pub mod browser;
pub mod http;
pub mod scripted;
mod stack;
pub mod tls;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use http::{Request, Response};
pub use parapet::sim::Faults;
use serde_json::{Value, json};
pub use stack::{Builder, OwnSidecar, Stack, fault, free_port, left_by_gateway};

/// A wait that is longer than this on any machine will not end.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const ALICE: &str = "sk-demo-alice";
pub const BOB: &str = "sk-demo-bob";
pub const TINY: &str = "sk-demo-tiny";
pub const OPEN: &str = "sk-demo-open";

/// What the shipped configuration calls its models.
pub const MODEL: &str = "meta-llama/Meta-Llama-3-8B-Instruct";
pub const ALIAS: &str = "meta-llama/Llama-3-8B-Instruct";
pub const OPENAI_MODEL: &str = "gpt-4o-mini";

pub const VLLM_KEY: &str = "sk-vllm-own-key";
pub const OPENAI_KEY: &str = "sk-openai-own-key";
pub const GUARD_KEY: &str = "sk-guard-own-key";

pub const CHAT: &str = "/v1/chat/completions";
pub const REFUSAL: &str = "I'm unable to provide a response to that request.";

pub fn needed(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: run scripts/test e2e")).into()
}

/// A request whose answer is `You asked: TEXT`, or what the simulators' `say: X` and `count to N` give.
pub fn ask(text: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": text}]})
}

pub fn stream(text: &str) -> Value {
    with(ask(text), json!({"stream": true}))
}

pub fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// `1 2 … N`: what the simulated models answer to `count to N`, a token a number.
pub fn count(to: u32) -> String {
    (1..=to).map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
