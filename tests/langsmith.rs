//! Each request becomes one LangSmith trace, whatever happens to LangSmith or the sidecar meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Stdio};

use futures_util::future::join_all;
use parapet::sim::langsmith::LangSmith;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{
    ALICE, BOB, CHAT, Faults, OPEN, OPENAI_MODEL, OwnSidecar, Stack, ask, eventually, fault, free_port, stream, with,
};

/// The runs of each trace, by the trace's id.
fn traces(langsmith: &LangSmith) -> BTreeMap<String, Vec<Value>> {
    let mut traces: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for run in langsmith.runs() {
        traces.entry(run["trace_id"].as_str().unwrap().to_owned()).or_default().push(run);
    }
    traces
}

async fn trace(stack: &Stack, id: &str) -> Vec<Value> {
    eventually(&format!("trace {id}"), async || {
        let runs = traces(stack.langsmith()).remove(id)?;
        // All of a trace's runs have ended.
        runs.iter().all(|run| run["end_time"].is_string()).then_some(runs)
    })
    .await
}

fn run<'a>(runs: &'a [Value], name: &str) -> Option<&'a Value> {
    runs.iter().find(|run| run["name"] == name)
}

/// `count` questions at once, as JSON and as SSE by turns; the trace ids that the client saw.
async fn questions(stack: &Stack, count: usize) -> BTreeSet<String> {
    let requests = (0..count).map(|number| async move {
        let body = with(ask(&format!("question {number}")), json!({"stream": number % 2 == 0}));
        let mut response = stack.chat([ALICE, OPEN][number % 2], &body).await;
        assert_eq!(response.status, 200);
        response.text().await;
        response.trace()
    });
    let ids: BTreeSet<String> = join_all(requests).await.into_iter().collect();
    assert_eq!(ids.len(), count);
    ids
}

