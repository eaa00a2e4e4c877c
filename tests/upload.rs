//! The sidecar alone, over a log that is written as Envoy writes it, against simulated LangSmiths: what must not get lost
//! or doubled, whatever breaks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parapet::sim::langsmith::{self, LangSmith};
use serde_json::{Value, json};
use support::{Request, eventually, free_port};
use tempfile::TempDir;

fn now_us() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn id(number: usize) -> String {
    format!("01a20791-8327-7764-a3ea-{number:012}")
}

/// Becomes five runs.
fn line(number: usize, patch: &Value) -> String {
    let start = now_us();
    let guard = json!({"mode": "parallel", "verdict": "safe", "action": "pass", "model": "guard", "calls": 1,
        "start_us": start + 10, "end_us": start + 20_000});
    let mut record = json!({
        "v": 1, "id": id(number), "start_us": start, "end_us": start + 400_000, "api": "chat_completions", "status": 200,
        "tenant": "acme", "user": "alice", "policy": "standard", "model": "llama", "stream": true,
        "messages": [{"role": "user", "content": format!("question {number}, \"quoted\" – {}", "x".repeat(number % 700))}],
        "answers": [{"content": "an answer", "finish_reason": "stop"}], "usage": {"prompt": 12, "completion": 3},
        "input_guard": guard, "output_guard": guard, "cache": {"outcome": "miss"},
        "attempts": [{"provider": "vllm", "model": "llama", "start_us": start + 100, "first_token_us": start + 90_000,
            "end_us": start + 390_000, "status": 200, "outcome": "ok"}],
    });
    record.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
    format!("{{\"v\":1,\"code\":200,\"flags\":\"-\",\"details\":\"via_upstream\",\"ms\":400,\"record\":{record}}}\n")
}
const RUNS: usize = 5;

/// A data directory, the log in it, and the sidecar's port.
struct Rig {
    dir: TempDir,
    data: PathBuf,
    port: u16,
    environment: Vec<(String, String)>,
}

impl Rig {
    fn new(environment: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(dir.path().join("log")).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Self { dir, data, port: free_port(), environment }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log/access.jsonl")
    }

    fn write(&self, text: &str) {
        append(&self.log(), text);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parapet"));
        command.args(arguments).env_clear().env("PARAPET_DATA_DIR", &self.data);
        command
    }

    fn sidecar(&self) -> Sidecar {
        let errors = File::create(self.dir.path().join("sidecar.log")).unwrap();
        let mut command = self.command(&["sidecar"]);
        command
            .env("PARAPET_ACCESS_LOG", self.log())
            .env("PARAPET_SIDECAR_PORT", self.port.to_string())
            .env("PARAPET_ROTATE_BYTES", "0")
            .envs(self.environment.clone())
            .stderr(errors);
        Sidecar(command.spawn().unwrap())
    }

