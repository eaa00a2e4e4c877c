//! Who is not even asked: servers that say that they are ill, and servers that fail again and again.

use parapet::sim::{ChatOptions, KeyOptions, openai, vllm};
use serde_json::json;

use crate::support::{Builder, Faults, MODEL, OPEN, Stack, VLLM_KEY, ask, eventually, fault, free_port, stream};

/// Checks so often that a test can wait for them.
fn checked_often() -> Builder {
    Stack::builder().edit("interval: 5s", "interval: 0.1s")
}

async fn healthy(stack: &Stack, count: u64) {
    eventually(&format!("{count} healthy replicas"), async || {
        let healthy = stack.stats("cluster.vllm.membership_healthy").await;
        (healthy == [("cluster.vllm.membership_healthy".to_owned(), count)]).then_some(())
    })
    .await;
}

/// The provider and the attempts of one request.
async fn answered(stack: &Stack) -> (String, String) {
    let response = stack.chat(OPEN, &ask("count to 5")).await;
    assert_eq!(response.status, 200);
    let header = |name| response.header(name).unwrap().to_owned();
    (header("x-parapet-provider"), header("x-parapet-attempts"))
}

fn by(provider: &str, attempts: &str) -> (String, String) {
    (provider.to_owned(), attempts.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vllm_whose_engine_is_dead_is_not_asked_until_it_lives() {
    let stack = checked_often().start().await;
    for faults in [json!({"status": 503}), json!({"status": 500}), json!({"hang": true})] {
        let mut faults: Faults = serde_json::from_value(faults).unwrap();
        faults.path = Some("/health".to_owned());
        fault(stack.vllm(), faults);
        healthy(&stack, 0).await;
        stack.vllm().clear_requests();
        assert_eq!(answered(&stack).await, by("openai", "1"));
        assert!(stack.vllm_requests().is_empty());
        fault(stack.vllm(), Faults::default());
        healthy(&stack, 1).await;
        assert_eq!(answered(&stack).await, by("vllm", "1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vllm_that_is_gone_is_not_asked_and_is_found_again() {
    let mut stack = checked_often().start().await;
    let port = stack.stop_replica(0).await;
    healthy(&stack, 0).await;
    assert_eq!(answered(&stack).await, by("openai", "1"));
    // Nothing failed, and still it is a fallback.
    let response = stack.chat(OPEN, &ask("count to 6")).await;
    let record = stack.record(response.header("x-parapet-trace-id").unwrap()).await;
    assert_eq!((&record["spilled"], record["attempts"].as_array().map(Vec::len)), (&json!(true), Some(1)), "{record}");
    stack.start_replica(0, port).await;
    healthy(&stack, 1).await;
    assert_eq!(answered(&stack).await, by("vllm", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vllm_that_comes_after_the_gateway_is_taken_in() {
    let port = free_port();
    let stack = checked_often().env("VLLM_URL", &format!("http://127.0.0.1:{port}")).start().await;
    assert_eq!(answered(&stack).await, by("openai", "1"));
    let key = KeyOptions { api_key: Some(VLLM_KEY.into()), api_key_env: None };
    let late = vllm::start(ChatOptions { port, key, ..ChatOptions::default() }).await.unwrap();
    healthy(&stack, 1).await;
    assert_eq!(answered(&stack).await, by("vllm", "1"));
    drop(late);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nobody_knows_is_no_vllm() {
    for health in ["/health", "off"] {
        let builder = Stack::builder().env("VLLM_URL", "http://vllm.invalid:8000").env("VLLM_HEALTH_PATH", health);
        let stack = builder.start().await;
        assert_eq!(answered(&stack).await, by("openai", "1"), "{health}");
        let response = stack.chat(OPEN, &stream("count to 5")).await;
        assert_eq!((response.status, response.header("x-parapet-provider")), (200, Some("openai")), "{health}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_knows_no_health_serves() {
    let key = KeyOptions { api_key: Some(VLLM_KEY.into()), api_key_env: None };
    let other =
        openai::start(ChatOptions { key, model: Some(MODEL.to_owned()), ..ChatOptions::default() }).await.unwrap();
    let stack = checked_often().env("VLLM_URL", &other.url()).start().await;
    eventually("several checks, each answered 404", async || (other.health_checks() > 3).then_some(())).await;
    assert_eq!(answered(&stack).await, by("vllm", "1"));
    assert_eq!(other.requests().len(), 1, "checks are no requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_says_where_vllm_is_checked() {
    let stack = checked_often().env("VLLM_HEALTH_PATH", "off").start().await;
    eventually("the guard's checks", async || (stack.guard().health_checks() > 3).then_some(())).await;
    assert_eq!(stack.vllm().health_checks(), 0);
    assert_eq!(answered(&stack).await, by("vllm", "1"));

    let stack = checked_often().env("VLLM_HEALTH_PATH", "/v1/models").start().await;
    let check = eventually("a check there", async || {
        stack.vllm_requests().into_iter().find(|request| request.path == "/v1/models")
    })
    .await;
    assert_eq!(check.header("host"), Some(&*stack.vllm().address().to_string()));
    assert_eq!(check.header("authorization"), None);
    assert_eq!(stack.vllm().health_checks(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vllm_that_fails_in_a_row_is_left_out_and_gets_another_chance() {
    let builder = checked_often().ejecting().impatient();
    let stack = builder.edit("base_ejection_time: 10s", "base_ejection_time: 2s").start().await;
    let ejected = "cluster.vllm.outlier_detection.ejections_active";
    let tries = [
        // (fault, streams)
        (json!({"status": 500}), false),
        // Envoy itself does not count 429.
        (json!({"status": 429}), false),
        // The first token that did not come in time; in JSON the attempt goes on beside the next.
        (json!({"hang_after_headers": true}), true),
        (json!({"hang": true}), false),
        // 200s that are none.
        (json!({"error_event_first": true}), true),
    ];
    for (faults, streams) in tries {
        fault(stack.vllm(), serde_json::from_value(faults.clone()).unwrap());
        for attempt in 1..=5 {
            let body = if streams { stream("count to 5") } else { ask("count to 5") };
            let response = stack.chat(OPEN, &body).await;
            assert_eq!(response.header("x-parapet-attempts"), Some("2"), "{faults} {attempt}");
            if streams {
                response.events().all().await.whole();
            } else {
                response.into_json().await;
            }
        }
        eventually("the ejection", async || (stack.stats(ejected).await == [(ejected.to_owned(), 1)]).then_some(()))
            .await;
        stack.vllm().clear_requests();
        let checks = stack.vllm().health_checks();
        assert_eq!(answered(&stack).await, by("openai", "1"), "{faults}");
        eventually("checks that pass", async || (stack.vllm().health_checks() > checks + 3).then_some(())).await;
        assert_eq!(answered(&stack).await, by("openai", "1"), "{faults}: /health says nothing of answers");
        assert!(stack.vllm_requests().is_empty(), "{faults}");
        fault(stack.vllm(), Faults::default());
        eventually("vLLM again", async || (answered(&stack).await == by("vllm", "1")).then_some(())).await;
        // Successes in a row make it forget.
        for _ in 0..3 {
            assert_eq!(answered(&stack).await, by("vllm", "1"), "{faults}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_s_own_mistakes_eject_nobody() {
    let stack = Stack::builder().ejecting().start().await;
    fault(stack.vllm(), Faults { status: Some(400), ..Faults::default() });
    for _ in 0..10 {
        assert_eq!(stack.chat(OPEN, &ask("x")).await.status, 400);
    }
    fault(stack.vllm(), Faults::default());
    assert_eq!(answered(&stack).await, by("vllm", "1"));
}
