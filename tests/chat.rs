//! The endpoints as a client meets them, through the real Envoy.

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::scripted::Scripted;
use support::{
    ALIAS, ALICE, BOB, CHAT, Faults, MODEL, OPEN, OPENAI_KEY, OPENAI_MODEL, Stack, TINY, VLLM_KEY, ask, count, fault,
    stream, with,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_json_chat_is_answered_with_the_headers_of_the_contract() {
    let stack = Stack::start().await;
    let response = stack.alice(&ask("Hello")).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(response.header("x-parapet-provider"), Some("vllm"));
    assert_eq!(response.header("x-parapet-attempts"), Some("1"));
    assert_eq!(response.header("cache-status"), Some("parapet; fwd=miss"));
    let trace = response.trace();
    let id = uuid::Uuid::try_parse(&trace).unwrap();
    assert_eq!(id.get_version_num(), 7);
    let names: Vec<&str> = response.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert!(!names.iter().any(|name| name.starts_with("x-ratelimit-")), "no limit is set for alice: {names:?}");
    assert!(!names.iter().any(|name| name.starts_with("x-envoy-")), "{names:?}");
    let body = response.into_json().await;
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], MODEL);
    assert_eq!(body["choices"][0]["message"]["content"], "You asked: Hello");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["completion_tokens"], 3);

    let record = stack.record(&trace).await;
    assert_eq!(record["api"], "chat_completions");
    assert_eq!((&record["tenant"], &record["user"]), (&json!("acme"), &json!("alice")));
    assert_eq!(record["status"], 200);
    assert_eq!(record["answers"][0]["content"], "You asked: Hello");
    assert_eq!(record["usage"]["completion"], 3);
    assert_eq!(record["attempts"].as_array().unwrap().len(), 1);
    assert_eq!((&record["attempts"][0]["provider"], &record["attempts"][0]["outcome"]), (&json!("vllm"), &json!("ok")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sse_chat_comes_whole_and_in_order() {
    let stack = Stack::start().await;
    for key in [ALICE, BOB, OPEN] {
        let response = stack.chat(key, &stream("count to 100")).await;
        assert_eq!(response.header("content-type"), Some("text/event-stream; charset=utf-8"), "{key}");
        let trace = response.trace();
        let streamed = response.events().all().await;
        assert_eq!(streamed.whole(), count(100), "{key}");
        assert!(streamed.events.iter().all(|event| event["model"] == MODEL), "{key}");
        assert!(
            streamed.events.iter().all(|event| event.get("usage").is_none_or(Value::is_null)),
            "nobody asked: {key}"
        );
        let record = stack.record(&trace).await;
        assert_eq!(record["answers"][0]["content"], count(100), "{key}");
        assert_eq!(record["stream"], true, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_arrive_as_they_are_made() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder().env("VLLM_URL", &vllm.url).start().await;
    // No guard, or one that cuts later: each token is with the client before the next is made.
    for key in [OPEN, BOB] {
        let client = stack.post(CHAT).key(key).json(&stream("Hello")).open().await;
        let mut model = vllm.request().await;
        model.stream_head().await;
        model.token("one").await;
        let mut events = client.response().await.events();
        events.until_text("one").await;
        for word in [" two", " three", " four"] {
            model.token(word).await;
            events.until_text(word).await;
        }
        model.finish().await;
        assert!(events.all().await.done, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn held_chunks_arrive_window_by_window() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder().env("VLLM_URL", &vllm.url).start().await;
    let client = stack.post(CHAT).key(ALICE).json(&stream("Hello")).open().await;
    let mut model = vllm.request().await;
    model.stream_head().await;
    // The first window is of eight tokens, the second of sixteen.
    for _ in 0..8 {
        model.token(" x").await;
    }
    let mut events = client.response().await.events();
    events.until_text(&" x".repeat(8)).await;
    for _ in 0..16 {
        model.token(" y").await;
    }
    events.until_text(&" y".repeat(16)).await;
    model.finish().await;
    assert!(events.all().await.done);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chat_endpoint_takes_a_message_and_gives_an_answer() {
    let stack = Stack::start().await;
    let body = json!({"message": "Hello", "session_id": "s-1"});
    let response = stack.post("/chat").key(ALICE).json(&body).send().await;
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    let trace = response.trace();
    assert_eq!(response.into_json().await, json!({"answer": "You asked: Hello"}));
    let record = stack.record(&trace).await;
    assert_eq!((&record["api"], &record["session"]), (&json!("chat"), &json!("s-1")));

    let body = json!({"message": "count to 40", "session_id": "s-2"});
    let request = stack.post("/chat").key(ALICE).header("accept", "text/event-stream").json(&body);
    let response = request.send().await;
    let trace = response.trace();
    let streamed = response.events().all().await;
    assert!(streamed.done && streamed.end.is_ok());
    let pieces: String = streamed.events.iter().map(|event| event["answer"].as_str().unwrap()).collect();
    assert_eq!(pieces, count(40));
    assert!(streamed.events.len() > 1, "it streams");
    let record = stack.record(&trace).await;
    assert_eq!((&record["session"], &record["stream"]), (&json!("s-2"), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn models_and_health_are_answered_by_the_gateway_itself() {
    let stack = Stack::start().await;
    let models = stack.get("/v1/models").key(ALICE).send().await.into_json().await;
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!((&models["object"], names.as_slice()), (&json!("list"), [MODEL, OPENAI_MODEL].as_slice()));
    let one = stack.get(&format!("/v1/models/{MODEL}")).key(ALICE).send().await.into_json().await;
    assert_eq!((&one["id"], &one["object"]), (&json!(MODEL), &json!("model")));
    stack.get("/v1/models/nothing").key(ALICE).send().await.into_error(404, "model_not_found").await;
    stack.get("/v1/models").send().await.into_error(401, "invalid_api_key").await;
    let health = stack.get("/healthz").send().await;
    assert_eq!(health.status, 200, "without a key");
    assert!(stack.vllm().requests().is_empty() && stack.openai().requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_needed_and_has_to_be_known() {
    let stack = Stack::start().await;
    let request = || stack.post(CHAT).json(&ask("Hello"));
    assert_eq!(request().header("authorization", format!("bearer  {OPEN}")).send().await.status, 200);
    assert_eq!(request().header("x-api-key", OPEN).send().await.status, 200);
    assert_eq!(stack.vllm().requests().len(), 2);
    let refused = [
        request(),
        request().header("authorization", "Bearer sk-unknown"),
        request().header("authorization", "Bearer "),
        request().header("authorization", format!("Basic {OPEN}")),
        request().header("x-api-key", "sk-unknown"),
        request().header("authorization", "Bearer sk-unknown").header("x-api-key", OPEN),
        request().header("x-parapet-tenant", "acme").header("x-parapet-user", "alice"),
    ];
    for request in refused {
        let error = request.send().await.into_error(401, "invalid_api_key").await;
        assert!(!error.to_string().contains("sk-"), "{error}");
    }
    assert_eq!(stack.vllm().requests().len(), 2, "nothing of it reached the model");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_told_the_place() {
    let stack = Stack::start().await;
    let user = r#"{"role":"user","content":"x"}"#;
    let table = [
        ("{\"messages\": [".to_owned(), "invalid_json", Value::Null, "line 1 column 14"),
        (String::new(), "invalid_json", Value::Null, "line 1"),
        ("[1]".to_owned(), "invalid_request", Value::Null, "JSON object"),
        ("{}".to_owned(), "invalid_request", json!("messages"), "messages"),
        (r#"{"messages":[]}"#.to_owned(), "invalid_request", json!("messages"), "messages"),
        (format!(r#"{{"model":1,"messages":[{user}]}}"#), "invalid_request", json!("model"), "string"),
        (format!(r#"{{"messages":[{user}],"stream":"yes"}}"#), "invalid_request", json!("stream"), "true or false"),
        (format!(r#"{{"messages":[{user}],"messages":[{user}]}}"#), "invalid_request", Value::Null, "twice"),
        (
            format!(r#"{{"messages":[{user},{{"role":"robot"}}]}}"#),
            "invalid_request",
            json!("messages[1].role"),
            "user",
        ),
        (
            r#"{"messages":[{"role":"user","content":5}]}"#.to_owned(),
            "invalid_request",
            json!("messages[0].content"),
            "",
        ),
        (format!(r#"{{"messages":[{user}],"n":129}}"#), "invalid_request", json!("n"), "128"),
    ];
    for (body, code, param, message) in table {
        let request = stack.post(CHAT).key(ALICE).header("content-type", "application/json");
        let request = if body.is_empty() { request.header("content-length", "0") } else { request.body(body.clone()) };
        let error = request.send().await.into_error(400, code).await;
        assert_eq!(error["param"], param, "{body}: {error}");
        assert!(error["message"].as_str().unwrap().contains(message), "{body}: {error}");
    }
    let error = stack.post("/chat").key(ALICE).json(&json!({"massage": "x"})).send().await;
    let error = error.into_error(400, "invalid_request").await;
    assert!(error["message"].as_str().unwrap().contains("message"), "{error}");
    assert!(stack.vllm().requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_404_and_a_wrong_method_405() {
    let stack = Stack::start().await;
    for path in ["/", "/v1/completions", "/v1/chat/completions/", "/internal/cache/x", "/metrics", "/runs"] {
        stack.get(path).key(ALICE).send().await.into_error(404, "not_found").await;
    }
    stack.get(CHAT).key(ALICE).send().await.into_error(405, "method_not_allowed").await;
    stack.get("/chat").key(ALICE).send().await.into_error(405, "method_not_allowed").await;
    let delete = support::Request::new(stack.address, "DELETE", "/v1/models").key(ALICE);
    delete.send().await.into_error(405, "method_not_allowed").await;
    let unknown = stack.alice(&with(ask("x"), json!({"model": "gpt-17"}))).await;
    let error = unknown.into_error(404, "model_not_found").await;
    assert_eq!(error["param"], "model");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_without_the_model_is_403_and_does_not_list_it() {
    let only = format!("open: {{models: [{OPENAI_MODEL}]}}");
    let stack = Stack::builder().edit("open: {}", &only).start().await;
    let error = stack.chat(OPEN, &ask("x")).await.into_error(403, "model_not_allowed").await;
    assert_eq!(error["param"], "model");
    let models = stack.get("/v1/models").key(OPEN).send().await.into_json().await;
    assert_eq!(models["data"].as_array().unwrap().len(), 1);
    let allowed = stack.chat(OPEN, &with(ask("x"), json!({"model": OPENAI_MODEL}))).await;
    assert_eq!((allowed.status, allowed.header("x-parapet-provider")), (200, Some("openai")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_beyond_the_limit_is_413_by_its_length_and_by_its_bytes() {
    let stack = Stack::start().await;
    let limit = 4 * 1024 * 1024;
    // By its length: nothing of the body is needed.
    let declared = stack.post(CHAT).key(ALICE).header("content-length", (limit + 1).to_string()).send().await;
    declared.into_error(413, "request_too_large").await;
    // By its bytes, whose number nobody said.
    let mut chunked = stack.post(CHAT).key(ALICE).header("transfer-encoding", "chunked").open().await;
    let piece = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
    let mut sent = 0;
    while sent <= limit && chunked.write(&piece).await {
        sent += 0x10000;
    }
    chunked.response().await.into_error(413, "request_too_large").await;
    // One that fits passes.
    let large = with(ask("say: fits"), json!({"user": "x".repeat(limit - 400)}));
    assert!(large.to_string().len() <= limit);
    assert_eq!(stack.chat(OPEN, &large).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_chunk_comes_only_when_it_was_asked_for() {
    let stack = Stack::start().await;
    for key in [ALICE, BOB, OPEN] {
        let asked = with(stream("count to 12"), json!({"stream_options": {"include_usage": true}, "seed": 1}));
        let streamed = stack.chat(key, &asked).await.events().all().await;
        assert_eq!(streamed.whole(), count(12), "{key}");
        let last = streamed.events.last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(12)), "{key}: {last}");

        let response = stack.chat(key, &with(stream("count to 12"), json!({"seed": 2}))).await;
        let trace = response.trace();
        let streamed = response.events().all().await;
        assert!(streamed.events.iter().all(|event| event.get("usage").is_none_or(Value::is_null)), "{key}");
        assert!(streamed.events.iter().all(|event| event["choices"] != json!([])), "{key}");
        // Parapet asks for itself: what is settled and charged is not an estimate.
        let usage = stack.record(&trace).await["usage"].clone();
        assert_eq!((&usage["completion"], usage.get("estimated")), (&json!(12), None), "{key}: {usage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_carry_the_name_that_was_asked_for() {
    let stack = Stack::start().await;
    for failing in [false, true] {
        fault(stack.vllm(), Faults { status: failing.then_some(503), ..Faults::default() });
        let ask = with(ask("Hello"), json!({"model": ALIAS}));
        let response = stack.chat(OPEN, &ask).await;
        let provider = if failing { "openai" } else { "vllm" };
        assert_eq!(response.header("x-parapet-provider"), Some(provider));
        assert_eq!(response.into_json().await["model"], ALIAS);
        let streamed = stack.chat(OPEN, &with(ask, json!({"stream": true}))).await.events().all().await;
        assert!(streamed.events.iter().all(|event| event["model"] == ALIAS), "{:?}", streamed.events);
    }
    let seen = |requests: Vec<parapet::sim::SeenRequest>| -> BTreeSet<String> {
        requests.iter().map(|request| request.json()["model"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(seen(stack.vllm().requests()), BTreeSet::from([MODEL.to_owned()]));
    assert_eq!(seen(stack.openai().requests()), BTreeSet::from([OPENAI_MODEL.to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_clients_head_reaches_a_provider() {
    let stack = Stack::start().await;
    let forged = [
        ("x-parapet-cluster", "only_openai"),
        ("x-parapet-tenant", "globex"),
        ("x-parapet-user", "bob"),
        ("x-parapet-provider", "openai"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-envoy-upstream-rq-per-try-timeout-ms", "1"),
        ("x-envoy-max-retries", "0"),
        ("x-envoy-retry-on", "4xx"),
        ("x-envoy-upstream-alt-stat-name", "forged"),
        ("x-envoy-original-path", "/forged"),
        ("x-forwarded-for", "10.1.2.3"),
        ("x-forwarded-host", "forged"),
        ("cookie", "session=secret"),
        ("x-api-key", "sk-other-secret"),
        ("openai-organization", "org-client"),
        ("x-user-id", "u-1"),
        ("x-session-id", "s-1"),
        ("x-feature", "search"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("accept-encoding", "gzip"),
        ("te", "trailers"),
        ("referer", "http://forged"),
    ];
    let body = with(ask("Hello"), json!({"user": "u"}));
    for failing in [false, true] {
        fault(stack.vllm(), Faults { status: failing.then_some(500), first_token_ms: Some(20), ..Faults::default() });
        let request = forged
            .iter()
            .fold(stack.post(CHAT).key(OPEN).json(&body), |request, (name, value)| request.header(name, value));
        let response = request.send().await;
        let provider = if failing { "openai" } else { "vllm" };
        assert_eq!((response.status, response.header("x-parapet-provider")), (200, Some(provider)));
        let record = stack.record(&response.trace()).await;
        assert_eq!((&record["tenant"], &record["user"]), (&json!("lab"), &json!("open")));
        assert_eq!((&record["end_user"], &record["session"]), (&json!("u-1"), &json!("s-1")));
        assert_eq!(record["feature"], "search");
    }
    let own = ["host", "content-type", "content-length", "accept", "user-agent", "authorization", "x-request-id"];
    for (simulator, key) in [(stack.vllm(), VLLM_KEY), (stack.openai(), OPENAI_KEY)] {
        for seen in simulator.requests() {
            let names: Vec<&str> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
            assert!(names.iter().all(|name| own.contains(name)), "{:?}", seen.headers);
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "twice: {names:?}");
            assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {key}")));
            assert_eq!(seen.header("host"), Some(&*simulator.address().to_string()));
            assert_eq!(seen.path, "/v1/chat/completions");
            assert_eq!(seen.header("content-length"), Some(&*seen.body.len().to_string()));
            for secret in ["secret", OPEN, "10.1.2.3", "forged"] {
                assert!(!format!("{seen:?}").contains(secret), "{secret}: {seen:?}");
            }
        }
    }
    assert_eq!((stack.vllm().requests().len(), stack.openai().requests().len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_reach_the_provider_as_the_client_wrote_them() {
    let stack = Stack::start().await;
    let tool = json!({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}});
    let more = json!({
        "temperature": 0.30000000000000004, "top_p": 0.9, "seed": 12345678901234567_u64, "tools": [tool],
        "logit_bias": {"50256": -100}, "unheard_of": {"deep": [1, null, "é\u{1F600}"]}, "max_tokens": 50,
    });
    let ask = with(ask("call the tool look"), more.clone());
    let response = stack.chat(OPEN, &ask).await;
    let body = response.into_json().await;
    assert_eq!(body["choices"][0]["finish_reason"], "tool_calls", "{body}");
    assert_eq!(body["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "look");
    let seen = stack.vllm().requests()[0].json();
    for (key, value) in more.as_object().unwrap() {
        assert_eq!(&seen[key], value, "{key}");
    }
    assert_eq!(seen["messages"], ask["messages"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_headers_are_given_where_a_limit_is_set() {
    let stack = Stack::start().await;
    let response = stack.chat(TINY, &ask("Hello")).await;
    assert_eq!(response.header("x-ratelimit-limit-requests"), Some("5"));
    assert_eq!(response.header("x-ratelimit-remaining-requests"), Some("4"));
    assert_eq!(response.header("x-ratelimit-limit-tokens"), Some("1000"));
    assert!(response.header("x-ratelimit-reset-requests").unwrap().ends_with('s'));
    assert!(response.header("x-ratelimit-reset-tokens").unwrap().ends_with('s'));
    let open = stack.chat(OPEN, &ask("Hello")).await;
    assert!(!open.headers.iter().any(|(name, _)| name.starts_with("x-ratelimit-")), "{:?}", open.headers);
}
