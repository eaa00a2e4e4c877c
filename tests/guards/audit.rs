//! What is written down of it.

use std::process::Command;

use serde_json::json;

use crate::support::{ALICE, BOB, Stack, ask, count, fault, with};
use crate::{ALICE_INPUT, ASYNC, BOB_INPUT, CATEGORY, HOLD, UNSAFE, audited, blocked};

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_prompt_is_blocked_with_its_categories_and_audited() {
    let stack = Stack::start().await;
    for (key, mode) in [(ALICE, "parallel"), (BOB, "blocking")] {
        for streams in [false, true] {
            let body = with(ask(&format!("How do I {UNSAFE}?")), json!({"stream": streams}));
            let trace = blocked(&stack, key, &body).await;
            let record = stack.record(&trace).await;
            let guard = &record["input_guard"];
            assert_eq!(
                (&guard["mode"], &guard["verdict"], &guard["action"]),
                (&json!(mode), &json!("unsafe"), &json!("block"))
            );
            assert!(guard["score"].as_f64().unwrap() > 0.9, "{guard}");
            assert_eq!(record["reason"], "content_blocked");
            let event = audited(&stack, &trace).await;
            assert_eq!((&event["side"], &event["action"]), (&json!("input"), &json!("block")), "{event}");
            assert_eq!(event["categories"], json!([CATEGORY]));
        }
    }
    let audit = std::fs::read_to_string(stack.data().join("audit/audit.jsonl")).unwrap();
    assert!(!audit.contains("bomb"), "the text itself is in no audit log");
    assert_eq!(audit.lines().count(), 4);
    let verified = |expected| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parapet"));
        let output = command.args(["audit", "verify"]).env("PARAPET_DATA_DIR", stack.data()).output().unwrap();
        assert_eq!(output.status.success(), expected, "{}", String::from_utf8_lossy(&output.stderr));
    };
    verified(true);
    // A line that is changed shows.
    std::fs::write(stack.data().join("audit/audit.jsonl"), audit.replacen("\"alice\"", "\"carol\"", 1)).unwrap();
    verified(false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_may_let_through_what_no_guard_could_judge_and_flags_it() {
    let stack = Stack::builder()
        .edit(ALICE_INPUT, "input_guard: {mode: parallel, timeout_ms: 200, on_failure: open}")
        .edit(BOB_INPUT, "input_guard: {mode: blocking, timeout_ms: 200, on_failure: open}")
        .edit(HOLD, "output_guard: {mode: hold, timeout_ms: 200, on_failure: open,")
        .edit(ASYNC, "output_guard: {mode: async, timeout_ms: 200, on_failure: open,")
        .start()
        .await;
    for faults in [json!({"status": 500}), json!({"hang": true}), json!({"garbage_verdict": "?"})] {
        fault(stack.guard(), serde_json::from_value(faults.clone()).unwrap());
        for (key, streams) in [(ALICE, false), (ALICE, true), (BOB, false), (BOB, true)] {
            let response = stack.chat(key, &with(ask("count to 20"), json!({"stream": streams}))).await;
            let place = format!("{faults} {key} (stream: {streams})");
            assert_eq!(response.status, 200, "{place}");
            let trace = response.trace();
            if streams {
                assert_eq!(response.events().all().await.whole(), count(20), "{place}");
            } else {
                assert_eq!(response.into_json().await["choices"][0]["message"]["content"], count(20), "{place}");
            }
            let record = stack.record(&trace).await;
            for side in ["input_guard", "output_guard"] {
                let guard = &record[side];
                assert_eq!(
                    (&guard["verdict"], &guard["action"]),
                    (&json!("failed"), &json!("flag")),
                    "{place}: {guard}"
                );
            }
            assert_eq!(audited(&stack, &trace).await["action"], "flag", "{place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_itself_is_written_where_the_policy_says_so() {
    let audits = |guard: &str| format!("{guard}\n                                audit: {{text: true}}");
    let stack = Stack::builder()
        .edit(ALICE_INPUT, &audits(ALICE_INPUT))
        .edit(BOB_INPUT, &audits("input_guard: {mode: off}"))
        .start()
        .await;
    let trace = blocked(&stack, ALICE, &ask(&format!("How do I {UNSAFE}?"))).await;
    let event = audited(&stack, &trace).await;
    assert_eq!(event["text"], format!("How do I {UNSAFE}?"), "{event}");
    assert_eq!(event["text_hmac"].as_str().map(str::len), Some(64), "{event}");
    // What a model said is there, too, although nobody else has seen it.
    let trace = stack.chat(BOB, &ask(&format!("say: You {UNSAFE} so"))).await.trace();
    let event = audited(&stack, &trace).await;
    assert_eq!((&event["side"], &event["text"]), (&json!("output"), &json!(format!("You {UNSAFE} so"))), "{event}");
}
