//! A provider that is slow to its first token: another is asked beside it, the first token wins, and the extra spend is
//! bounded and told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use std::time::Duration;

use parapet::sim::Simulator;
use serde_json::{Value, json};
use support::{Faults, OPEN, Stack, ask, count, eventually, fault, left_by_gateway, stream, with};

/// `open` asks the next provider after 100 ms, for a tenth of the requests.
fn hedging() -> support::Builder {
    Stack::builder()
        .edit("open: {}", "open: {hedge_after_ms: 100, hedge_budget_percent: 10}")
        .edit("per_token_ms: 15", "per_token_ms: 0")
}

fn slow(simulator: &Simulator, first_token_ms: u64) {
    fault(simulator, Faults { first_token_ms: Some(first_token_ms), ..Faults::default() });
}

fn faulty(simulator: &Simulator, faults: Value) {
    fault(simulator, serde_json::from_value(faults).unwrap());
}

fn told(record: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let attempts = record["attempts"].as_array().unwrap();
    attempts.iter().map(|attempt| (text(&attempt["provider"]), text(&attempt["outcome"]))).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(provider, outcome)| ((*provider).to_owned(), (*outcome).to_owned())).collect()
}

async fn answer(stack: &Stack, streams: bool) -> (String, Value) {
    let body = with(ask("count to 5"), json!({"stream": streams}));
    let response = stack.chat(OPEN, &body).await;
    assert_eq!(response.status, 200, "{:?}", response.headers);
    let provider = response.header("x-parapet-provider").unwrap().to_owned();
    let (trace, attempts) = (response.trace(), response.header("x-parapet-attempts").unwrap().to_owned());
    let text = if streams {
        response.events().all().await.whole()
    } else {
        response.into_json().await["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    assert_eq!(text, count(5));
    let record = stack.record(&trace).await;
    assert_eq!(record["attempts"].as_array().unwrap().len().to_string(), attempts, "{record}");
    (provider, record)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_token_wins_and_the_loser_is_cut_off_and_accounted() {
    let stack = hedging().start().await;
    for streams in [true, false] {
        slow(stack.vllm(), 20_000);
        slow(stack.openai(), 5);
        stack.vllm().clear_requests();
        let (provider, record) = answer(&stack, streams).await;
        assert_eq!(provider, "openai");
        left_by_gateway(stack.vllm()).await;
        assert_eq!(told(&record), pairs(&[("vllm", "lost"), ("openai", "ok")]), "{record}");
        let (lost, won) = (&record["attempts"][0], &record["attempts"][1]);
        let us = |attempt: &Value, field: &str| attempt[field].as_u64().unwrap();
        assert!(us(won, "start_us") >= us(lost, "start_us") + 90_000, "{record}");
        assert!(us(won, "start_us") < us(lost, "end_us"), "they ran beside each other: {record}");
        assert!(us(won, "first_token_us") >= us(won, "start_us") && us(won, "end_us") >= us(won, "first_token_us"));
        assert_eq!((&lost["usage"]["completion"], &lost["usage"]["estimated"]), (&json!(0), &json!(true)), "{record}");
        assert!(lost["usage"]["prompt"].as_u64().unwrap() > 0 && us(lost, "cost_nanousd") > 0, "{record}");
        assert_eq!(won["usage"], record["usage"], "the client is charged for its answer");
        assert_eq!(us(&record, "cost_nanousd"), us(lost, "cost_nanousd") + us(won, "cost_nanousd"), "{record}");

        // The other way round: the late first one wins after all.
        slow(stack.vllm(), 500);
        slow(stack.openai(), 20_000);
        stack.openai().clear_requests();
        let (provider, record) = answer(&stack, streams).await;
        assert_eq!(provider, "vllm");
        left_by_gateway(stack.openai()).await;
        assert_eq!(told(&record), pairs(&[("vllm", "ok"), ("openai", "lost")]), "{record}");
    }
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_of_two_fails_the_other_ones_answer_counts() {
    let stack = hedging().start().await;
    let failures = [
        json!({"status": 503}),
        json!({"status": 400}),
        json!({"status": 429}),
        json!({"status": 401}),
        json!({"cut_after": 0}),
        json!({"empty": true}),
    ];
    for failure in failures {
        for streams in [true, false] {
            // The hedge fails at once, while the first one is still at work.
            slow(stack.vllm(), 400);
            faulty(stack.openai(), failure.clone());
            let (provider, record) = answer(&stack, streams).await;
            assert_eq!(provider, "vllm", "{failure}: {record}");
            assert_eq!(told(&record)[0], ("vllm".to_owned(), "ok".to_owned()), "{failure}: {record}");
            // The first one fails late, while the hedge is at work.
            let mut late = failure.clone();
            late["latency_ms"] = json!(250);
            faulty(stack.vllm(), late);
            slow(stack.openai(), 400);
            let (provider, record) = answer(&stack, streams).await;
            assert_eq!(provider, "openai", "{failure}: {record}");
            assert_eq!(told(&record)[1], ("openai".to_owned(), "ok".to_owned()), "{failure}: {record}");
            assert_ne!(told(&record)[0].1, "lost", "it failed by itself: {failure}: {record}");
        }
    }
    stack.assert_lives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_both_fail_beside_each_other_the_client_is_told_once_and_soon() {
    let stack = hedging().start().await;
    let failures = [
        json!({"empty": true}),
        json!({"malformed": true}),
        json!({"error_event_first": true}),
        json!({"status": 503}),
    ];
    for first in &failures {
        for second in &failures {
            for streams in [true, false] {
                let delayed = |faults: &Value, ms: u64| with(faults.clone(), json!({"latency_ms": ms}));
                faulty(stack.vllm(), delayed(first, 200));
                faulty(stack.openai(), delayed(second, 150));
                let place = format!("{first} {second} {streams}");
                let response = stack.chat(OPEN, &with(ask("x"), json!({"stream": streams}))).await;
                let trace = response.trace();
                response.into_error_at(502, "upstream_error", place.clone()).await;
                let record = stack.record(&trace).await;
                let providers: Vec<String> = told(&record).into_iter().map(|(provider, _)| provider).collect();
                assert_eq!(providers, ["vllm", "openai"], "{place}: {record}");
                assert_eq!((&record["status"], &record["reason"]), (&json!(502), &json!("upstream_error")), "{place}");
            }
        }
    }
    stack.assert_lives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_slow_at_once_only_the_budgets_share_is_hedged() {
    let stack = hedging().start().await;
    slow(stack.vllm(), 600);
    slow(stack.openai(), 5);
    let requests = (0..50).map(|_| answer(&stack, true));
    let answers = futures_util::future::join_all(requests).await;
    let hedged = answers.iter().filter(|(_, record)| told(record).len() == 2).count();
    // Ten at once, and a tenth of fifty.
    assert!((10..=15).contains(&hedged), "{hedged}");
    assert_eq!(stack.openai().requests().len(), hedged, "what was not allowed never reached the provider");
    for (provider, record) in &answers {
        let told = told(record);
        let won = told.iter().position(|(_, outcome)| outcome == "ok").unwrap();
        assert_eq!(*provider, told[won].0, "{record}");
        assert!(told.iter().enumerate().all(|(at, (_, outcome))| at == won || outcome == "lost"), "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_budget_failover_is_as_ever() {
    let builder = Stack::builder().edit("open: {}", "open: {hedge_after_ms: 100, hedge_budget_percent: 1}");
    let stack = builder.edit("stream_ms: 5000", "stream_ms: 1500").start().await;
    slow(stack.vllm(), 20_000);
    futures_util::future::join_all((0..10).map(|_| answer(&stack, true))).await;
    stack.openai().clear_requests();
    // Nothing is left: the first-token limit counts.
    let (provider, record) = answer(&stack, true).await;
    let start = |index: usize| record["attempts"][index]["start_us"].as_u64().unwrap();
    assert_eq!((&*provider, told(&record)), ("openai", pairs(&[("vllm", "lost"), ("openai", "ok")])));
    assert!(start(1) - start(0) >= 1_450_000, "{record}");
    let seen = stack.openai().requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].json()["model"].as_str(), seen[0].header("authorization")),
        (Some(support::OPENAI_MODEL), Some(&*format!("Bearer {}", support::OPENAI_KEY)))
    );
    // Or its failure.
    faulty(stack.vllm(), json!({"status": 503, "latency_ms": 300}));
    let (provider, record) = answer(&stack, true).await;
    assert_eq!((&*provider, told(&record)), ("openai", pairs(&[("vllm", "status"), ("openai", "ok")])));
    assert!(
        start(1) - start(0) < 1_490_000
            || record["attempts"][1]["start_us"].as_u64() > record["attempts"][0]["end_us"].as_u64()
    );
    stack.assert_lives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_hedging_gets_none_and_no_client_can_ask_for_it() {
    let stack = Stack::start().await;
    slow(stack.vllm(), 600);
    let names = [
        ("x-envoy-hedge-on-per-try-timeout", "true"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "50"),
        ("x-envoy-upstream-rq-timeout-ms", "50"),
        ("x-envoy-upstream-rq-timeout-alt-response", "true"),
        ("x-envoy-max-retries", "9"),
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-expected-rq-timeout-ms", "50"),
    ];
    let request = stack.post(support::CHAT).key(OPEN).json(&stream("count to 5"));
    let request = names.iter().fold(request, |request, (name, value)| request.header(name, value));
    let response = request.send().await;
    assert_eq!((response.status, response.header("x-parapet-attempts")), (200, Some("1")));
    let trace = response.trace();
    assert_eq!(response.events().all().await.whole(), count(5));
    assert_eq!(told(&stack.record(&trace).await), pairs(&[("vllm", "ok")]));
    assert!(stack.openai().requests().is_empty());
    let seen = stack.vllm_requests();
    assert!(!format!("{:?}", seen[0]).contains("x-envoy"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hedge_waits_for_a_verdict_that_comes_first_and_its_answer_is_judged() {
    let guards = "{input_guard: {mode: blocking, timeout_ms: 5000}, output_guard: {mode: hold, timeout_ms: 5000}, hedge_after_ms: 100}";
    let stack = Stack::builder().edit("open: {}", &format!("open: {guards}")).start().await;
    slow(stack.vllm(), 20_000);
    fault(stack.guard(), Faults { latency_ms: Some(300), ..Faults::default() });
    let (provider, record) = answer(&stack, true).await;
    assert_eq!((&*provider, told(&record)), ("openai", pairs(&[("vllm", "lost"), ("openai", "ok")])));
    let us = |value: &Value| value.as_u64().unwrap();
    assert!(us(&record["attempts"][0]["start_us"]) >= us(&record["input_guard"]["end_us"]), "{record}");
    assert_eq!(record["output_guard"]["verdict"], "safe");
    // Refused: nobody is asked.
    stack.vllm().clear_requests();
    stack.openai().clear_requests();
    let response = stack.chat(OPEN, &stream("How do I build a bomb?")).await;
    response.into_error(403, "content_blocked").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(stack.vllm_requests().is_empty() && stack.openai().requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_both_attempts_with_it() {
    let stack = hedging().start().await;
    slow(stack.vllm(), 20_000);
    slow(stack.openai(), 20_000);
    let connection = stack.post(support::CHAT).key(OPEN).json(&stream("count to 5")).open().await;
    eventually("both are asked", async || {
        (stack.vllm_requests().len() == 1 && stack.openai().requests().len() == 1).then_some(())
    })
    .await;
    drop(connection);
    left_by_gateway(stack.vllm()).await;
    left_by_gateway(stack.openai()).await;
}

/// `open` is given so much time in all.
fn hurried(total_ms: u64) -> support::Builder {
    Stack::builder().edit("open: {}", &format!("open: {{deadline_ms: {total_ms}}}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn when_time_is_up_before_a_token_left_the_client_is_told_so() {
    let stack = hurried(600).edit("stream_ms: 5000, floor_ms: 1000", "stream_ms: 200, floor_ms: 200").start().await;
    for hangs in [
        json!({"hang": true}),
        json!({"hang_after_headers": true}),
        json!({"keepalive_only": true}),
        json!({"first_token_ms": 20_000}),
    ] {
        for streams in [true, false] {
            // Events are no JSON answer, and that is seen at once.
            if !streams && hangs.get("keepalive_only").is_some() {
                continue;
            }
            for simulator in [stack.vllm(), stack.openai()] {
                simulator.clear_requests();
                faulty(simulator, hangs.clone());
            }
            let response = stack.chat(OPEN, &with(ask("x"), json!({"stream": streams}))).await;
            let trace = response.header("x-parapet-trace-id").unwrap().to_owned();
            response.into_error_at(504, "upstream_timeout", format!("{hangs} {streams}")).await;
            let record = stack.record(&trace).await;
            let took_us = record["end_us"].as_u64().unwrap() - record["start_us"].as_u64().unwrap();
            assert!(took_us >= 590_000, "{hangs} {streams}: {record}");
            assert_eq!((&record["status"], &record["reason"]), (&json!(504), &json!("upstream_timeout")), "{record}");
            left_by_gateway(stack.vllm()).await;
            if streams {
                // All attempts share it.
                left_by_gateway(stack.openai()).await;
            }
        }
    }
    stack.assert_lives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_own_limit_counts_where_it_is_the_shorter_and_has_to_be_one() {
    let stack = hurried(60_000).start().await;
    for simulator in [stack.vllm(), stack.openai()] {
        slow(simulator, 20_000);
    }
    for streams in [true, false] {
        let request = stack.post(support::CHAT).key(OPEN).json(&with(ask("x"), json!({"stream": streams})));
        let response = request.header("x-request-timeout-ms", "300").send().await;
        response.into_error(504, "upstream_timeout").await;
    }
    stack.vllm().clear_requests();
    for value in ["0", "soon", "-1", "3600001", "1.5", "\u{e9}"] {
        let request = stack.post(support::CHAT).key(OPEN).json(&ask("x")).header("x-request-timeout-ms", value);
        let error = request.send().await.into_error(400, "invalid_request").await;
        assert_eq!(error["param"], "x-request-timeout-ms");
    }
    assert!(stack.vllm_requests().is_empty());
    fault(stack.vllm(), Faults::default());
    let request = stack.post(support::CHAT).key(OPEN).json(&ask("count to 5")).header("x-request-timeout-ms", "30000");
    assert_eq!(request.send().await.status, 200);
    assert!(!format!("{:?}", stack.vllm_requests()).contains("x-request-timeout-ms"));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_time_is_up_after_a_token_left_the_stream_never_ends_as_a_good_one() {
    let stack = hurried(800).start().await;
    fault(stack.vllm(), Faults { token_ms: Some(30), ..Faults::default() });
    let response = stack.chat(OPEN, &stream("count to 1000")).await;
    let trace = response.trace();
    let streamed = response.events().all().await;
    assert!(!streamed.done && streamed.finish_reasons().is_empty(), "{streamed:?}");
    assert!(streamed.end.is_err() || streamed.error().is_some(), "{streamed:?}");
    assert!(streamed.text().starts_with("1 2 3"), "{streamed:?}");
    left_by_gateway(stack.vllm()).await;
    let record = stack.record(&trace).await;
    assert_eq!((&record["truncated"], record.get("client_aborted")), (&json!(true), None), "{record}");
    assert_eq!(told(&record), pairs(&[("vllm", "cut")]), "{record}");
    assert!(
        record["usage"]["completion"].as_u64().unwrap() > 3 && record["cost_nanousd"].as_u64().unwrap() > 0,
        "{record}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_are_given_no_more_than_what_is_left() {
    let guards = "{input_guard: {mode: blocking, timeout_ms: 60000}, output_guard: {mode: hold, timeout_ms: 60000}, deadline_ms: 500}";
    let stack = Stack::builder().edit("open: {}", &format!("open: {guards}")).start().await;
    fault(stack.guard(), Faults { hang: true, ..Faults::default() });
    let response = stack.chat(OPEN, &stream("count to 9")).await;
    response.into_error(504, "upstream_timeout").await;
    assert!(stack.vllm_requests().is_empty(), "nobody was asked");
    // The prompt's verdict is remembered from here on; the answer's never comes.
    fault(stack.guard(), Faults::default());
    assert_eq!(stack.chat(OPEN, &ask("count to 5")).await.status, 200);
    fault(stack.guard(), Faults { hang: true, ..Faults::default() });
    for streams in [true, false] {
        let response = stack.chat(OPEN, &with(ask("count to 5"), json!({"stream": streams}))).await;
        response.into_error(504, "upstream_timeout").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_without_quota_is_asked_once_and_its_refusal_is_lasting() {
    let stack = Stack::start().await;
    for (faults, retry_after, should_retry) in [
        (json!({"insufficient_quota": true}), None, Some("false")),
        (json!({"status": 429, "retry_after_s": 7}), Some("7"), None),
    ] {
        for streams in [true, false] {
            stack.openai().clear_requests();
            faulty(stack.openai(), faults.clone());
            let body = with(ask("x"), json!({"stream": streams, "model": support::OPENAI_MODEL}));
            let response = stack.chat(OPEN, &body).await;
            assert_eq!(
                (response.header("retry-after"), response.header("x-should-retry")),
                (retry_after, should_retry)
            );
            let error = response.into_error(502, "upstream_error").await;
            assert_eq!(error["message"].as_str().unwrap().contains("quota"), should_retry.is_some(), "{error}");
            assert_eq!(stack.openai().requests().len(), 1, "the only provider is not asked again: {faults}");
        }
    }
    stack.assert_lives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_spill_past_a_vllm_that_would_only_queue_them_and_come_back() {
    let builder = Stack::builder().edit("open: {}", "open: {spill: {waiting: 4, kv_cache: 0.9}}");
    let stack = builder.start().await;
    let provider = async || {
        let response = stack.chat(OPEN, &ask("count to 5")).await;
        assert_eq!((response.status, response.header("x-parapet-attempts")), (200, Some("1")));
        (response.header("x-parapet-provider").unwrap().to_owned(), response.trace())
    };
    for (load, expected) in [
        (json!({}), "vllm"),
        (json!({"waiting": 4}), "openai"),
        (json!({"waiting": 3, "kv_cache": 0.89}), "vllm"),
        (json!({"kv_cache": 0.9}), "openai"),
        // A vLLM that says nothing of itself any more is no reason.
        (json!({"status": 500, "path": "/metrics", "waiting": 9}), "vllm"),
    ] {
        faulty(stack.vllm(), load.clone());
        let trace = eventually(&format!("{load} leads to {expected}"), async || {
            let (provider, trace) = provider().await;
            (provider == expected).then_some(trace)
        })
        .await;
        let record = stack.record(&trace).await;
        assert_eq!(told(&record), pairs(&[(expected, "ok")]), "{record}");
        assert_eq!(record.get("spilled").is_some(), expected == "openai", "{record}");
        assert_eq!(record["attempts"][0]["model"] == support::OPENAI_MODEL, expected == "openai", "{record}");
    }
    // Whose policy does not say so waits in the queue.
    faulty(stack.vllm(), json!({"waiting": 40}));
    eventually("openai again", async || (provider().await.0 == "openai").then_some(())).await;
    assert_eq!(stack.alice(&ask("count to 5")).await.header("x-parapet-provider"), Some("vllm"));
    stack.assert_lives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_was_hedged_often_is_not_taken_for_an_ill_one() {
    let stack = hedging().start().await;
    slow(stack.vllm(), 20_000);
    // More in a row than Envoy's outlier detection forgives failures, and no more than are hedged at once.
    for _ in 0..8 {
        assert_eq!(answer(&stack, true).await.0, "openai");
    }
    let ejected = stack.stats("cluster.vllm.outlier_detection.ejections").await;
    assert!(!ejected.is_empty() && ejected.iter().all(|(_, count)| *count == 0), "{ejected:?}");
    fault(stack.vllm(), Faults::default());
    let (provider, record) = answer(&stack, true).await;
    assert_eq!((&*provider, told(&record)), ("vllm", pairs(&[("vllm", "ok")])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hedged_request_whose_time_is_up_is_told_so_too() {
    let stack = Stack::builder().edit("open: {}", "open: {hedge_after_ms: 100, deadline_ms: 500}").start().await;
    for hangs in [json!({"hang": true}), json!({"hang_after_headers": true})] {
        for streams in [true, false] {
            for simulator in [stack.vllm(), stack.openai()] {
                faulty(simulator, hangs.clone());
            }
            let response = stack.chat(OPEN, &with(ask("x"), json!({"stream": streams}))).await;
            let trace = response.header("x-parapet-trace-id").unwrap_or_default().to_owned();
            response.into_error_at(504, "upstream_timeout", format!("{hangs} {streams}")).await;
            let record = stack.record(&trace).await;
            assert_eq!((&record["status"], &record["reason"]), (&json!(504), &json!("upstream_timeout")), "{record}");
        }
    }
    // After a token it is a cut, as without hedging.
    fault(stack.vllm(), Faults { token_ms: Some(30), ..Faults::default() });
    let streamed = stack.chat(OPEN, &stream("count to 1000")).await.events().all().await;
    assert!(!streamed.done && (streamed.end.is_err() || streamed.error().is_some()), "{streamed:?}");
    stack.assert_lives().await;
}
