//! More requests than vLLM is meant to have at once go to the next provider instead of into its queue.

use serde_json::json;

use crate::support::{Builder, Faults, OPEN, Stack, ask, eventually, fault, stream, with};

/// Two requests at once are as many as vLLM may have.
fn two_at_once() -> Builder {
    Stack::builder().edit(r#"{"vllm", 1024, "only_openai"}"#, r#"{"vllm", 2, "only_openai"}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_vllm_is_passed_over_and_nothing_fails() {
    let stack = two_at_once().start().await;
    fault(stack.vllm(), Faults { token_ms: Some(20), ..Faults::default() });
    let mut held = Vec::new();
    for _ in 0..2 {
        let response = stack.chat(OPEN, &stream("count to 1000")).await;
        assert_eq!(response.header("x-parapet-provider"), Some("vllm"));
        let mut events = response.events();
        events.next().await.unwrap();
        held.push(events);
    }
    stack.vllm().clear_requests();
    for streams in [false, true] {
        for _ in 0..5 {
            let response = stack.chat(OPEN, &with(ask("count to 5"), json!({"stream": streams}))).await;
            assert_eq!(response.status, 200);
            assert_eq!(response.header("x-parapet-provider"), Some("openai"));
            assert_eq!(response.header("x-parapet-attempts"), Some("1"));
            let record = stack.record(&response.trace()).await;
            assert_eq!(record["attempts"].as_array().unwrap().len(), 1, "{record}");
        }
    }
    assert!(stack.vllm_requests().is_empty());
    // As soon as one has left there is room.
    held.pop();
    eventually("vLLM has room again", async || {
        let response = stack.chat(OPEN, &ask("count to 5")).await;
        (response.header("x-parapet-provider") == Some("vllm")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_shared_between_the_providers() {
    let stack = two_at_once().start().await;
    fault(stack.vllm(), Faults { first_token_ms: Some(500), ..Faults::default() });
    let burst = (0..12).map(|_| async {
        let response = stack.chat(OPEN, &ask("count to 5")).await;
        assert_eq!(response.status, 200);
        response.header("x-parapet-provider").unwrap().to_owned()
    });
    let providers = futures_util::future::join_all(burst).await;
    let spilled = providers.iter().filter(|provider| *provider == "openai").count();
    assert!((1..12).contains(&spilled), "{providers:?}");
    assert_eq!(stack.openai().requests().len(), spilled);
}
