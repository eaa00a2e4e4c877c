//! How providers are spoken to: TLS that is verified, HTTP/2 with it and without.
//!
//! `scripts/test e2e` sets what this needs: `ENVOY_BIN`, `PARAPET_WASM`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use parapet::sim::{ChatOptions, KeyOptions, Simulator, openai, vllm};
use serde_json::{Value, json};
use support::tls::{Authority, Front};
use support::{
    Builder, Faults, OPEN, OPENAI_KEY, Stack, VLLM_KEY, ask, count, eventually, fault, left_by_gateway, stream, with,
};

fn options(key: &str) -> ChatOptions {
    let key = KeyOptions { api_key: Some(key.into()), api_key_env: None };
    ChatOptions { key, first_token_ms: 5, token_ms: 0, ..ChatOptions::default() }
}

/// The options of all members but the sidecar.
const HTTP1: &str =
    "explicit_http_config: {http_protocol_options: {}}\n      load_assignment:\n        cluster_name: vllm\n";

fn speaking(options: &str) -> Builder {
    Stack::builder()
        .impatient()
        .edit(HTTP1, &HTTP1.replace("explicit_http_config: {http_protocol_options: {}}", options))
}

/// The provider and the text of a good answer.
async fn answered(stack: &Stack, streams: bool) -> (String, String) {
    let response = stack.chat(OPEN, &with(ask("count to 5"), json!({"stream": streams}))).await;
    assert_eq!(response.status, 200);
    let provider = response.header("x-parapet-provider").unwrap().to_owned();
    let text = if streams {
        response.events().all().await.whole()
    } else {
        response.into_json().await["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    (provider, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_is_believed_when_its_certificate_is() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "trusted");
    let server = openai::start(options(OPENAI_KEY)).await.unwrap();
    // A name and an address.
    for host in ["localhost", "127.0.0.1"] {
        let front = Front::start(server.address(), authority.certificate(&[host], false), &["http/1.1"]).await;
        let url = format!("https://{host}:{}/v1", front.address.port());
        let mut stack = trusting(&authority).env("OPENAI_BASE_URL", &url).start().await;
        stack.stop_vllm().await;
        server.clear_requests();
        for streams in [false, true] {
            assert_eq!(answered(&stack, streams).await, ("openai".to_owned(), count(5)), "{host}");
        }
        let seen = server.requests();
        assert_eq!(seen[0].header("host"), Some(&*format!("{host}:{}", front.address.port())));
        assert_eq!(seen[0].header("authorization"), Some(&*format!("Bearer {OPENAI_KEY}")));
        // An address is no server name (RFC 6066, section 3).
        let name = (host == "localhost").then(|| host.to_owned());
        assert!(front.handshakes().iter().all(|handshake| handshake.server_name == name), "{:?}", front.handshakes());
    }
}

fn trusting(authority: &Authority) -> Builder {
    Stack::builder().impatient().env("PARAPET_CA_FILE", authority.file.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_proves_nothing_is_no_provider() {
    let directory = tempfile::tempdir().unwrap();
    let trusted = Authority::new(directory.path(), "trusted");
    let stranger = Authority::new(directory.path(), "stranger");
    let server = openai::start(options(OPENAI_KEY)).await.unwrap();
    for (what, identity) in [
        ("another authority", stranger.certificate(&["localhost"], false)),
        ("another name", trusted.certificate(&["openai.example"], false)),
        ("expired", trusted.certificate(&["localhost"], true)),
    ] {
        let front = Front::start(server.address(), identity, &["http/1.1"]).await;
        let url = format!("https://localhost:{}/v1", front.address.port());
        let stack = trusting(&trusted).env("OPENAI_BASE_URL", &url).start().await;
        // vLLM is not hurt by it.
        assert_eq!(answered(&stack, false).await.0, "vllm", "{what}");
        fault(stack.vllm(), Faults { status: Some(503), ..Faults::default() });
        for streams in [false, true] {
            let response = stack.chat(OPEN, &with(ask("x"), json!({"stream": streams}))).await;
            let trace = response.trace();
            let error = response.into_error_at(502, "upstream_error", what.to_owned()).await;
            assert!(!error.to_string().to_ascii_lowercase().contains("tls"), "{what}: {error}");
            let line = stack.line(&trace).await;
            let attempts = line["record"]["attempts"].as_array().unwrap();
            let told: Vec<(&str, &str)> =
                attempts.iter().map(|it| (it["provider"].as_str().unwrap(), it["outcome"].as_str().unwrap())).collect();
            assert_eq!(told, [("vllm", "status"), ("openai", "reset")], "{what}: {line}");
            let reason = line["transport"].as_str().unwrap();
            assert!(reason.starts_with("TLS_error") && reason.contains("CERTIFICATE_VERIFY_FAILED"), "{what}: {line}");
        }
    }
    assert!(server.requests().is_empty(), "a request came through: {:?}", server.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vllm_behind_a_bad_certificate_fails_over_and_nobody_falls_back_to_plain_text() {
    let directory = tempfile::tempdir().unwrap();
    let (trusted, stranger) =
        (Authority::new(directory.path(), "trusted"), Authority::new(directory.path(), "stranger"));
    let server = vllm::start(options(VLLM_KEY)).await.unwrap();
    let front = Front::start(server.address(), stranger.certificate(&["localhost"], false), &["http/1.1"]).await;
    // The second server speaks no TLS at all.
    for port in [front.address.port(), server.address().port()] {
        for health in ["/health", "off"] {
            let url = format!("https://localhost:{port}");
            let stack = trusting(&trusted).env("VLLM_URL", &url).env("VLLM_HEALTH_PATH", health).start().await;
            for streams in [false, true] {
                assert_eq!(answered(&stack, streams).await, ("openai".to_owned(), count(5)), "{health}");
            }
        }
    }
    assert!(server.requests().is_empty() && server.health_checks() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_behind_tls_are_checked_and_asked() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "trusted");
    let server = vllm::start(options(VLLM_KEY)).await.unwrap();
    let mut fronts = Vec::new();
    for host in ["localhost", "127.0.0.1"] {
        let identity = authority.certificate(&[host], false);
        fronts.push((host, Front::start(server.address(), identity, &["http/1.1"]).await));
    }
    let urls: Vec<String> =
        fronts.iter().map(|(host, front)| format!("https://{host}:{}", front.address.port())).collect();
    let stack =
        trusting(&authority).edit("interval: 5s", "interval: 0.1s").env("VLLM_URL", &urls.join(",")).start().await;
    eventually("both are healthy", async || {
        let healthy = stack.stats("cluster.vllm.membership_healthy").await;
        (healthy.first().map(|(_, count)| *count) == Some(2)).then_some(())
    })
    .await;
    assert!(server.health_checks() >= 2);
    for _ in 0..10 {
        assert_eq!(answered(&stack, true).await, ("vllm".to_owned(), count(5)));
    }
}

/// What HTTP/2 adds to the ways to fail: one connection carries all of it, and a stream may be reset alone.
async fn http2_fails_over(stack: &Stack, provider: &Simulator) {
    for streams in [false, true] {
        assert_eq!(answered(stack, streams).await, ("vllm".to_owned(), count(5)));
    }
    let seen = provider.requests();
    assert!(seen.iter().all(|request| request.version == "HTTP/2.0"), "{seen:?}");
    let faults = [
        json!({"status": 500}),
        json!({"status": 429}),
        json!({"hang": true}),
        json!({"hang_after_headers": true}),
        json!({"keepalive_only": true}),
        json!({"error_event_first": true}),
        json!({"empty": true}),
        json!({"cut_after": 0}),
    ];
    for faults in faults {
        for streams in [false, true] {
            fault(provider, serde_json::from_value(faults.clone()).unwrap());
            provider.clear_requests();
            assert_eq!(answered(stack, streams).await, ("openai".to_owned(), count(5)), "{faults} {streams}");
            let hangs = ["hang", "hang_after_headers", "keepalive_only"].iter().any(|it| faults.get(it).is_some());
            if hangs {
                left_by_gateway(provider).await;
            }
        }
    }
    // Reset in the middle: unclean for the client too.
    fault(provider, Faults { cut_after: Some(20), token_ms: Some(2), ..Faults::default() });
    let response = stack.chat(OPEN, &stream("count to 100")).await;
    let trace = response.trace();
    let streamed = response.events().all().await;
    assert!(!streamed.done && (streamed.end.is_err() || streamed.error().is_some()), "{streamed:?}");
    let record: Value = stack.record(&trace).await;
    assert_eq!((&record["truncated"], record["attempts"].as_array().unwrap().len()), (&json!(true), 1), "{record}");
    // A client that leaves takes its stream with it, and no other.
    fault(provider, Faults { token_ms: Some(10), ..Faults::default() });
    provider.clear_requests();
    let (staying, leaving) =
        (stack.chat(OPEN, &stream("count to 60")).await, stack.chat(OPEN, &stream("count to 5000")).await);
    for response in [&staying, &leaving] {
        assert_eq!(response.header("x-parapet-provider"), Some("vllm"), "it did not answer in time");
    }
    let mut events = leaving.events();
    events.next().await.unwrap();
    drop(events);
    left_by_gateway(provider).await;
    assert_eq!(staying.events().all().await.whole(), count(60));
    fault(provider, Faults::default());
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_without_tls_fails_over_as_http1_does() {
    let stack = speaking("explicit_http_config: {http2_protocol_options: {}}").start().await;
    http2_fails_over(&stack, stack.vllm()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_over_tls_is_agreed_on_and_fails_over() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "trusted");
    let server = vllm::start(options(VLLM_KEY)).await.unwrap();
    for (protocol, offered, agreed) in [
        ("explicit_http_config: {http2_protocol_options: {}}", &["h2"] as &[&str], "h2"),
        ("auto_config: {http_protocol_options: {}, http2_protocol_options: {}}", &["h2", "http/1.1"], "h2"),
        ("auto_config: {http_protocol_options: {}, http2_protocol_options: {}}", &["http/1.1"], "http/1.1"),
    ] {
        let front = Front::start(server.address(), authority.certificate(&["localhost"], false), offered).await;
        let url = format!("https://localhost:{}", front.address.port());
        // The cluster's options are llamaguard's and openai's too, which speak plain HTTP here.
        let own = HTTP1.replace("explicit_http_config: {http_protocol_options: {}}", protocol);
        let others = "typed_extension_protocol_options: *http1";
        let plain = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http_protocol_options: {}}}}";
        let builder = trusting(&authority).edit(HTTP1, &own).edit(others, plain);
        let stack = builder.env("VLLM_URL", &url).env("VLLM_HEALTH_PATH", "off").start().await;
        server.clear_requests();
        if agreed == "h2" {
            http2_fails_over(&stack, &server).await;
        } else {
            assert_eq!(answered(&stack, true).await, ("vllm".to_owned(), count(5)));
            assert_eq!(server.requests()[0].version, "HTTP/1.1");
        }
        assert!(front.handshakes().iter().all(|it| it.alpn.as_deref() == Some(agreed)), "{:?}", front.handshakes());
    }
}
