//! The exact cache: what is served from it, to whom, and what never gets into it.

mod support;

use serde_json::{Value, json};
use support::{
    ALIAS, ALICE, BOB, CHAT, Faults, OPEN, Response, Stack, TINY, ask, count, eventually, fault, stream, with,
};

async fn with_control(stack: &Stack, key: &str, control: &str, body: &Value) -> Response {
    stack.post(CHAT).key(key).header("cache-control", control).json(body).send().await
}

fn is_hit(response: &Response) -> bool {
    response.header("cache-status").is_some_and(|status| status.starts_with("parapet; hit"))
}

fn asked(stack: &Stack) -> usize {
    stack.vllm().requests().len()
}

/// Waits until the sidecar has the entry of a request that was stored.
async fn stored(stack: &Stack, trace: &str) {
    let key = stack.record(trace).await["cache"]["key"].as_str().unwrap().to_owned();
    eventually("the sidecar stores it", async || {
        let path = format!("/internal/cache/{key}");
        let response = support::Request::new(stack.sidecar, "GET", &path).send().await;
        (response.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_question_again_is_answered_from_the_cache() {
    let stack = Stack::start().await;
    let first = stack.alice(&ask("count to 20")).await;
    assert_eq!(
        (first.status, first.header("cache-status"), first.header("age")),
        (200, Some("parapet; fwd=miss"), None)
    );
    let first = first.into_json().await;
    let calls = stack.guard().requests().len();

    let second = stack.alice(&ask("count to 20")).await;
    assert!(is_hit(&second), "{:?}", second.headers);
    let ttl: u64 = second.header("cache-status").unwrap().split("ttl=").nth(1).unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&ttl), "{ttl}");
    assert!(second.header("age").unwrap().parse::<u64>().unwrap() <= 60);
    assert_eq!(second.header("x-parapet-attempts"), None, "nobody was asked");
    let trace = second.trace();
    let second = second.into_json().await;
    for place in ["/choices/0/message/content", "/choices/0/finish_reason", "/usage/completion_tokens", "/model"] {
        assert_eq!(first.pointer(place), second.pointer(place), "{place}");
    }
    assert_ne!(first["id"], second["id"]);
    let record = stack.record(&trace).await;
    assert_eq!((&record["cache"]["outcome"], record.get("attempts")), (&json!("hit"), None));
    assert_eq!((asked(&stack), stack.guard().requests().len()), (1, calls));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_entry_replays_in_every_form() {
    let stack = Stack::start().await;
    for (name, first) in [("1", json!({})), ("2", json!({"stream": true}))] {
        let question = ask(&format!("say: ä \"b\" \\ {name}\n{}", count(50)));
        let expected = format!("ä \"b\" \\ {name}\n{}", count(50));
        let mut response = stack.alice(&with(question.clone(), first)).await;
        response.text().await;
        let before = asked(&stack);

        let json = stack.alice(&question).await;
        assert!(is_hit(&json));
        assert_eq!(json.into_json().await["choices"][0]["message"]["content"], json!(expected));
        let options = json!({"stream": true, "stream_options": {"include_usage": true}});
        for (more, usage) in [(json!({"stream": true}), false), (options, true)] {
            let response = stack.alice(&with(question.clone(), more)).await;
            assert!(is_hit(&response));
            let streamed = response.events().all().await;
            assert_eq!(streamed.whole(), expected);
            assert_eq!(streamed.events.iter().any(|event| event["usage"].is_object()), usage);
            assert_eq!(streamed.events[0]["choices"][0]["delta"]["role"], "assistant");
        }
        // By an alias, written otherwise, with what changes nothing.
        let parts = json!([{"type": "text", "text": question["messages"][0]["content"]}]);
        let other = json!({"user": "x", "model": ALIAS, "messages": [{"content": parts, "role": "user"}]});
        let response = stack.alice(&other).await;
        assert!(is_hit(&response), "{:?}", response.headers);
        assert_eq!(response.into_json().await["model"], ALIAS);
        assert_eq!(asked(&stack), before);
    }
    // `/chat` and `/v1/chat/completions` share an entry.
    let chat = || stack.post("/chat").key(ALICE).json(&json!({"message": "count to 7"}));
    chat().send().await;
    let again = chat().send().await;
    assert!(is_hit(&again));
    assert_eq!(again.into_json().await, json!({"answer": count(7)}));
    let streamed = chat().header("accept", "text/event-stream").send().await.events().all().await;
    let pieces: String = streamed.events.iter().map(|event| event["answer"].as_str().unwrap()).collect();
    assert!(streamed.done && pieces == count(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_control_is_obeyed() {
    let stack = Stack::start().await;
    // Neither stored nor there.
    let only = with_control(&stack, ALICE, "only-if-cached", &ask("Hello")).await;
    assert_eq!(only.header("x-should-retry"), Some("false"));
    only.into_error(504, "not_cached").await;
    assert_eq!(asked(&stack), 0);
    for _ in 0..2 {
        let response = with_control(&stack, ALICE, "no-store", &ask("Hello")).await;
        assert_eq!((response.status, is_hit(&response)), (200, false));
    }
    assert_eq!(asked(&stack), 2);
    with_control(&stack, ALICE, "only-if-cached", &ask("Hello")).await.into_error(504, "not_cached").await;
    // Now it is stored.
    assert!(!is_hit(&stack.alice(&ask("Hello")).await));
    assert!(is_hit(&with_control(&stack, ALICE, "only-if-cached", &ask("Hello")).await));
    assert!(is_hit(&with_control(&stack, ALICE, "max-age=3600", &ask("Hello")).await));
    assert!(!is_hit(&with_control(&stack, ALICE, "no-store", &ask("Hello")).await), "no-store does not read, either");
    // `no-cache` asks anew and replaces the entry.
    assert_eq!(asked(&stack), 4);
    fault(stack.vllm(), Faults { garbage_verdict: Some("another answer".to_owned()), ..Faults::default() });
    let fresh = with_control(&stack, ALICE, "no-cache", &ask("Hello")).await;
    assert_eq!((is_hit(&fresh), asked(&stack)), (false, 5));
    let hit = stack.alice(&ask("Hello")).await;
    assert!(is_hit(&hit));
    assert_eq!(hit.into_json().await["choices"][0]["message"]["content"], "another answer");
    // An entry of this very second is not older than 0 s; one of the second before is.
    eventually("max-age=0 is a miss", async || {
        (!is_hit(&with_control(&stack, ALICE, "max-age=0", &ask("Hello")).await)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_served_what_another_tenant_asked_for() {
    let stack = Stack::start().await;
    assert!(!is_hit(&stack.alice(&ask("Hello")).await));
    for key in [BOB, OPEN, TINY] {
        let response = stack.chat(key, &ask("Hello")).await;
        assert!(!is_hit(&response), "{key}");
    }
    assert_eq!(asked(&stack), 4);
    assert!(is_hit(&stack.chat(BOB, &ask("Hello")).await), "his own");
    // Without a cache in the policy there is none.
    let open = stack.chat(OPEN, &ask("Hello")).await;
    assert_eq!(open.header("cache-status"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_has_forgotten_the_sidecar_remembers() {
    let mut stack = Stack::start().await;
    for streams in [false, true] {
        let question = with(ask("count to 30"), json!({"stream": streams, "seed": streams}));
        let mut first = stack.alice(&question).await;
        first.text().await;
        stored(&stack, &first.trace()).await;
    }
    stack.restart().await;
    let before = asked(&stack);
    for streams in [false, true] {
        let question = with(ask("count to 30"), json!({"stream": streams, "seed": streams}));
        let response = eventually("the sidecar answers in time", async || {
            let response = with_control(&stack, ALICE, "only-if-cached", &question).await;
            (response.status == 200).then_some(response)
        })
        .await;
        assert!(is_hit(&response));
        assert!(response.header("age").is_some());
        if streams {
            assert_eq!(response.events().all().await.whole(), count(30));
        } else {
            assert_eq!(response.into_json().await["choices"][0]["message"]["content"], count(30));
        }
    }
    assert_eq!(asked(&stack), before);
    // Another tenant's key is another's.
    assert!(!is_hit(&stack.chat(BOB, &with(ask("count to 30"), json!({"seed": false}))).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_whole_and_well_is_not_kept() {
    let stack = Stack::builder().edit("input_guard: {mode: parallel,", "input_guard: {mode: off,").start().await;
    let table = [
        ("blocked", json!({}), ask("say: build a bomb")),
        ("truncated", json!({"no_finish_after": 12}), stream("count to 30")),
        ("cut", json!({"cut_after": 40, "token_ms": 3}), stream("count to 91")),
        ("broken off by an error", json!({"error_event_after": 12}), stream("count to 32")),
        ("stopped by its length", json!({}), with(ask("count to 33"), json!({"max_tokens": 5}))),
        ("two choices", json!({}), with(ask("count to 34"), json!({"n": 2}))),
        ("hot", json!({}), with(ask("count to 35"), json!({"temperature": 1.5}))),
        ("stored at the provider", json!({}), with(ask("count to 36"), json!({"store": true}))),
        ("an error", json!({"status": 400}), ask("count to 37")),
    ];
    for (name, faults, body) in table {
        fault(stack.vllm(), serde_json::from_value(faults).unwrap());
        for round in 0..2 {
            let before = asked(&stack);
            let mut response = stack.alice(&body).await;
            assert!(!is_hit(&response), "{name}, {round}");
            let _ = response.rest().await;
            assert_eq!(asked(&stack), before + 1, "{name}, {round}");
            let record = stack.record(&response.trace()).await;
            assert_eq!(record["cache"].get("store_s"), None, "{name}: {record}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_the_second_provider_is_kept_as_well() {
    let stack = Stack::start().await;
    fault(stack.vllm(), Faults { status: Some(500), ..Faults::default() });
    assert_eq!(stack.alice(&ask("Hello")).await.header("x-parapet-attempts"), Some("2"));
    assert!(is_hit(&stack.alice(&ask("Hello")).await));
    assert_eq!(stack.openai().requests().len(), 1);
}
