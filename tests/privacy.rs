//! What a policy does not want written down is in no file, no upload and no answer of the sidecar.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{ALICE, BOB, CHAT, OPEN, Stack, ask, eventually, with};

const MAIL: &str = "alice.private@example.com";
const CARD: &str = "4111 1111 1111 1111";
const SECRETS: [&str; 4] = [MAIL, CARD, "EMP-123456", "sk-live-0123456789"];

/// Every byte under a directory.
fn written(directory: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.push_str(&written(&path));
        } else {
            all.push_str(&String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()));
        }
    }
    all
}

fn policies(section: &str) -> (String, String) {
    ("cache: {ttl_s: 3600}".to_owned(), format!("cache: {{ttl_s: 3600}}\n{:32}trace: {section}", ""))
}

async fn uploaded(stack: &Stack, id: &str) -> Vec<Value> {
    eventually(&format!("trace {id}"), async || {
        let runs: Vec<Value> = stack.langsmith().runs().into_iter().filter(|run| run["trace_id"] == id).collect();
        (!runs.is_empty() && runs.iter().all(|run| run["end_time"].is_string())).then_some(runs)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn redacted_texts_reach_the_model_and_nothing_else() {
    let (from, to) = policies(r"{redact: [email, card, secret], redact_patterns: {employee: 'EMP-\d{6}'}}");
    let stack = Stack::builder().langsmith().edit(&from, &to).start().await;
    let question = format!("say: I am {MAIL}, card {CARD}, EMP-123456, key sk-live-0123456789");
    let mut ids = Vec::new();
    for streams in [false, true] {
        let body = with(ask(&question), json!({"stream": streams, "metadata": {"mail": MAIL}}));
        let request = stack.post(CHAT).key(ALICE).json(&body).header("x-user-id", MAIL).header("x-session-id", CARD);
        let mut response = request.send().await;
        assert_eq!(response.status, 200);
        ids.push(response.trace());
        let answer = response.text().await;
        if !streams {
            assert!(SECRETS.iter().all(|secret| answer.contains(secret)), "the client has what it is owed: {answer}");
        }
    }
    assert!(stack.vllm_requests()[0].body.contains(MAIL), "the model reads what was written");
    for id in &ids {
        let runs = uploaded(&stack, id).await;
        let root = runs.iter().find(|run| run["name"] == "chat-request").unwrap();
        let expected = "I am [email], card [card], [employee], key [secret]";
        assert!(root["inputs"].to_string().contains(expected), "{root}");
        assert!(root["outputs"].to_string().contains(expected), "{root}");
        assert_eq!(root["extra"]["metadata"]["session_id"], "[card]");
        assert_eq!(stack.record(id).await["redacted"], json!(true));
    }
    let everything = format!("{}{:?}", written(&stack.data()), stack.langsmith().requests());
    for secret in SECRETS {
        assert!(!everything.contains(secret), "{secret} was written down");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_content_the_traces_have_everything_but_texts() {
    let (from, to) = policies("{content: hash}");
    let stack = Stack::builder().langsmith().edit(&from, &to).start().await;
    let mut digests = Vec::new();
    for user in [ALICE, BOB] {
        let mut response = stack.chat(user, &with(ask("say: xyzzy plugh"), json!({"temperature": 0.5}))).await;
        let id = response.trace();
        assert!(response.text().await.contains("xyzzy plugh"));
        let record = stack.record(&id).await;
        assert!(record["messages"].is_null() && record["params"]["temperature"] == 0.5, "{record}");
        assert!(
            record["usage"]["completion"].as_u64() > Some(0) && record["attempts"][0]["outcome"] == "ok",
            "{record}"
        );
        digests.push((record["prompt_digest"].clone(), record["answer_digest"].clone()));
        uploaded(&stack, &id).await;
    }
    assert!(digests[0].0.is_string() && digests[0].1.is_string());
    assert_eq!(digests[0], digests[1], "equal texts are known again");
    let everything = format!("{}{:?}", written(&stack.data()), stack.langsmith().requests());
    assert!(!everything.contains("xyzzy"), "a text was written down");
    // The worker's own memory still answers; the sidecar's cache has nothing to give.
    let mut again = stack.chat(ALICE, &with(ask("say: xyzzy plugh"), json!({"temperature": 0.5}))).await;
    assert!(again.header("cache-status").unwrap().contains("hit"));
    assert!(again.text().await.contains("xyzzy plugh"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sampling_leaves_out_is_settled_and_counted_but_not_traced() {
    let (from, to) = policies("{sampling: 0}");
    let stack = Stack::builder().langsmith().edit(&from, &to).start().await;
    let mut response = stack.alice(&ask("left out")).await;
    let left_out = response.trace();
    response.text().await;
    let blocked = stack.alice(&ask("How do I build a bomb?")).await;
    assert_eq!((blocked.status, stack.record(&left_out).await["unsampled"].clone()), (403, json!(true)));
    // Lines are dealt with in order: when the last is a trace, those before it would be.
    let mut traced = stack.chat(OPEN, &ask("traced")).await;
    let id = traced.trace();
    traced.text().await;
    uploaded(&stack, &id).await;
    assert!(stack.langsmith().runs().iter().all(|run| run["trace_id"] == *id), "only one policy is traced");
    let audit = written(&stack.data().join("audit"));
    assert!(audit.contains(&blocked.trace()), "the block is audited");
}
