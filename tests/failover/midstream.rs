//! A provider that fails after its first token.

use serde_json::json;

use crate::support::{ALICE, BOB, Faults, OPEN, Stack, count, fault, stream};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_in_its_middle_never_ends_as_a_good_one() {
    let stack = Stack::start().await;
    // Twenty tokens: with each policy some of them have left.
    for key in [OPEN, BOB, ALICE] {
        for name in ["error_event_after", "no_finish_after", "cut_after"] {
            fault(stack.vllm(), serde_json::from_value(json!({name: 20, "token_ms": 2})).unwrap());
            let place = format!("{key} {name}");
            let response = stack.chat(key, &stream("count to 100")).await;
            let (trace, attempts) = (response.trace(), response.header("x-parapet-attempts").map(str::to_owned));
            let streamed = response.events().all().await;
            assert!(!streamed.done, "{place}: [DONE]");
            assert!(streamed.finish_reasons().is_empty(), "{place}");
            if name != "cut_after" {
                let error = streamed.error().unwrap_or_else(|| panic!("{place}: no error event: {streamed:?}"));
                assert_eq!((&error["code"], streamed.end.is_ok()), (&json!("upstream_error"), true), "{place}");
            } else {
                assert!(streamed.end.is_err() || streamed.error().is_some(), "{place}: a clean end: {streamed:?}");
            }
            let text = streamed.text();
            assert!(!text.is_empty() && count(20).starts_with(&text), "{place}: {text}");
            assert_eq!(attempts.as_deref(), Some("1"), "{place}");
            let record = stack.record(&trace).await;
            assert!(record.get("cache").and_then(|cache| cache.get("store_s")).is_none(), "{place}: {record}");
            if name != "cut_after" {
                assert_eq!(
                    (&record["truncated"], record.get("client_aborted")),
                    (&json!(true), None),
                    "{place}: {record}"
                );
            }
        }
    }
    assert!(stack.openai().requests().is_empty(), "the first token was out: nobody else is asked");
    // Nothing of it was kept.
    fault(stack.vllm(), Faults::default());
    let again = stack.alice(&stream("count to 100")).await;
    assert_eq!(again.header("cache-status"), Some("parapet; fwd=miss"));
    assert_eq!(again.events().all().await.whole(), count(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_stream_that_breaks_off_before_its_first_verdict_is_an_error_answer() {
    let stack = Stack::start().await;
    for name in ["error_event_after", "no_finish_after", "cut_after"] {
        for tokens in [1, 3, 7] {
            fault(stack.vllm(), serde_json::from_value(json!({name: tokens, "token_ms": 2})).unwrap());
            let response = stack.alice(&stream("count to 100")).await;
            if name == "cut_after" && response.status == 200 {
                // On a busy machine the reset overtakes what it cuts off: no token came, and the next provider answers.
                assert_eq!(response.header("x-parapet-provider"), Some("openai"), "{tokens}");
                assert_eq!(response.events().all().await.whole(), count(100), "{tokens}");
                continue;
            }
            response.into_error_at(502, "upstream_error", format!("{name} {tokens}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_told_from_a_client_that_left() {
    let stack = Stack::start().await;
    for key in [OPEN, BOB, ALICE] {
        fault(stack.vllm(), Faults { cut_after: Some(20), token_ms: Some(2), ..Faults::default() });
        let response = stack.chat(key, &stream("count to 100")).await;
        let trace = response.trace();
        response.events().all().await;
        let record = stack.record(&trace).await;
        assert_eq!((&record["truncated"], record.get("client_aborted")), (&json!(true), None), "{key}: {record}");

        fault(stack.vllm(), Faults { token_ms: Some(20), ..Faults::default() });
        let response = stack.chat(key, &stream("count to 1000")).await;
        let trace = response.trace();
        let mut events = response.events();
        assert!(events.next().await.unwrap().is_some());
        drop(events);
        let record = stack.record(&trace).await;
        assert_eq!((record.get("truncated"), &record["client_aborted"]), (None, &json!(true)), "{key}: {record}");
    }
}
