//! What clients do by mistake or malice: the gateway refuses it or lives with it, and serves the next as ever.

mod support;

use futures_util::future::join_all;
use serde_json::{Value, json};
use support::scripted::Scripted;
use support::{
    ALICE, BOB, CHAT, Faults, OPEN, Request, Stack, ask, count, eventually, fault, left_by_gateway, stream, with,
};

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_leaves_the_vms_alive() {
    let stack = Stack::start().await;
    let request = || stack.post(CHAT).key(ALICE).header("content-type", "application/json");
    // Truncated at every place, and beside the point.
    let whole = with(ask("é\u{1F600}\\\" Hello"), json!({"stream": true, "n": 1})).to_string().into_bytes();
    for end in 0..whole.len() {
        let request = request().header("content-length", end.to_string()).body(&whole[..end]);
        request.send().await.into_error(400, "invalid_json").await;
    }
    let deep = [b"[".repeat(200_000), b"]".repeat(200_000)].concat();
    let messages = format!(r#"{{"messages":{}}}"#, String::from_utf8(deep.clone()).unwrap());
    let bodies: [&[u8]; 9] = [
        b"\x00\x01\x02\xff\xfe",
        b"\xff",
        b"null",
        b"\"text\"",
        b"{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}",
        b"{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}",
        b"{\"messages\":1e999999}",
        &deep,
        messages.as_bytes(),
    ];
    for body in bodies {
        let mut response = request().body(body).send().await;
        assert_eq!(response.status, 400, "{:?}", String::from_utf8_lossy(&body[..body.len().min(60)]));
        assert!(response.text().await.starts_with("{\"error\":"));
    }
    assert!(stack.vllm().requests().is_empty());
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_are_refused_however_they_come() {
    let stack = Stack::start().await;
    let large = with(ask(&"x".repeat(10_000_000)), json!({})).to_string();
    for key in [ALICE, OPEN] {
        let refused = stack.post(CHAT).key(key).body(large.clone()).send().await;
        refused.into_error(413, "request_too_large").await;
        let mut chunked = stack.post(CHAT).key(key).header("transfer-encoding", "chunked").open().await;
        for piece in large.as_bytes().chunks(64 * 1024) {
            let head = format!("{:x}\r\n", piece.len());
            if !chunked.write(&[head.as_bytes(), piece, b"\r\n"].concat()).await {
                break;
            }
        }
        chunked.response().await.into_error(413, "request_too_large").await;
    }
    // Without a key nothing is read at all.
    stack.post(CHAT).body(large).send().await.into_error(401, "invalid_api_key").await;
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_may_hold_any_bytes() {
    let stack = Stack::start().await;
    let odd: &[u8] = b"\xff\xfe\x80 caf\xe9";
    for name in [
        "x-session-id",
        "x-user-id",
        "x-feature",
        "x-request-id",
        "traceparent",
        "langsmith-trace",
        "accept",
        "cache-control",
        "cookie",
        "x-odd",
    ] {
        let response = stack.post(CHAT).key(OPEN).header(name, odd).json(&ask("Hello")).send().await;
        assert_eq!(response.status, 200, "{name}");
        let record = stack.record(&response.trace()).await;
        assert_eq!(record["status"], 200, "{name}: a line that cannot be read");
    }
    let keys: [(&str, &[u8]); 4] = [
        ("authorization", b"Bearer \xff\xfe"),
        ("authorization", b"\xff"),
        ("x-api-key", odd),
        ("authorization", b"Bearer\t"),
    ];
    for (name, value) in keys {
        let response = stack.post(CHAT).header(name, value).json(&ask("Hello")).send().await;
        response.into_error(401, "invalid_api_key").await;
    }
    let long = "x".repeat(8000);
    let response = stack.post(CHAT).key(OPEN).header("x-session-id", &long).json(&ask("Hello")).send().await;
    let record = stack.record(&response.trace()).await;
    assert_eq!(record["session"].as_str().map(str::len), Some(256));
    // A name that looks like a record's end stays a value in the log.
    let response = stack.post(CHAT).key(OPEN).header("x-feature", "\"},\"v\":9,{").json(&ask("Hello")).send().await;
    assert_eq!(stack.record(&response.trace()).await["feature"], "\"},\"v\":9,{");
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_takes_the_model_along() {
    let stack = Stack::start().await;
    fault(stack.vllm(), Faults { token_ms: Some(10), ..Faults::default() });
    for key in [OPEN, BOB, ALICE] {
        stack.vllm().clear_requests();
        let response = stack.chat(key, &stream("count to 4000")).await;
        let trace = response.trace();
        let mut events = response.events();
        assert!(events.next().await.unwrap().is_some());
        drop(events);
        left_by_gateway(stack.vllm()).await;
        let record = stack.record(&trace).await;
        assert_eq!(record["client_aborted"], true, "{key}: {record}");
        assert_eq!(record["usage"]["estimated"], true, "{key}: {}", record["usage"]);
    }
    // Before there is any answer: as JSON, which comes whole or not at all.
    stack.vllm().clear_requests();
    let client = stack.post(CHAT).key(ALICE).json(&ask("count to 4000")).open().await;
    eventually("the model is asked", async || stack.vllm().requests().pop()).await;
    drop(client);
    left_by_gateway(stack.vllm()).await;
    fault(stack.vllm(), Faults::default());
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_its_body_is_whole_leaves_nothing() {
    let stack = Stack::start().await;
    for _ in 0..20 {
        let mut client = stack.post(CHAT).key(ALICE).header("content-length", "1000").open().await;
        assert!(client.write(b"{\"messages\": [").await);
        drop(client);
    }
    eventually("their streams are over", async || {
        let active = stack.stats("http.parapet.downstream_rq_active").await;
        (active.iter().all(|(_, count)| *count == 0) && !active.is_empty()).then_some(())
    })
    .await;
    assert!(stack.vllm().requests().is_empty());
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_a_byte_at_a_time_holds_up_nobody() {
    let stack = Stack::start().await;
    let body = ask("Hello").to_string().into_bytes();
    let length = body.len().to_string();
    let mut slow = Vec::new();
    for _ in 0..10 {
        slow.push(stack.post(CHAT).key(ALICE).header("content-length", &length).open().await);
    }
    for byte in &body {
        for client in &mut slow {
            assert!(client.write(&[*byte]).await);
        }
    }
    // Others are served meanwhile, and so are they in the end.
    let mut unfinished = stack.post(CHAT).key(ALICE).header("content-length", "100").open().await;
    assert!(unfinished.write(b"{").await);
    assert_eq!(stack.chat(OPEN, &ask("Hello")).await.status, 200);
    for client in slow {
        assert_eq!(client.response().await.status, 200);
    }
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_streams_at_once_come_whole() {
    let stack = Stack::builder().env("PARAPET_CONCURRENCY", "2").start().await;
    fault(stack.vllm(), Faults { token_ms: Some(5), ..Faults::default() });
    fault(stack.guard(), Faults { latency_ms: Some(10), ..Faults::default() });
    let streams = (0..200_usize).map(|number| {
        let stack = &stack;
        async move {
            let key = [ALICE, BOB, OPEN][number % 3];
            let length = 60 + u32::try_from(number % 50).unwrap();
            let body = with(stream(&format!("count to {length}")), json!({"seed": number}));
            let streamed = stack.chat(key, &body).await.events().all().await;
            assert_eq!(streamed.whole(), count(length), "{number}");
        }
    });
    join_all(streams).await;
    stack.assert_well().await;
}

/// Every way to cut the provider's bytes gives the client the same stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_may_cut_its_bytes_anywhere() {
    let vllm = Scripted::start().await;
    let stack = Stack::builder().env("VLLM_URL", &vllm.url).start().await;
    let mut bytes = Vec::new();
    let words = ["Zwölf", " Boxkämpfer", " \u{1F600}", " \"jagen\"", "\n", " Viktor"];
    for (number, word) in words.iter().enumerate() {
        let delta = support::scripted::delta(json!({"content": word}), Value::Null);
        match number % 3 {
            0 => bytes.extend(format!("data: {delta}\n\n").into_bytes()),
            1 => bytes.extend(format!("data:{delta}\r\n\r\n").into_bytes()),
            _ => bytes.extend(format!(": comment\n\ndata: {delta}\n\n").into_bytes()),
        }
    }
    let finish = support::scripted::delta(json!({}), json!("stop"));
    bytes.extend(format!("data: {finish}\n\ndata: [DONE]\n\n").into_bytes());
    for (key, size) in [OPEN, ALICE, BOB].into_iter().flat_map(|key| [1, 2, 3, 5, 17, 64, 4096].map(|size| (key, size)))
    {
        let body = with(stream("Hello"), json!({"seed": size}));
        let client = stack.post(CHAT).key(key).json(&body).open().await;
        let mut model = vllm.request().await;
        model.stream_head().await;
        for piece in bytes.chunks(size) {
            model.chunk(piece).await;
        }
        model.end().await;
        let mut response = client.response().await;
        let text = response.text().await;
        // The gateway passes lines on as they came, so they are read here as a standard client reads them.
        let data = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start);
        let (mut said, mut done) = (String::new(), false);
        for data in data {
            assert!(!done, "{key} {size}: after [DONE]");
            if data == "[DONE]" {
                done = true;
                continue;
            }
            let event: Value =
                serde_json::from_str(data).unwrap_or_else(|error| panic!("{key} {size}: {error}: {data}"));
            said.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        }
        assert!(done, "{key} {size}: {text}");
        assert_eq!(said, words.concat(), "{key} {size}");
    }
    stack.assert_lives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_are_answered_as_http_says() {
    let stack = Stack::start().await;
    // A path that is another's after it was made normal, a query, an absolute form's host.
    assert_eq!(stack.get("/v1/../healthz?x=1").send().await.status, 200);
    assert_eq!(stack.post("/v1/chat/completions?api-version=1").key(OPEN).json(&ask("x")).send().await.status, 200);
    let options = Request::new(stack.address, "OPTIONS", CHAT).send().await;
    options.into_error(405, "method_not_allowed").await;
    let head = Request::new(stack.address, "HEAD", "/healthz").send().await;
    assert!(head.status == 200 || head.status == 405, "{}", head.status);
    // A head without an end is closed; what is no HTTP at all gets 400 or nothing.
    let mut broken = Request::new(stack.address, "GET", "/ HTTP/9.9 x\r\n\r\nGARBAGE").open().await;
    let _ = broken.write(b"\x00\x00\x00").await;
    drop(broken);
    stack.assert_well().await;
}
