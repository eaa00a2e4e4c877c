//! What goes wrong before the first token, and what the client sees of it.

use parapet::sim::SeenRequest;
use serde_json::{Value, json};

use crate::support::scripted::{Scripted, delta, event};
use crate::support::{
    self, ALIAS, ALICE, BOB, CHAT, Faults, MODEL, OPEN, OPENAI_KEY, OPENAI_MODEL, Stack, VLLM_KEY, ask, count,
    eventually, fault, left_by_gateway, stream, with,
};

/// A way to fail, as (name, fault, status and outcome of the lost attempt as JSON and as SSE, whether it has to be cut).
struct Case {
    name: &'static str,
    faults: Value,
    json: (u16, &'static str),
    sse: (u16, &'static str),
    hangs: bool,
}

fn cases() -> Vec<Case> {
    let case = |name, faults, json, sse| Case { name, faults, json, sse, hangs: false };
    let hanging = |name, faults, lost| Case { name, faults, json: lost, sse: lost, hangs: true };
    vec![
        case("500", json!({"status": 500}), (500, "status"), (500, "status")),
        case("503", json!({"status": 503}), (503, "status"), (503, "status")),
        case("408", json!({"status": 408}), (408, "status"), (408, "status")),
        case("429", json!({"status": 429, "retry_after_s": 30}), (429, "status"), (429, "status")),
        case("no quota", json!({"insufficient_quota": true}), (429, "status"), (429, "status")),
        case("our key refused", json!({"status": 401}), (401, "status"), (401, "status")),
        case("forbidden", json!({"status": 403}), (403, "status"), (403, "status")),
        hanging("hang", json!({"hang": true}), (0, "lost")),
        hanging("hang after the head", json!({"hang_after_headers": true}), (200, "lost")),
        Case {
            // Not even the kind that was asked for, where that was JSON.
            json: (200, "error_event"),
            ..hanging("keep-alives only", json!({"keepalive_only": true}), (200, "lost"))
        },
        case("error first", json!({"error_event_first": true}), (500, "status"), (200, "error_event")),
        case("empty", json!({"empty": true}), (200, "empty"), (200, "empty")),
        case("malformed", json!({"malformed": true}), (200, "error_event"), (200, "error_event")),
        case(
            "an error in a 200",
            json!({"status": 200, "body": "{\"error\":{\"message\":\"x\",\"code\":500}}"}),
            (200, "error_event"),
            (200, "error_event"),
        ),
        case(
            "no JSON",
            json!({"status": 200, "body": "<html>gateway</html>"}),
            (200, "error_event"),
            (200, "error_event"),
        ),
        case("cut off", json!({"cut_after": 0}), (200, "no_first_token"), (200, "no_first_token")),
        case("ended early", json!({"no_finish_after": 0}), (200, "error_event"), (200, "empty")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_vllm_does_wrong_before_its_first_token_openai_answers() {
    let stack = Stack::builder().impatient().start().await;
    let mut wrong = Vec::new();
    for case in cases() {
        for streams in [false, true] {
            fault(stack.vllm(), serde_json::from_value(case.faults.clone()).unwrap());
            stack.vllm().clear_requests();
            stack.openai().clear_requests();
            let record = answered_by_openai(&stack, case.name, streams).await;
            let (status, outcome) = if streams { case.sse } else { case.json };
            let lost = &record["attempts"][0];
            if (lost["status"].as_u64(), lost["outcome"].as_str()) != (Some(status.into()), Some(outcome)) {
                wrong.push(format!("{} (stream: {streams}): {status} {outcome} expected, {lost}", case.name));
            }
            if case.hangs {
                left_by_gateway(stack.vllm()).await;
            }
        }
    }
    fault(stack.vllm(), Faults::default());
    stack.assert_well().await;
    assert!(wrong.is_empty(), "the record tells other outcomes:\n{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vllm_that_is_not_there_is_not_noticed() {
    let mut stack = Stack::builder().impatient().start().await;
    stack.stop_vllm().await;
    for streams in [false, true] {
        stack.openai().clear_requests();
        let record = answered_by_openai(&stack, "refused", streams).await;
        assert_eq!(record["attempts"][0]["outcome"], "reset");
    }
}

/// One request as a client with an alias sends it; the record.
async fn answered_by_openai(stack: &Stack, case: &str, streams: bool) -> Value {
    let place = format!("{case} (stream: {streams})");
    let body = with(ask("count to 5"), json!({"model": ALIAS, "stream": streams}));
    let response = stack.chat(OPEN, &body).await;
    assert_eq!(response.status, 200, "{place}: {:?}", response.headers);
    assert_eq!(response.header("x-parapet-provider"), Some("openai"), "{place}");
    assert_eq!(response.header("x-parapet-attempts"), Some("2"), "{place}");
    assert_eq!(response.header("retry-after"), None, "{place}");
    let trace = response.trace();
    if streams {
        let streamed = response.events().all().await;
        assert_eq!(streamed.whole(), count(5), "{place}");
        assert!(streamed.events.iter().all(|event| event["model"] == ALIAS), "{place}");
    } else {
        let body = response.into_json().await;
        assert_eq!(
            (&body["model"], &body["choices"][0]["message"]["content"]),
            (&json!(ALIAS), &json!(count(5))),
            "{place}"
        );
    }
    let seen = stack.openai().requests();
    assert_eq!(seen.len(), 1, "{place}");
    let seen = &seen[0];
    assert_eq!(seen.json()["model"], OPENAI_MODEL, "{place}");
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {OPENAI_KEY}")), "{place}");
    assert_eq!(seen.header("content-length"), Some(&*seen.body.len().to_string()), "{place}");
    assert!(!format!("{seen:?}").contains(VLLM_KEY), "{place}: vLLM's key");
    assert_eq!(seen.path, CHAT, "{place}");
    assert_eq!(seen.header("host"), Some(&*stack.openai().address().to_string()), "{place}");
    let internal = |name: &str| ["x-parapet-", "x-envoy-", "x-forwarded-"].iter().any(|it| name.starts_with(it));
    assert!(seen.headers.iter().all(|(name, _)| !internal(name)), "{place}: {:?}", seen.headers);
    let lost: Vec<SeenRequest> = stack.vllm_requests();
    assert!(lost.iter().all(|lost| lost.received_us <= seen.received_us), "{place}: OpenAI was asked first");
    assert!(
        lost.iter().all(|seen| seen.json()["model"] == MODEL && !format!("{seen:?}").contains(OPENAI_KEY)),
        "{place}"
    );

    let record = stack.record(&trace).await;
    let attempts = record["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{place}: {attempts:?}");
    let told = |index: usize| (&attempts[index]["provider"], &attempts[index]["model"]);
    assert_eq!(told(0), (&json!("vllm"), &json!(MODEL)), "{place}");
    assert_eq!(told(1), (&json!("openai"), &json!(OPENAI_MODEL)), "{place}");
    assert_eq!((&attempts[1]["status"], &attempts[1]["outcome"]), (&json!(200), &json!("ok")), "{place}");
    let failed_before = attempts[0]["end_us"].as_u64() <= attempts[1]["start_us"].as_u64();
    assert!(failed_before || attempts[0]["outcome"] == "lost", "{place}: {attempts:?}");
    assert!(record.get("truncated").is_none(), "{place}");
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_at_fault_itself_is_not_tried_again() {
    let stack = Stack::start().await;
    for (status, shown, code) in
        [(400, 400, "invalid_request"), (404, 404, "model_not_found"), (413, 413, "request_too_large")]
    {
        for streams in [false, true] {
            fault(stack.vllm(), Faults { status: Some(status), ..Faults::default() });
            let response = stack.chat(OPEN, &with(ask("x"), json!({"stream": streams}))).await;
            let trace = response.trace();
            response.into_error(shown, code).await;
            let record = stack.record(&trace).await;
            assert_eq!(record["attempts"].as_array().unwrap().len(), 1, "{status}: {record}");
            assert_eq!((&record["status"], &record["reason"]), (&json!(shown), &json!(code)));
        }
    }
    assert!(stack.openai().requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nobody_answers_the_client_is_told_so_and_nothing_else() {
    let mut stack = Stack::builder().impatient().start().await;
    let table = [
        (json!({"status": 500}), 502, "upstream_error"),
        (json!({"status": 429}), 502, "upstream_error"),
        (json!({"status": 503, "body": "internal: 10.0.0.7 is down"}), 502, "upstream_error"),
        (json!({"status": 401}), 502, "upstream_error"),
        (json!({"hang": true}), 504, "upstream_timeout"),
    ];
    for (faults, status, code) in table {
        for streams in [false, true] {
            for simulator in [stack.vllm(), stack.openai()] {
                fault(simulator, serde_json::from_value(faults.clone()).unwrap());
            }
            let response = stack.chat(OPEN, &with(ask("x"), json!({"stream": streams}))).await;
            refused_without_detail(&stack, response, status, code, &format!("{faults} (stream: {streams})")).await;
        }
    }
    stack.stop_vllm().await;
    stack.stop_openai().await;
    for streams in [false, true] {
        let response = stack.chat(OPEN, &with(ask("x"), json!({"stream": streams}))).await;
        refused_without_detail(&stack, response, 502, "upstream_error", "both refused").await;
    }
}

async fn refused_without_detail(stack: &Stack, response: support::Response, status: u16, code: &str, place: &str) {
    let head = format!("{:?}", response.headers);
    let trace = response.header("x-parapet-trace-id").unwrap_or_default().to_owned();
    let error = response.into_error_at(status, code, place.to_owned()).await;
    let told = format!("{head} {error}").to_ascii_lowercase();
    for internal in ["127.0.0.1", "10.0.0.7", "connect", "reset", "upstream request", "x-envoy-upstream", "wasm", "sk-"]
    {
        assert!(!told.contains(internal), "{place}: {internal} in {told}");
    }
    let record = stack.record(&trace).await;
    let attempts = record["attempts"].as_array().unwrap();
    let providers: Vec<&str> = attempts.iter().map(|attempt| attempt["provider"].as_str().unwrap()).collect();
    assert_eq!(providers, ["vllm", "openai"], "{place}: {record}");
    assert!(attempts.iter().all(|attempt| attempt["outcome"] != "ok"), "{place}: {record}");
    assert_eq!((&record["status"], &record["reason"]), (&json!(status), &json!(code)), "{place}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_of_the_last_provider_beats_none() {
    let stack = Stack::builder().impatient().start().await;
    fault(stack.vllm(), Faults { hang: true, ..Faults::default() });
    fault(stack.openai(), Faults { first_token_ms: Some(900), ..Faults::default() });
    let streamed = stack.chat(OPEN, &stream("count to 5")).await.events().all().await;
    assert_eq!(streamed.whole(), count(5));
    let whole = stack.chat(OPEN, &ask("count to 5")).await;
    assert_eq!((whole.status, whole.header("x-parapet-provider")), (200, Some("openai")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_answer_that_is_late_at_the_first_provider_still_counts() {
    let stack = Stack::builder().impatient().start().await;
    fault(stack.vllm(), Faults { first_token_ms: Some(700), ..Faults::default() });
    fault(stack.openai(), Faults { hang: true, ..Faults::default() });
    let response = stack.chat(OPEN, &ask("count to 5")).await;
    assert_eq!((response.status, response.header("x-parapet-provider")), (200, Some("vllm")));
    let record = stack.record(&response.trace()).await;
    let attempts: Vec<(&str, &str)> = record["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| (attempt["provider"].as_str().unwrap(), attempt["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(attempts, [("vllm", "ok"), ("openai", "lost")]);
    eventually("the loser is cut off", async || {
        stack.openai().requests().first().filter(|request| request.disconnected()).map(|_| ())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_provider_whose_stream_begins_with_rubbish_or_an_error_is_no_answer() {
    let stack = Stack::start().await;
    for faults in [json!({"error_event_first": true}), json!({"malformed": true}), json!({"cut_after": 0})] {
        for streams in [false, true] {
            for simulator in [stack.vllm(), stack.openai()] {
                fault(simulator, serde_json::from_value(faults.clone()).unwrap());
            }
            let response = stack.chat(OPEN, &with(ask("x"), json!({"stream": streams}))).await;
            let place = format!("{faults} (stream: {streams})");
            refused_without_detail(&stack, response, 502, "upstream_error", &place).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_cannot_steer_the_failover() {
    let stack = Stack::start().await;
    fault(stack.vllm(), Faults { status: Some(500), ..Faults::default() });
    let request = stack.post(CHAT).key(OPEN).json(&ask("Hello")).header("x-envoy-max-retries", "0");
    let response = request.header("x-envoy-retry-on", "gateway-error").send().await;
    assert_eq!((response.status, response.header("x-parapet-provider")), (200, Some("openai")));
    fault(stack.vllm(), Faults::default());
    for name in ["x-parapet-cluster", "x-parapet-provider"] {
        let request = stack.post(CHAT).key(OPEN).json(&ask("Hello")).header(name, "only_openai");
        assert_eq!(request.send().await.header("x-parapet-provider"), Some("vllm"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_and_quota_do_not_get_in_the_way_of_failover() {
    let stack = Stack::builder().impatient().start().await;
    for (key, streams) in [(ALICE, false), (ALICE, true), (BOB, false), (BOB, true)] {
        fault(stack.vllm(), Faults { hang: true, ..Faults::default() });
        let body = with(ask("count to 30"), json!({"stream": streams, "seed": streams}));
        let response = stack.chat(key, &body).await;
        assert_eq!((response.status, response.header("x-parapet-attempts")), (200, Some("2")));
        if streams {
            assert_eq!(response.events().all().await.whole(), count(30));
        } else {
            assert_eq!(response.into_json().await["choices"][0]["message"]["content"], count(30));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_request_id_goes_on_to_every_provider() {
    let stack = Stack::start().await;
    fault(stack.vllm(), Faults { status: Some(500), ..Faults::default() });
    let request = stack.post(CHAT).key(OPEN).json(&ask("Hello")).header("x-request-id", "client-7");
    let response = request.send().await;
    for seen in [&stack.vllm_requests()[0], &stack.openai().requests()[0]] {
        assert_eq!(seen.header("x-request-id"), Some("client-7"));
    }
    assert_eq!(stack.record(&response.trace()).await["request_id"], "client-7");
}

/// A stream where JSON was asked for, and the other way round: a client finds nothing in it.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_the_other_kind_is_none() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder().env("VLLM_URL", &vllm.url).start().await;
    for streams in [false, true] {
        let body = with(ask("count to 5"), json!({"stream": streams}));
        let client = stack.post(CHAT).key(OPEN).json(&body).open().await;
        let mut model = vllm.request().await;
        if streams {
            let answer = json!({"choices": [{"message": {"content": "wrong"}, "finish_reason": "stop"}]});
            model.answer("200 OK", "application/json", answer.to_string().as_bytes()).await;
        } else {
            model.stream_head().await;
            model.try_chunk(&event(&delta(json!({"content": "wrong"}), Value::Null))).await;
        }
        let response = client.response().await;
        assert_eq!((response.status, response.header("x-parapet-provider")), (200, Some("openai")), "{streams}");
        let text = if streams {
            response.events().all().await.whole()
        } else {
            response.into_json().await["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        };
        assert_eq!(text, count(5));
    }
}

/// Its head has said enough.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_providers_error_is_told_although_its_body_does_not_come() {
    let openai = Scripted::start().await;
    let stack = Stack::builder().env("OPENAI_BASE_URL", &format!("{}/v1", openai.url)).start().await;
    for streams in [false, true] {
        let body = with(ask("Hello"), json!({"model": OPENAI_MODEL, "stream": streams}));
        let client = stack.post(CHAT).key(OPEN).json(&body).open().await;
        let mut model = openai.request().await;
        model.send("HTTP/1.1 500 Oh\r\ncontent-length: 50\r\n\r\n{").await;
        let response = client.response().await;
        let trace = response.trace();
        response.into_error(502, "upstream_error").await;
        model.closed().await;
        let record = stack.record(&trace).await;
        assert_eq!(record["attempts"].as_array().unwrap().len(), 1, "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_fails_beside_a_failover_is_what_the_client_is_told() {
    let mut stack = Stack::start().await;
    stack.stop_vllm().await;
    fault(stack.guard(), Faults { garbage_verdict: Some("?".to_owned()), latency_ms: Some(100), ..Faults::default() });
    for streams in [false, true] {
        let response = stack.alice(&with(ask("Hello"), json!({"stream": streams}))).await;
        response.into_error(503, "guard_unavailable").await;
    }
}