    /// What `parapet spool` says.
    fn spool(&self, arguments: &[&str]) -> String {
        let output = self.command(&["spool"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn metrics(&self) -> String {
        Request::new(([127, 0, 0, 1], self.port).into(), "GET", "/metrics").send().await.text().await
    }

    async fn ready(&self) {
        eventually("the sidecar listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok().map(|_| ())
        })
        .await;
    }

    async fn vote(&self, number: usize) -> u16 {
        let body = json!({"trace_id": id(number), "key": "thumbs", "score": 1});
        let request = Request::new(([127, 0, 0, 1], self.port).into(), "POST", "/feedback");
        request.header("x-parapet-tenant", "acme").json(&body).send().await.status
    }
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

struct Sidecar(Child);

impl Sidecar {
    /// As the kernel does it: without a chance to write anything down.
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = fs::read_to_string(self.dir.path().join("sidecar.log")).unwrap_or_default();
            let end = said.char_indices().rev().nth(3000).map_or(0, |(at, _)| at);
            eprintln!("the sidecar said: {}", &said[end..]);
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whose runs are these: their number by trace.
fn traces(langsmith: &LangSmith) -> BTreeMap<String, usize> {
    let mut traces = BTreeMap::new();
    for run in langsmith.runs() {
        *traces.entry(run["trace_id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    traces
}

fn whole(numbers: impl Iterator<Item = usize>) -> BTreeMap<String, usize> {
    numbers.map(|number| (id(number), RUNS)).collect()
}

async fn simulated(port: u16) -> LangSmith {
    langsmith::start(langsmith::Options { port, zstd: true, ..Default::default() }).await.unwrap()
}

/// Xorshift64 (Marsaglia 2003): a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// Writes as Envoy does, without a pause: in pieces that end anywhere, with rotations in mid-line (the writer goes on in
/// the file that it has open until it is told) and restarts that leave a torn line. The numbers that were written whole.
fn envoy(log: &Path, records: usize, written: &AtomicUsize, seed: u64) -> Vec<usize> {
    let open = |path: &Path| OpenOptions::new().append(true).create(true).open(path).unwrap();
    let (mut random, mut file, mut rotated) = (Random(seed), open(log), 0);
    let mut lines = Vec::new();
    for number in 0..records {
        let line = line(number, &json!({}));
        let (first, rest) = line.as_bytes().split_at(random.below(line.len()));
        file.write_all(first).unwrap();
        match random.below(200) {
            // Rotated: the rest still goes to the old file.
            0 => {
                rotated += 1;
                fs::rename(log, log.with_extension(format!("jsonl.{rotated}"))).unwrap();
                file.write_all(rest).unwrap();
                file = open(log);
                lines.push(number);
            }
            // Killed: nobody ever has the rest, and the next Envoy writes on behind it.
            1..=4 => file = open(log),
            _ => {
                file.write_all(rest).unwrap();
                lines.push(number);
            }
        }
        written.store(number + 1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
    // A last torn line would wait for an end.
    file.write_all(b"\n").unwrap();
    lines
}

async fn chaos(seed: u64) {
    const RECORDS: usize = 1500;
    let langsmith = simulated(0).await;
    let rig = Rig::new(&[("LANGSMITH_ENDPOINT", langsmith.url())]);
    let written = Arc::new(AtomicUsize::new(0));
    let (log, progress) = (rig.log(), Arc::clone(&written));
    let writer = std::thread::spawn(move || envoy(&log, RECORDS, &progress, seed));
    let mut random = Random(seed.wrapping_mul(31));
    let mut sidecar = rig.sidecar();
    let mut kills = 0;
    while written.load(Ordering::Relaxed) < RECORDS {
        let status = [200, 400, 401, 403, 404, 408, 409, 413, 422, 425, 429, 500, 502, 503, 504][random.below(15)];
        let faults = match status {
            200 => json!({}),
            _ => {
                json!({"status": status, "after_processing": random.below(2) == 0, "random": 0.5, "seed": seed + kills,
                "retry_after_s": if random.below(4) == 0 { Some(1) } else { None }})
            }
        };
        langsmith.set_faults(serde_json::from_value(faults).unwrap()).unwrap();
        // At any point of its work, be it of its start.
        tokio::time::sleep(Duration::from_millis(random.below(150) as u64)).await;
        sidecar.kill();
        sidecar = rig.sidecar();
        kills += 1;
    }
    let expected = whole(writer.join().unwrap().into_iter());
    assert!(kills > 5 && expected.len() < RECORDS, "{kills} kills: this was no chaos");
    langsmith.set_faults(parapet::sim::Faults::default()).unwrap();
    // What it was told to wait for is over.
    sidecar.kill();
    let _sidecar = rig.sidecar();
    let deadline = Instant::now() + support::PATIENCE;
    loop {
        // What was refused for good goes back when it is told to.
        rig.spool(&["retry"]);
        let found = traces(&langsmith);
        if found == expected {
            break;
        }
        if Instant::now() > deadline {
            let missing: Vec<_> = expected.iter().filter(|(id, runs)| found.get(*id) != Some(*runs)).collect();
            let surplus: Vec<_> = found.keys().filter(|id| !expected.contains_key(*id)).collect();
            panic!("seed {seed}: missing {missing:?}, surplus {surplus:?}, {}", rig.spool(&["status"]));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let runs = langsmith.runs();
    let ids: BTreeSet<&str> = runs.iter().map(|run| run["id"].as_str().unwrap()).collect();
    assert_eq!((runs.len(), ids.len()), (expected.len() * RUNS, expected.len() * RUNS));
    let status = rig.spool(&["status"]);
    assert!(status.contains(": 0 requests wait"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_under_load_with_every_error_and_rotation_the_counts_match_exactly() {
    for seed in [1, 7, 2026] {
        chaos(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_down_holds_nobody_up_and_misses_nothing() {
    let up = simulated(0).await;
    let port = free_port();
    let endpoints = json!({up.url(): "key-up", format!("http://127.0.0.1:{port}"): "key-down"}).to_string();
    let rig = Rig::new(&[("LANGSMITH_RUNS_ENDPOINTS", endpoints), ("LANGSMITH_PROJECT", "demo".to_owned())]);
    let mut sidecar = rig.sidecar();
    rig.ready().await;
    for number in 0..50 {
        rig.write(&line(number, &json!({})));
    }
    assert_eq!(rig.vote(7).await, 202);
    eventually("the one that is up has it all", async || (traces(&up) == whole(0..50)).then_some(())).await;
    eventually("with the vote", async || (up.feedback().len() == 1).then_some(())).await;
    let status = rig.spool(&["status"]);
    assert!(
        status.contains(&format!("127.0.0.1_{port}: 50 requests wait")) && status.contains("feedback: 1 wait"),
        "{status}"
    );
    sidecar.kill();
    let late = simulated(port).await;
    let _sidecar = rig.sidecar();
    eventually("the other one catches up", async || (traces(&late) == whole(0..50)).then_some(())).await;
    eventually("with the vote", async || (late.feedback().len() == 1).then_some(())).await;
    assert_eq!((traces(&up), up.feedback().len()), (whole(0..50), 1));
    for (replica, key) in [(&up, "key-up"), (&late, "key-down")] {
        let requests = replica.requests();
        let posts: Vec<_> = requests.iter().filter(|request| request.path.starts_with("/runs")).collect();
        assert!(!posts.is_empty() && posts.iter().all(|post| post.header("x-api-key") == Some(key)));
        assert!(posts.iter().all(|post| post.header("content-encoding") == Some("zstd")));
        assert!(replica.runs().iter().all(|run| run["session_name"] == "demo"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_and_blocks_become_feedback_with_the_keys_of_their_run() {
    let port = free_port();
    let rig = Rig::new(&[("LANGSMITH_ENDPOINT", format!("http://127.0.0.1:{port}"))]);
    let mut sidecar = rig.sidecar();
    rig.ready().await;
    // LangSmith is down, and the sidecar killed as soon as the vote is accepted.
    let block = json!({"mode": "parallel", "verdict": "unsafe", "action": "block", "score": 0.9, "categories": ["S9"],
        "model": "guard"});
    rig.write(&line(1, &json!({})));
    rig.write(&line(2, &json!({"status": 403, "reason": "content_blocked", "input_guard": &block})));
    rig.write(&line(3, &json!({"unsampled": true, "input_guard": block})));
    for number in 1..=3 {
        assert_eq!(rig.vote(number).await, 202);
    }
    sidecar.kill();
    let langsmith = simulated(port).await;
    // Runs are visible late.
    langsmith
        .set_faults(serde_json::from_value(json!({"status": 404, "path": "/feedback", "times": 4})).unwrap())
        .unwrap();
    let mut sidecar = rig.sidecar();
    eventually("the feedback", async || (langsmith.feedback().len() == 3).then_some(())).await;
    let sessions = Request::new(([127, 0, 0, 1], port).into(), "GET", "/sessions").send().await.into_json().await;
    let roots: BTreeMap<String, Value> = langsmith
        .runs()
        .into_iter()
        .filter(|run| run["parent_run_id"].is_null())
        .map(|run| (run["id"].as_str().unwrap().to_owned(), run))
        .collect();
    for feedback in langsmith.feedback() {
        let root = &roots[feedback["run_id"].as_str().unwrap()];
        assert_eq!((&feedback["trace_id"], &feedback["start_time"]), (&root["trace_id"], &root["start_time"]));
        assert_eq!(feedback["session_id"], sessions[0]["id"], "{feedback} {sessions}");
        if feedback["key"] == "thumbs" {
            assert_eq!(
                (&feedback["feedback_source"]["type"], feedback.get("extend_trace_retention")),
                (&json!("api"), None)
            );
        } else {
            assert_eq!((&feedback["key"], &feedback["run_id"]), (&json!("input_blocked"), &json!(id(2))));
            assert_eq!(feedback["value"], json!({"categories": ["S9"], "score": 0.9}));
            assert_eq!(feedback["extend_trace_retention"], false);
        }
    }
    // Read and uploaded again from the start, nothing is doubled.
    sidecar.kill();
    fs::remove_file(rig.data.join("spool/cursor.json")).unwrap();
    fs::remove_file(rig.data.join("spool/feedback.jsonl")).unwrap();
    let asked = langsmith.requests().iter().filter(|request| request.path == "/feedback").count();
    fs::write(
        rig.data.join("spool/cursor.json"),
        json!({"destinations": {"x": {"segment": 1, "offset": 0}}}).to_string(),
    )
    .unwrap();
    let _sidecar = rig.sidecar();
    eventually("the block is sent again", async || {
        (langsmith.requests().iter().filter(|request| request.path == "/feedback").count() > asked).then_some(())
    })
    .await;
    assert_eq!((langsmith.feedback().len(), langsmith.runs().len()), (3, 2 * RUNS));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_disk_nothing_is_lost_and_it_goes_on_when_there_is_space() {
    let langsmith = simulated(0).await;
    let rig = Rig::new(&[("LANGSMITH_ENDPOINT", langsmith.url()), ("PARAPET_SPOOL_BYTES", "1048576".to_owned())]);
    let Some(_disk) = Disk::mount(&rig.data, "3m") else {
        eprintln!("NOT RUN: a small disk cannot be mounted here (root is needed)");
        return;
    };
    let mut sidecar = rig.sidecar();
    rig.ready().await;
    rig.write(&line(0, &json!({})));
    eventually("the first one arrives", async || (traces(&langsmith) == whole(0..1)).then_some(())).await;
    let ballast = rig.data.join("ballast");
    let mut full = File::create(&ballast).unwrap();
    while full.write_all(&[0; 4096]).is_ok() {}
    drop(full);
    for number in 1..1500 {
        rig.write(&line(number, &json!({})));
    }
    let retries = async || {
        let metrics = rig.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with("parapet_accesslog_write_retries_total "))?;
        line.rsplit(' ').next()?.parse::<u64>().ok().filter(|count| *count > 0)
    };
    eventually("the failure is counted", retries).await;
    // What is delivered makes room now and then: some votes may still be kept.
    let kept = AtomicUsize::new(0);
    eventually("a vote that cannot be kept is not accepted", async || match rig.vote(0).await {
        503 => Some(()),
        status => {
            assert_eq!(status, 202);
            kept.fetch_add(1, Ordering::Relaxed);
            None
        }
    })
    .await;
    assert!(traces(&langsmith).len() < 1500);
    // Killed with the disk full, it starts again and waits on.
    sidecar.kill();
    let mut sidecar = rig.sidecar();
    rig.ready().await;
    eventually("the failure is counted again", retries).await;
    assert!(sidecar.0.try_wait().unwrap().is_none(), "it went on running");
    fs::remove_file(&ballast).unwrap();
    // More than the disk holds at a time: what is delivered makes room for what is not.
    eventually("everything arrives", async || (traces(&langsmith) == whole(0..1500)).then_some(())).await;
    assert_eq!(langsmith.runs().len(), 1500 * RUNS);
    let votes = kept.into_inner();
    eventually("every vote that was accepted arrives", async || (langsmith.feedback().len() == votes).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_larger_than_the_disk_goes_through_it() {
    let langsmith = simulated(0).await;
    let rig = Rig::new(&[("LANGSMITH_ENDPOINT", langsmith.url())]);
    // Smaller than what is read at a time.
    let Some(_disk) = Disk::mount(&rig.data, "2m") else {
        eprintln!("NOT RUN: a small disk cannot be mounted here (root is needed)");
        return;
    };
    let text: String = (0..4000).map(|number| line(number, &json!({}))).collect();
    assert!(text.len() > 4 << 20, "{}", text.len());
    rig.write(&text);
    let _sidecar = rig.sidecar();
    rig.ready().await;
    eventually("everything arrives", async || (traces(&langsmith) == whole(0..4000)).then_some(())).await;
    assert_eq!(langsmith.runs().len(), 4000 * RUNS);
}

/// A small file system in memory.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"]).arg(at).stderr(Stdio::null());
        command.status().ok()?.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
