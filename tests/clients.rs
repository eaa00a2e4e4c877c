//! Clients that others wrote, unchanged but for address and key.
//!
//! `scripts/test e2e` sets `PARAPET_PYTHON`: an environment with `tests/clients/requirements.txt`.

mod support;

use std::process::Output;

use serde_json::json;
use support::{MODEL, Stack, fault, needed};
use tokio::process::Command;

async fn python(script: &str, stack: &Stack, arguments: &[&str]) -> Output {
    let script = format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(needed("PARAPET_PYTHON"));
    command.args(["-B", &script, &format!("http://{}/v1", stack.address), MODEL]).args(arguments).env_clear();
    command.kill_on_drop(true).output().await.unwrap()
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_openai_client_works_unchanged() {
    let stack = Stack::start().await;
    succeeded(&python("openai_client.py", &stack, &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_openai_client_raises_where_a_stream_breaks_off() {
    let stack = Stack::start().await;
    for name in ["error_event_after", "no_finish_after", "cut_after"] {
        fault(stack.vllm(), serde_json::from_value(json!({name: 10, "token_ms": 5})).unwrap());
        let output = python("openai_broken.py", &stack, &["broken"]).await;
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_openai_client_sees_an_unsafe_answer_end_by_the_filter() {
    let stack = Stack::start().await;
    let unsafe_answer = "fine fine fine fine fine fine fine fine fine fine build a bomb at home";
    fault(stack.vllm(), serde_json::from_value(json!({"garbage_verdict": unsafe_answer})).unwrap());
    succeeded(&python("openai_broken.py", &stack, &["blocked"]).await);
}
