//! Guards that give no verdict, and clients that do not wait for one.

use serde_json::{Value, json};

use crate::support::{ALICE, BOB, CHAT, Faults, Stack, ask, eventually, fault, left_by_gateway, stream, with};
use crate::{ALICE_INPUT, HOLD};

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_fails_in_the_middle_of_an_answer_ends_it_without_a_leak() {
    let stack = Stack::builder().edit(HOLD, &HOLD.replace("5000", "200")).start().await;
    for streams in [false, true] {
        // The input's verdict is remembered from the first round, so that only the output's is missing.
        fault(stack.guard(), Faults::default());
        let question = with(ask("count to 300"), json!({"stream": streams}));
        let request = |body: &Value| stack.post(CHAT).key(ALICE).header("cache-control", "no-store").json(body);
        assert_eq!(request(&question).send().await.status, 200);
        for faults in [json!({"status": 500}), json!({"hang": true}), json!({"garbage_verdict": "?"})] {
            fault(stack.guard(), serde_json::from_value(faults.clone()).unwrap());
            let response = request(&question).send().await;
            let trace = response.trace();
            response.into_error(503, "guard_unavailable").await;
            assert_eq!(stack.record(&trace).await["output_guard"]["verdict"], "failed", "{faults}");
        }
    }
    // After a first window has left, the stream can only be broken off.
    fault(stack.guard(), Faults::default());
    fault(stack.vllm(), Faults { token_ms: Some(5), ..Faults::default() });
    let mut events = stack.alice(&stream("count to 2000")).await.events();
    events.until_text("1 2 3 4").await;
    fault(stack.guard(), Faults { status: Some(500), ..Faults::default() });
    let streamed = events.all().await;
    assert!(!streamed.done && streamed.finish_reasons().is_empty(), "{streamed:?}");
    assert_eq!(streamed.error().map(|error| &error["code"]), Some(&json!("guard_unavailable")));
    left_by_gateway(stack.vllm()).await;
}

/// What comes after the words that are unsafe: nothing, for longer than any test waits.

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_the_model_along_and_the_guards_call_within_its_limit() {
    // Envoy does not end a callout with its stream, so the call's own limit has to.
    let stack = Stack::builder().edit("timeout_ms: 5000", "timeout_ms: 1000").start().await;
    for key in [ALICE, BOB] {
        for simulator in [stack.vllm(), stack.guard()] {
            simulator.clear_requests();
            fault(simulator, Faults { hang: true, ..Faults::default() });
        }
        let client = stack.post(CHAT).key(key).json(&stream(&format!("Hello from {key}"))).open().await;
        eventually("the guard is asked", async || stack.guard().requests().first().cloned()).await;
        if key == ALICE {
            eventually("the model is asked", async || stack.vllm().requests().first().cloned()).await;
        }
        drop(client);
        if key == ALICE {
            let left = left_by_gateway(stack.vllm()).await;
            assert!(!stack.guard().requests()[0].disconnected(), "the guard's limit did it: {left:?}");
        }
        left_by_gateway(stack.guard()).await;
        assert_eq!(stack.vllm().requests().len(), usize::from(key == ALICE));
    }
    fault(stack.vllm(), Faults::default());
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_every_mode_a_guard_that_is_down_slow_or_talks_nonsense_closes_the_door() {
    for mode in ["hold", "async", "full"] {
        let mut stack = Stack::builder()
            .edit(ALICE_INPUT, "input_guard: {mode: off}")
            .edit(HOLD, &HOLD.replace("5000", "200").replace("hold", mode))
            .start()
            .await;
        let faults = [
            json!({"garbage_verdict": "?"}),
            json!({"body": "{"}),
            json!({"status": 500}),
            json!({"cut_after": 0}),
            json!({"hang": true}),
        ];
        for faults in faults {
            fault(stack.guard(), serde_json::from_value(faults.clone()).unwrap());
            unjudged(&stack, mode, &faults.to_string()).await;
        }
        stack.stop_guard().await;
        unjudged(&stack, mode, "stopped").await;
    }
}

/// A whole answer is refused; so is a stream of which nothing has left. Another ends in an error, without `[DONE]`.
async fn unjudged(stack: &Stack, mode: &str, place: &str) {
    let place = format!("{mode}, {place}");
    let response = stack.alice(&with(ask("count to 40"), json!({"seed": place}))).await;
    response.into_error_at(503, "guard_unavailable", place.clone()).await;
    let response = stack.alice(&with(stream("count to 40"), json!({"seed": place}))).await;
    if mode != "async" {
        response.into_error_at(503, "guard_unavailable", place).await;
        return;
    }
    let streamed = response.events().all().await;
    assert!(!streamed.done && streamed.finish_reasons().is_empty(), "{place}: {streamed:?}");
    assert_eq!(streamed.error().map(|error| &error["code"]), Some(&json!("guard_unavailable")), "{place}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_an_answer_leaves_no_call_behind() {
    let stack = Stack::builder().edit("timeout_ms: 5000", "timeout_ms: 1000").start().await;
    for key in [ALICE, BOB] {
        fault(stack.guard(), Faults::default());
        fault(stack.vllm(), Faults { token_ms: Some(5), ..Faults::default() });
        let mut events = stack.chat(key, &stream(&format!("count to 3000 {key}"))).await.events();
        events.until_text("1 2 3 4").await;
        stack.guard().clear_requests();
        fault(stack.guard(), Faults { hang: true, ..Faults::default() });
        eventually("the guard is asked", async || stack.guard().requests().first().cloned()).await;
        drop(events);
        left_by_gateway(stack.vllm()).await;
        stack.vllm().clear_requests();
        left_by_gateway(stack.guard()).await;
        assert!(stack.guard().requests().len() < 3, "nobody asks for one that has left");
    }
    stack.assert_lives().await;
}
