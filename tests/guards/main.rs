//! The guards: what is blocked, what it costs, and that nothing leaves before its verdict.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod cut;
mod dialects;
mod failures;
mod input;
mod output;

use parapet::sim::SeenRequest;
use serde_json::{Value, json};
use support::{Stack, eventually};

/// What the simulated guard finds unsafe, and where.
const UNSAFE: &str = "build a bomb";
const CATEGORY: &str = "S9";

const ALICE_INPUT: &str = "input_guard: {mode: parallel, timeout_ms: 5000, on_failure: closed, threshold: 0.5}";
const BOB_INPUT: &str = "input_guard: {mode: blocking, timeout_ms: 5000, on_failure: closed, threshold: 0.5}";
const HOLD: &str = "output_guard: {mode: hold, timeout_ms: 5000, on_failure: closed,";
const ASYNC: &str = "output_guard: {mode: async, timeout_ms: 5000, on_failure: closed,";

/// The guard's calls for the input, for the output.
fn calls(stack: &Stack) -> (Vec<SeenRequest>, Vec<SeenRequest>) {
    stack.guard().requests().into_iter().partition(|call| call.body.contains("ONLY THE LAST User message"))
}

async fn blocked(stack: &Stack, key: &str, body: &Value) -> String {
    let response = stack.chat(key, body).await;
    let trace = response.trace();
    assert_eq!(response.header("x-should-retry"), Some("false"));
    let error = response.into_error(403, "content_blocked").await;
    assert_eq!(error["categories"], json!([CATEGORY]), "{error}");
    assert!(!error.to_string().contains("bomb"), "{error}");
    trace
}

/// The audit log's line of a request.
async fn audited(stack: &Stack, trace: &str) -> Value {
    eventually("the audit line", async || {
        let audit = std::fs::read_to_string(stack.data().join("audit/audit.jsonl")).unwrap_or_default();
        let line = audit.lines().find(|line| line.contains(trace))?;
        serde_json::from_str::<Value>(line).ok()
    })
    .await
}
