//! Several vLLM behind one model: another replica answers before another provider does.

use futures_util::future::join_all;
use parapet::sim::Simulator;
use serde_json::{Value, json};

use crate::support::{Faults, MODEL, OPEN, Stack, VLLM_KEY, ask, count, fault, left_by_gateway, with};

/// One request; the answer's provider, and the record.
async fn answered(stack: &Stack, place: &str, streams: bool) -> (String, Value) {
    let response = stack.chat(OPEN, &with(ask("count to 5"), json!({"stream": streams}))).await;
    assert_eq!(response.status, 200, "{place}");
    let (trace, provider) = (response.trace(), response.header("x-parapet-provider").unwrap().to_owned());
    let text = if streams {
        response.events().all().await.whole()
    } else {
        response.into_json().await["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    assert_eq!(text, count(5), "{place}");
    (provider, stack.record(&trace).await)
}

fn attempts(record: &Value) -> Vec<(&str, &str)> {
    let attempts = record["attempts"].as_array().unwrap().iter();
    attempts.map(|it| (it["provider"].as_str().unwrap(), it["outcome"].as_str().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_does_wrong_another_makes_good() {
    let stack = Stack::builder().impatient().replicas(2).start().await;
    let faults = [
        (json!({"status": 500}), "status", "status"),
        (json!({"status": 429}), "status", "status"),
        (json!({"status": 503}), "status", "status"),
        (json!({"hang": true}), "lost", "lost"),
        (json!({"error_event_first": true}), "status", "error_event"),
        (json!({"empty": true}), "empty", "empty"),
        (json!({"cut_after": 0}), "no_first_token", "no_first_token"),
    ];
    for (faults, json, sse) in faults {
        fault(stack.replica(0), serde_json::from_value(faults.clone()).unwrap());
        for streams in [false, true] {
            let place = format!("{faults} (stream: {streams})");
            for replica in stack.running() {
                replica.clear_requests();
            }
            // Where both are idle, chance decides: ask until it was the bad one's turn.
            let mut turns = 0;
            let record = loop {
                let (provider, record) = answered(&stack, &place, streams).await;
                assert_eq!(provider, "vllm", "{place}");
                if record["attempts"].as_array().unwrap().len() > 1 {
                    break record;
                }
                turns += 1;
                assert!(turns < 60, "{place}: the first replica is never asked");
            };
            let mut attempts = attempts(&record);
            attempts.sort_unstable_by_key(|(_, outcome)| *outcome == "ok");
            assert_eq!(attempts, [("vllm", if streams { sse } else { json }), ("vllm", "ok")], "{place}");
            assert_eq!(stack.replica(0).requests().len(), 1, "{place}: asked again");
            if faults.get("hang").is_some() {
                left_by_gateway(stack.replica(0)).await;
            }
            let retried = stack.replica(1).requests().pop().unwrap();
            assert_eq!(retried.json()["model"], MODEL, "{place}");
            assert_eq!(retried.header("authorization"), Some(&*format!("Bearer {VLLM_KEY}")), "{place}");
            assert_eq!(retried.header("content-length"), Some(&*retried.body.len().to_string()), "{place}");
        }
    }
    assert!(stack.openai().requests().is_empty());
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_gone_costs_nobody_an_answer_or_a_call_elsewhere() {
    let mut stack = Stack::builder().replicas(3).start().await;
    stack.stop_replica(1).await;
    let many = (0..40).map(|index| {
        let stack = &stack;
        async move { answered(stack, "one of three is gone", index % 2 == 0).await.0 }
    });
    assert!(join_all(many).await.iter().all(|provider| provider == "vllm"));
    assert!(stack.openai().requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_are_tried_and_then_the_next_provider() {
    let stack = Stack::builder().impatient().replicas(3).start().await;
    for faults in [json!({"status": 503}), json!({"hang": true})] {
        for streams in [false, true] {
            for replica in stack.running() {
                fault(replica, serde_json::from_value(faults.clone()).unwrap());
                replica.clear_requests();
            }
            let place = format!("{faults} (stream: {streams})");
            let (provider, record) = answered(&stack, &place, streams).await;
            assert_eq!(provider, "openai", "{place}");
            let providers: Vec<&str> = attempts(&record).into_iter().map(|(provider, _)| provider).collect();
            assert_eq!(providers, ["vllm", "vllm", "openai"], "{place}");
            let mut asked: Vec<usize> = stack.running().map(|replica| replica.requests().len()).collect();
            asked.sort_unstable();
            assert_eq!(asked, [0, 1, 1], "{place}: no replica twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replica_with_fewer_requests_is_asked() {
    let stack = Stack::builder().replicas(2).start().await;
    fault(stack.replica(0), Faults { token_ms: Some(50), ..Faults::default() });
    // Streams that go on for as long as the test keeps them.
    let mut held = Vec::new();
    while stack.replica(0).requests().len() < 4 {
        let response = stack.chat(OPEN, &with(ask("count to 1000"), json!({"stream": true}))).await;
        let mut events = response.events();
        events.next().await.unwrap();
        held.push(events);
        assert!(held.len() < 60, "the first replica is never asked");
    }
    for replica in stack.running() {
        replica.clear_requests();
    }
    for _ in 0..60 {
        answered(&stack, "one is busy", false).await;
    }
    // Envoy compares two that it draws, which may be the same: the busy one gets a quarter.
    let asked = |replica: &Simulator| replica.requests().len();
    let (busy, idle) = (asked(stack.replica(0)), asked(stack.replica(1)));
    assert!(busy < idle, "{busy} at the busy one, {idle} at the idle one");
}
