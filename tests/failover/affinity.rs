//! Requests with the same opening go to the replica that has it in its prefix cache.

use parapet::sim::Simulator;
use serde_json::{Value, json};

use crate::support::{ALICE, Builder, CHAT, Faults, MODEL, OPEN, Stack, fault, with};

fn with_affinity(affinity: &str) -> Builder {
    let model = "                                cluster: vllm_then_openai\n";
    let balanced = "common_lb_config:\n        healthy_panic_threshold: {value: 1}\n";
    let bounded = format!("{balanced}        consistent_hashing_lb_config: {{hash_balance_factor: 150}}\n");
    Stack::builder()
        .replicas(3)
        .edit(model, &format!("{model}                                affinity: {affinity}\n"))
        .edit(
            "lb_policy: LEAST_REQUEST\n      least_request_lb_config",
            "lb_policy: RING_HASH\n      least_request_lb_config",
        )
        .edit(balanced, &bounded)
}

fn turns(system: &str, texts: &[&str]) -> Value {
    let mut messages = vec![json!({"role": "system", "content": system})];
    for (index, text) in texts.iter().enumerate() {
        messages.push(json!({"role": if index % 2 == 0 { "user" } else { "assistant" }, "content": text}));
    }
    json!({"model": MODEL, "messages": messages})
}

/// Which replicas were asked since the last time.
fn asked(stack: &Stack) -> Vec<usize> {
    let asked: Vec<usize> = stack.running().map(|replica| replica.requests().len()).collect();
    stack.running().for_each(Simulator::clear_requests);
    asked
}

fn at_one_of(asked: &[usize], count: usize) -> bool {
    asked.iter().filter(|asked| **asked == count).count() == 1 && asked.iter().sum::<usize>() == count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_stays_with_its_replica_and_conversations_spread() {
    let stack = with_affinity("prefix").start().await;
    let mut used = [false; 3];
    for conversation in 0..12 {
        let first = format!("question {conversation}");
        let texts = [&*first, "answer", "again?", "yes", "and again?"];
        for length in [1, 3, 5] {
            assert_eq!(stack.chat(OPEN, &turns("Be brief.", &texts[..length])).await.status, 200);
        }
        let asked = asked(&stack);
        assert!(at_one_of(&asked, 3), "{conversation}: {asked:?}");
        used[asked.iter().position(|asked| *asked > 0).unwrap()] = true;
    }
    assert_eq!(used, [true; 3], "twelve conversations and only these replicas");
    // A long system prompt is what the cache is for, whoever asks whatever under it.
    let long = "You are careful. ".repeat(400);
    for key in [OPEN, ALICE] {
        for question in ["a", "b", "c"] {
            assert_eq!(stack.chat(key, &turns(&long, &[question])).await.status, 200);
        }
    }
    let asked = asked(&stack);
    assert!(at_one_of(&asked, 6), "{asked:?}");
    assert!(stack.openai().requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_with_its_replica() {
    let stack = with_affinity("session").start().await;
    for session in ["s-1", "s-2", "s-3", "s-4"] {
        for question in ["a", "b", "c"] {
            let request = stack.post(CHAT).key(OPEN).header("x-session-id", session);
            assert_eq!(request.json(&turns("Be brief.", &[question])).send().await.status, 200);
        }
        let asked = asked(&stack);
        assert!(at_one_of(&asked, 3), "{session}: {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_chooses_a_replica_and_no_replica_sees_the_choice() {
    let stack = with_affinity("prefix").start().await;
    for forged in ["a", "b", "c", "d", "e", "f"] {
        let request = stack.post(CHAT).key(OPEN).header("x-parapet-affinity", forged);
        assert_eq!(request.json(&turns("Be brief.", &["the same"])).send().await.status, 200);
    }
    let seen = stack.vllm_requests();
    assert!(seen.iter().all(|request| request.header("x-parapet-affinity").is_none()), "{seen:?}");
    let asked = asked(&stack);
    assert!(at_one_of(&asked, 6), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_favourite_replica_gets_no_more_than_its_share_and_may_fail() {
    let stack = with_affinity("prefix").impatient().start().await;
    for replica in stack.running() {
        fault(replica, Faults { token_ms: Some(50), ..Faults::default() });
    }
    let mut held = Vec::new();
    for _ in 0..12 {
        let body = with(turns("Be brief.", &["count to 1000"]), json!({"stream": true}));
        let mut events = stack.chat(OPEN, &body).await.events();
        events.next().await.unwrap();
        held.push(events);
    }
    // Half as many again as the average of four, and the one for which that was asked.
    let shares = asked(&stack);
    assert!(shares.iter().all(|share| *share <= 7), "{shares:?}");
    assert!(stack.openai().requests().is_empty());
    drop(held);

    for replica in stack.running() {
        fault(replica, Faults::default());
    }
    stack.chat(OPEN, &turns("Be brief.", &["the same"])).await;
    let favourite = asked(&stack).iter().position(|asked| *asked > 0).unwrap();
    fault(stack.replica(favourite), Faults { status: Some(503), ..Faults::default() });
    for _ in 0..5 {
        let response = stack.chat(OPEN, &turns("Be brief.", &["the same"])).await;
        assert_eq!((response.status, response.header("x-parapet-provider")), (200, Some("vllm")));
        assert_eq!(response.header("x-parapet-attempts"), Some("2"));
    }
}
