//! The sidecar without the access log's file: Envoy sends it the lines, as docs/als.md says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde_json::json;
use support::{ALICE, Builder, OPEN, Request, Stack, ask, eventually, free_port, stream, with};

const DOCUMENT: &str = include_str!("../docs/als.md");
const SHIPPED: &str = include_str!("../envoy/envoy.yaml");

/// The document's pieces of YAML: the logger and the cluster.
fn pieces() -> [&'static str; 2] {
    let mut blocks = DOCUMENT.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let pieces = [blocks.next().unwrap(), blocks.next().unwrap()];
    assert!(blocks.next().is_none());
    pieces
}

/// The shipped logger's text.
fn file_logger() -> &'static str {
    let start = SHIPPED.find("                  - name: envoy.access_loggers.file\n").unwrap();
    let end = start + SHIPPED[start..].find("PLAIN)%}\\n\"\n").unwrap() + "PLAIN)%}\\n\"\n".len();
    &SHIPPED[start..end]
}

fn stack(with_file: bool) -> Builder {
    let [logger, cluster] = pieces();
    let port = free_port().to_string();
    let (file, cluster) = (file_logger(), cluster.replace("9091", &port));
    let loggers = if with_file { format!("{file}{logger}") } else { logger.to_owned() };
    Stack::builder()
        .langsmith()
        .edit(file, &loggers)
        .edit("\n  clusters:\n", &format!("\n  clusters:\n{cluster}"))
        .env("PARAPET_ALS_PORT", &port)
}

async fn metric(stack: &Stack, line: &str) -> u64 {
    let text = Request::new(stack.sidecar, "GET", "/metrics").send().await.text().await;
    let found = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or(0)
}

/// The runs of each trace at LangSmith, counted, once all of these are there.
async fn arrive(stack: &Stack, ids: &BTreeSet<String>) {
    let roots = || {
        let mut roots: BTreeMap<String, usize> = BTreeMap::new();
        for run in stack.langsmith().runs().into_iter().filter(|run| run["parent_run_id"].is_null()) {
            *roots.entry(run["id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        roots
    };
    eventually("all traces", async || (roots().len() >= ids.len()).then_some(())).await;
    assert_eq!(&roots().into_keys().collect::<BTreeSet<_>>(), ids);
    assert!(roots().values().all(|&count| count == 1), "each once: {:?}", roots());
}

async fn questions(stack: &Stack, count: usize) -> BTreeSet<String> {
    let requests = (0..count).map(|number| async move {
        let body = with(ask(&format!("question {number}")), json!({"stream": number % 2 == 0}));
        let mut response = stack.chat([ALICE, OPEN][number % 2], &body).await;
        assert_eq!(response.status, 200);
        response.text().await;
        response.trace()
    });
    join_all(requests).await.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_traced_stored_and_counted_without_a_shared_file() {
    let stack = stack(false).start().await;
    let mut ids = questions(&stack, 20).await;
    // A record much longer than Envoy's buffer, with what JSON has to escape.
    let long = format!("say: {}", "é\"\\\n \u{1F600}".repeat(20_000));
    let response = stack.alice(&ask(&long)).await;
    assert_eq!(response.status, 200);
    ids.insert(response.trace());
    let blocked = stack.alice(&ask("How do I build a bomb?")).await;
    ids.insert(blocked.trace());
    let mut streamed = stack.alice(&stream("count to 30")).await;
    streamed.text().await;
    ids.insert(streamed.trace());
    arrive(&stack, &ids).await;
    assert!(!stack.data().join("log/access.jsonl").exists());

    let runs = stack.langsmith().runs();
    let text = runs.iter().map(|run| run["outputs"].to_string()).max_by_key(String::len).unwrap();
    assert!(text.len() > 200_000, "the long answer is whole: {}", text.len());
    // The start asks for the gateway's health, which is a record too.
    let taken = metric(&stack, r#"parapet_als_entries_total{outcome="taken"}"#).await;
    assert!(taken > ids.len() as u64, "{taken}");
    assert_eq!(metric(&stack, "parapet_accesslog_records_total").await, taken);
    assert!(metric(&stack, "parapet_cache_entries").await > 0, "answers are stored");
    let audit = std::fs::read_to_string(stack.data().join("audit/audit.jsonl")).unwrap();
    assert!(audit.contains(&blocked.trace()), "{audit}");
    stack.assert_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_by_both_ways_counts_once() {
    let stack = stack(true).start().await;
    let ids = questions(&stack, 20).await;
    arrive(&stack, &ids).await;
    eventually("the second way", async || {
        let records = metric(&stack, "parapet_accesslog_records_total").await;
        let again = metric(&stack, "parapet_accesslog_duplicates_total").await;
        (again > ids.len() as u64 && again == records).then_some(())
    })
    .await;
    arrive(&stack, &ids).await;
}