/// Exactly these traces arrive, each once, and nothing else.
async fn arrive(stack: &Stack, expected: &BTreeSet<String>) {
    eventually("all traces", async || {
        let found: BTreeSet<String> = traces(stack.langsmith()).into_keys().collect();
        (found.len() >= expected.len()).then_some(())
    })
    .await;
    let found: BTreeSet<String> = traces(stack.langsmith()).into_keys().collect();
    assert_eq!(&found, expected);
    let roots = stack.langsmith().runs().into_iter().filter(|run| run["parent_run_id"].is_null());
    let roots: Vec<String> = roots.map(|run| run["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(roots.len(), expected.len(), "one root each");
    assert_eq!(
        &roots.into_iter().collect::<BTreeSet<_>>(),
        expected,
        "the root's id is the trace id that the client saw"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_one_trace_whose_root_is_the_trace_id_of_its_answer() {
    let stack = Stack::builder().langsmith().env("LANGSMITH_PROJECT", "demo").start().await;
    let request = stack.post(CHAT).key(ALICE).json(&with(ask("Hello"), json!({"temperature": 0.2})));
    let response = request.header("x-session-id", "s-1").header("x-user-id", "u-1").header("x-feature", "search");
    let id = response.send().await.trace();
    let runs = trace(&stack, &id).await;
    let root = run(&runs, "chat-request").unwrap();
    assert_eq!((&root["id"], &root["run_type"], &root["session_name"]), (&json!(id), &json!("chain"), &json!("demo")));
    let metadata = &root["extra"]["metadata"];
    assert_eq!((&metadata["session_id"], &metadata["end_user"]), (&json!("s-1"), &json!("u-1")), "{metadata}");
    assert!(root["inputs"].to_string().contains("Hello") && root["outputs"].to_string().contains("You asked: Hello"));
    for name in ["input-guard", "output-guard"] {
        assert_eq!(run(&runs, name).unwrap()["parent_run_id"], json!(id), "{name}");
    }
    let llm = runs
        .iter()
        .find(|run| run["run_type"] == "llm" && run["name"] != "input-guard" && run["name"] != "output-guard");
    let llm = llm.unwrap_or_else(|| panic!("no model run: {runs:#?}"));
    assert_eq!(llm["extra"]["metadata"]["ls_provider"], "vllm");
    assert!(root.get("error").is_none_or(Value::is_null), "{root}");

    // A block, a failover and a bad request are traces as well.
    let blocked = stack.alice(&ask("How do I build a bomb?")).await;
    let runs = trace(&stack, &blocked.trace()).await;
    let guard = run(&runs, "input-guard").unwrap();
    assert!(guard["outputs"].to_string().contains("S9"), "{guard}");
    fault(stack.vllm(), Faults { status: Some(500), ..Faults::default() });
    let id = stack.chat(OPEN, &stream("count to 9")).await.trace();
    let runs = trace(&stack, &id).await;
    let providers: Vec<&str> = runs.iter().filter_map(|run| run["extra"]["metadata"]["ls_provider"].as_str()).collect();
    assert_eq!(providers.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&"vllm", &"openai"]), "{runs:#?}");
    assert!(runs.iter().any(|run| run["extra"]["metadata"]["ls_model_name"] == OPENAI_MODEL), "{runs:#?}");
    let refused = stack.chat(OPEN, &json!({"messages": []})).await;
    let runs = trace(&stack, &refused.trace()).await;
    assert!(runs[0]["error"].as_str().unwrap().contains("invalid_request"), "{runs:#?}");

    let everything = format!("{:?}", stack.langsmith().requests());
    for secret in [ALICE, OPEN, support::VLLM_KEY, support::OPENAI_KEY, support::GUARD_KEY] {
        assert!(!everything.contains(secret), "{secret} went to LangSmith");
    }
    let kept = stack.langsmith().requests();
    assert!(kept.iter().filter(|seen| seen.method == "POST").all(|seen| seen.header("x-api-key") == Some("ls-key")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_own_trace_is_joined() {
    let stack = Stack::builder().langsmith().start().await;
    let parent = "01a20791-8327-7764-a3ea-7224f6c98036";
    let order = format!("20261123T084146535477Z{parent}");
    let request = stack.post(CHAT).key(OPEN).header("langsmith-trace", &order).json(&ask("Hello"));
    let id = request.send().await.trace();
    let root =
        eventually("the run", async || stack.langsmith().runs().into_iter().find(|run| run["id"] == json!(id))).await;
    assert_eq!((&root["trace_id"], &root["parent_run_id"]), (&json!(parent), &json!(parent)));
    assert!(root["dotted_order"].as_str().unwrap().starts_with(&order), "{root}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_while_langsmith_is_down_are_a_hundred_traces_once_it_is_up() {
    let mut stack = Stack::builder().langsmith().start().await;
    let port = stack.stop_langsmith().await;
    let ids = questions(&stack, 100).await;
    stack.start_langsmith(port).await;
    arrive(&stack, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn langsmith_that_refuses_for_a_while_gets_everything_in_the_end() {
    let stack = Stack::builder().langsmith().start().await;
    for faults in [
        json!({"status": 500, "times": 2}),
        json!({"status": 429, "retry_after_s": 1, "times": 1}),
        // Stored, and the acknowledgement lost: what is sent again is a duplicate that changes nothing.
        json!({"status": 503, "after_processing": true, "times": 1}),
    ] {
        fault(stack.langsmith(), serde_json::from_value(faults).unwrap());
        let expected = traces(stack.langsmith()).into_keys().collect::<BTreeSet<_>>();
        let ids = questions(&stack, 10).await;
        arrive(&stack, &expected.union(&ids).cloned().collect()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_on_ones_own_trace_reaches_langsmith_and_on_anothers_is_refused() {
    let stack = Stack::builder().langsmith().start().await;
    let id = stack.alice(&ask("Hello")).await.trace();
    trace(&stack, &id).await;
    let body = json!({"trace_id": id, "key": "thumbs", "score": 1, "comment": "good"});
    let accepted = stack.post("/feedback").key(ALICE).json(&body).send().await;
    assert_eq!(accepted.status, 202);
    let accepted = accepted.into_json().await;
    assert_eq!(accepted["status"], "accepted");
    let feedback = eventually("the feedback", async || stack.langsmith().feedback().pop()).await;
    assert_eq!(
        (&feedback["key"], &feedback["score"], &feedback["comment"]),
        (&json!("thumbs"), &json!(1), &json!("good"))
    );
    assert_eq!((&feedback["trace_id"], &feedback["id"]), (&json!(id), &accepted["id"]));

    // Of another tenant, forged or not.
    for request in
        [stack.post("/feedback").key(BOB), stack.post("/feedback").key(BOB).header("x-parapet-tenant", "acme")]
    {
        let refused = request.json(&body).send().await;
        assert_eq!(refused.status, 404);
        assert_eq!(refused.into_json().await["error"]["code"], "not_found");
    }
    let without_key = stack.post("/feedback").json(&body).send().await;
    without_key.into_error(401, "invalid_api_key").await;
    for bad in [json!({}), json!({"trace_id": "x"}), json!({"trace_id": id, "score": "high"})] {
        let refused = stack.post("/feedback").key(ALICE).json(&bad).send().await;
        assert_eq!(refused.status, 400, "{bad}");
        assert_eq!(refused.into_json().await["error"]["code"], "invalid_request", "{bad}");
    }
    assert_eq!(stack.langsmith().feedback().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_stands_still_loses_nothing_and_holds_nobody_up() {
    let stack = Stack::builder().langsmith().start().await;
    stack.signal(" sidecar ", Signal::STOP);
    let ids = questions(&stack, 20).await;
    assert!(stack.langsmith().runs().is_empty());
    stack.signal(" sidecar ", Signal::CONT);
    arrive(&stack, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_goes_on_where_it_was() {
    let port = free_port();
    let stack = Stack::builder().env("PARAPET_SIDECAR_URL", &format!("http://127.0.0.1:{port}")).start().await;
    let mut ids = questions(&stack, 20).await;
    let mut sidecar = OwnSidecar::start(&stack, port);
    // In the middle of its work, and then between its work.
    eventually("the first upload", async || stack.langsmith().runs().pop()).await;
    sidecar.kill();
    ids.extend(questions(&stack, 20).await);
    sidecar = OwnSidecar::start(&stack, port);
    arrive(&stack, &ids).await;
    for _ in 0..3 {
        sidecar.kill();
        ids.extend(questions(&stack, 10).await);
        sidecar = OwnSidecar::start(&stack, port);
    }
    arrive(&stack, &ids).await;
}

/// A sidecar of one's own that rotates the log all the time.
struct Rotating(Child);

impl Rotating {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Rotating {
    fn drop(&mut self) {
        self.kill();
    }
}

fn rotating(stack: &Stack, port: u16) -> Rotating {
    let child = Command::new(env!("CARGO_BIN_EXE_parapet"))
        .arg("sidecar")
        .env_clear()
        .env("PARAPET_DATA_DIR", stack.data().with_file_name("sidecar"))
        .env("PARAPET_ACCESS_LOG", stack.data().join("log/access.jsonl"))
        .env("PARAPET_ADMIN_URL", format!("http://{}", stack.admin))
        .env("PARAPET_SIDECAR_PORT", port.to_string())
        .env("PARAPET_ROTATE_BYTES", "20000")
        .env("LANGSMITH_ENDPOINT", stack.langsmith().url())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Rotating(child)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_log_rotated_the_sidecar_killed_and_envoy_restarted_each_request_is_one_trace() {
    let port = free_port();
    let mut stack = Stack::builder().env("PARAPET_SIDECAR_URL", &format!("http://127.0.0.1:{port}")).start().await;
    let mut ids = BTreeSet::new();
    for round in 0..4 {
        let mut sidecar = rotating(&stack, port);
        let loaded = async {
            ids.extend(questions(&stack, 30).await);
            ids.extend(questions(&stack, 30).await);
        };
        let killed = async {
            let log = stack.data().join("log/access.jsonl");
            let file = || std::fs::metadata(&log).ok().map(|metadata| metadata.ino());
            let (before, first) = (stack.langsmith().runs().len(), file());
            eventually("runs arrive", async || (stack.langsmith().runs().len() > before).then_some(())).await;
            // Of its two halves one is killed before the rotation, one behind it.
            if round % 2 == 0 {
                eventually("the log is rotated", async || (file() != first).then_some(())).await;
            }
            sidecar.kill();
        };
        tokio::join!(loaded, killed);
        if round == 1 {
            stack.restart().await;
        }
    }
    let _sidecar = rotating(&stack, port);
    arrive(&stack, &ids).await;
    let first = ids.first().unwrap();
    eventually("what is uploaded goes from the log", async || {
        questions(&stack, 2).await;
        let logs = std::fs::read_dir(stack.data().join("log")).unwrap().map(|entry| entry.unwrap().path());
        let text: String = logs.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect();
        (!text.contains(first)).then_some(())
    })
    .await;
}
