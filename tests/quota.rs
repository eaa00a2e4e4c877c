//! Limits per user: what is refused, what a client is told, and that what was reserved is settled.

mod support;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::{ALICE, CHAT, Faults, Response, Stack, TINY, ask, eventually, fault, stream, with};

fn number(response: &Response, name: &str) -> u64 {
    let value = response.header(name).unwrap_or_else(|| panic!("no {name}: {:?}", response.headers));
    value.parse().unwrap_or_else(|_| panic!("{name}: {value}"))
}

/// A question that no cache answers.
fn fresh(number: u64) -> Value {
    with(ask("say: ok"), json!({"seed": number, "max_tokens": 10}))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sixth_request_of_a_minute_is_refused_and_told_when() {
    let stack = Stack::start().await;
    for sent in 1..=5 {
        let response = stack.chat(TINY, &fresh(sent)).await;
        assert_eq!(response.status, 200);
        assert_eq!(number(&response, "x-ratelimit-limit-requests"), 5);
        assert_eq!(number(&response, "x-ratelimit-remaining-requests"), 5 - sent);
        assert_eq!(number(&response, "x-ratelimit-limit-tokens"), 1000);
    }
    for body in [fresh(6), with(fresh(7), json!({"stream": true}))] {
        let refused = stack.chat(TINY, &body).await;
        // One request comes back every twelve seconds.
        let wait = number(&refused, "retry-after");
        assert!((1..=12).contains(&wait), "{wait}");
        assert_eq!(number(&refused, "x-ratelimit-remaining-requests"), 0);
        assert!(refused.header("x-ratelimit-reset-requests").unwrap().ends_with('s'));
        assert_eq!(refused.header("x-should-retry"), None, "it is worth another try");
        let trace = refused.trace();
        let error = refused.into_error(429, "rate_limit_exceeded").await;
        assert!(error["message"].as_str().unwrap().contains(&format!("{wait} s")), "{error}");
        assert_eq!(stack.record(&trace).await["reason"], "rate_limit_exceeded");
    }
    assert_eq!(stack.vllm().requests().len(), 5);
    // Each has a limit of his own, and /chat counts as well.
    assert_eq!(stack.chat(ALICE, &fresh(8)).await.status, 200);
    let chat = stack.post("/chat").key(TINY).json(&json!({"message": "x"})).send().await;
    chat.into_error(429, "rate_limit_exceeded").await;
    // What costs nothing is not counted.
    assert_eq!(stack.get("/v1/models").key(TINY).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_limited_by_what_a_request_may_use() {
    let stack = Stack::start().await;
    let reserve = |tokens: u64| with(ask("count to 3"), json!({"max_tokens": tokens, "seed": tokens}));
    // While the first one works its reservation stands.
    fault(stack.vllm(), Faults { first_token_ms: Some(60_000), ..Faults::default() });
    let first = stack.post(CHAT).key(TINY).json(&reserve(900)).open().await;
    eventually("the first is under way", async || stack.vllm().requests().pop()).await;
    let refused = stack.chat(TINY, &reserve(200)).await;
    let wait = number(&refused, "retry-after");
    assert!((1..=60).contains(&wait), "{wait}");
    assert!(number(&refused, "x-ratelimit-remaining-tokens") < 100);
    refused.into_error(429, "rate_limit_exceeded").await;
    // The client leaves: nothing was used, all of it comes back.
    drop(first);
    fault(stack.vllm(), Faults::default());
    let response = eventually("the reservation comes back", async || {
        let response = stack.chat(TINY, &reserve(201)).await;
        (response.status == 200).then_some(response)
    })
    .await;
    assert!(number(&response, "x-ratelimit-remaining-tokens") > 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_answer_really_used_is_settled() {
    let stack = Stack::start().await;
    for (round, streams) in [false, true].into_iter().enumerate() {
        let body = with(ask("count to 60"), json!({"max_tokens": 300, "stream": streams, "seed": streams}));
        let response = stack.chat(TINY, &body).await;
        let before = number(&response, "x-ratelimit-remaining-tokens");
        let trace = response.trace();
        if streams {
            response.events().all().await.whole();
        } else {
            response.into_json().await;
        }
        let record = stack.record(&trace).await;
        let used = record["usage"]["prompt"].as_u64().unwrap() + record["usage"]["completion"].as_u64().unwrap();
        let quota = &record["quota"];
        let reserved = quota["reserved_tokens"].as_u64().unwrap();
        assert!(reserved >= 300 && used < 120, "{quota} {used}");
        assert_eq!(quota["settled_tokens"].as_u64(), Some(used));
        // The next request finds what the answer left, not what was reserved for it.
        let next = stack.chat(TINY, &fresh(100 + round as u64)).await;
        let reserved_next = stack.record(&next.trace()).await["quota"]["reserved_tokens"].as_u64().unwrap();
        let expected = (before + reserved - used).saturating_sub(reserved_next);
        let found = number(&next, "x-ratelimit-remaining-tokens");
        // Some tokens come back each second.
        assert!((expected..expected + 200).contains(&found), "{found} of {expected}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_or_failed_costs_no_tokens() {
    let stack = Stack::start().await;
    let left = async |body: &Value, status: u16| {
        let response = stack.chat(TINY, body).await;
        assert_eq!(response.status, status);
        stack.record(&response.trace()).await["quota"]["settled_tokens"].as_u64()
    };
    assert_eq!(left(&with(ask("How do I build a bomb?"), json!({"max_tokens": 500})), 403).await, Some(0));
    for simulator in [stack.vllm(), stack.openai()] {
        fault(simulator, Faults { status: Some(500), ..Faults::default() });
    }
    assert_eq!(left(&with(ask("x"), json!({"max_tokens": 500})), 502).await, Some(0));
    for simulator in [stack.vllm(), stack.openai()] {
        fault(simulator, Faults::default());
    }
    let answered = with(ask("count to 9"), json!({"max_tokens": 500}));
    assert!(left(&answered, 200).await.unwrap() > 0);
    assert_eq!(left(&answered, 200).await, Some(0), "a hit uses no tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_limit_passes_however_many_ask_at_once() {
    // Two workers share the buckets.
    let stack = Stack::builder().env("PARAPET_CONCURRENCY", "2").start().await;
    let requests = (0..60).map(|number| {
        let stack = &stack;
        async move {
            let body = if number % 2 == 0 {
                fresh(number)
            } else {
                with(stream("say: ok"), json!({"seed": number, "max_tokens": 10}))
            };
            let mut response = stack.chat(TINY, &body).await;
            response.text().await;
            response.status
        }
    });
    let statuses = join_all(requests).await;
    let passed = statuses.iter().filter(|status| **status == 200).count();
    // One comes back every twelve seconds; sixty requests take less than twenty-four.
    assert!((5..=6).contains(&passed), "{passed}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 60 - passed);
}
