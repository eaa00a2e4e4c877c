//! Bodies as large as they may be are tried again whole; larger ones are refused.

use serde_json::{Value, json};

use crate::support::{CHAT, Faults, MODEL, OPEN, Stack, count, fault};

/// `max_request_bytes` of the shipped configuration.
const LARGEST: usize = 4_194_304;

fn request(bytes: usize, streams: bool) -> String {
    let body = |filler: &str| {
        let messages = json!([{"role": "user", "content": "count to 5"}]);
        json!({"model": MODEL, "stream": streams, "messages": messages, "metadata": {"filler": filler}}).to_string()
    };
    let body = body(&"x".repeat(bytes - body("").len()));
    assert_eq!(body.len(), bytes);
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_request_fails_over_whole_and_a_larger_one_is_refused() {
    let stack = Stack::builder().impatient().start().await;
    for faults in [json!({"status": 503}), json!({"cut_after": 0}), json!({"hang": true})] {
        for streams in [false, true] {
            let place = format!("{faults} (stream: {streams})");
            fault(stack.vllm(), serde_json::from_value(faults.clone()).unwrap());
            stack.openai().clear_requests();
            let post = || stack.post(CHAT).key(OPEN).header("content-type", "application/json");
            let body = request(LARGEST, streams);
            let response = post().body(body.clone()).send().await;
            assert_eq!(response.status, 200, "{place}");
            assert_eq!(response.header("x-parapet-attempts"), Some("2"), "{place}");
            if streams {
                assert_eq!(response.events().all().await.whole(), count(5), "{place}");
            }
            let seen = stack.openai().requests();
            assert_eq!(seen.len(), 1, "{place}");
            let sent: Value = serde_json::from_str(&body).unwrap();
            assert!(seen[0].json()["metadata"] == sent["metadata"], "{place}: not the same body");

            let response = post().body(request(LARGEST + 1, streams)).send().await;
            let trace = response.trace();
            response.into_error(413, "request_too_large").await;
            let record = stack.record(&trace).await;
            assert_eq!(
                (&record["reason"], record["attempts"].as_array().map_or(0, Vec::len)),
                (&json!("request_too_large"), 0),
                "{record}"
            );
            assert_eq!(stack.openai().requests().len(), 1, "{place}");
        }
    }
    fault(stack.vllm(), Faults::default());
    stack.assert_well().await;
}
