use std::collections::{HashMap, VecDeque};
use std::path::Path as FsPath;
use std::sync::Mutex;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::*;
use crate::accesslog::line::tests::line;
use crate::feedback::queue::Queue;
use crate::langsmith::client::Client;
use crate::langsmith::dead_letter::{DeadLetters, Selection};
use crate::langsmith::deliver::Pace;
use crate::langsmith::retry::Policy;
use crate::metrics::Metrics;
use crate::spool::index::Index;
use crate::spool::{self, Spool};

/// A LangSmith that keeps runs by id and answers what it is told to.
#[derive(Default)]
struct Fake {
    state: Mutex<Seen>,
    changed: Notify,
}

#[derive(Default)]
struct Seen {
    /// Answers to the next posts, before the fake judges by itself.
    script: VecDeque<(u16, Option<&'static str>)>,
    /// The id of a run that is refused.
    poison: Option<String>,
    max_runs: usize,
    no_multipart: bool,
    /// How often each run was accepted.
    accepted: HashMap<String, usize>,
    posts: Vec<(String, HeaderMap)>,
    flags: Value,
    /// Bodies of this encoding are refused, whatever the flags say.
    refuse_encoding: Option<&'static str>,
}

async fn answer(State(fake): State<Arc<Fake>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let mut seen = fake.state.lock().unwrap();
    if uri.path() == "/info" {
        let config = json!({"size_limit": 100, "size_limit_bytes": 1_000_000});
        return axum::Json(json!({"instance_flags": seen.flags, "batch_ingest_config": config})).into_response();
    }
    seen.posts.push((uri.path().to_owned(), headers.clone()));
    fake.changed.notify_one();
    if let Some((status, retry_after)) = seen.script.pop_front() {
        let status = StatusCode::from_u16(status).unwrap();
        return match retry_after {
            Some("cut") => {
                let pieces = [Ok("{\"message\":"), Err(io::Error::other("the server died"))];
                (status, axum::body::Body::from_stream(futures_util::stream::iter(pieces))).into_response()
            }
            Some(seconds) => (status, [("retry-after", seconds)]).into_response(),
            None => (status, "the body of an error").into_response(),
        };
    }
    let encoding = headers.get("content-encoding").map(|value| value.to_str().unwrap());
    if encoding.is_some() && encoding == seen.refuse_encoding {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    let body = match encoding {
        None => body,
        Some("zstd") => {
            let size = |name: &str| headers[name].to_str().unwrap().parse::<usize>().unwrap();
            let plain = zstd::decode_all(&body[..]).unwrap();
            assert_eq!((size("x-pre-compressed-size"), size("x-post-compressed-size")), (plain.len(), body.len()));
            plain.into()
        }
        Some(other) => {
            assert_eq!(other, "gzip");
            let mut plain = Vec::new();
            io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&body[..]), &mut plain).unwrap();
            plain.into()
        }
    };
    let ids = match uri.path() {
        "/runs/multipart" if seen.no_multipart => return StatusCode::NOT_FOUND.into_response(),
        "/runs/multipart" => multipart_ids(headers["content-type"].to_str().unwrap(), &body),
        "/runs/batch" => {
            let batch: Value = serde_json::from_slice(&body).unwrap();
            batch["post"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
        }
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    if seen.max_runs > 0 && ids.len() > seen.max_runs {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    if seen.poison.as_ref().is_some_and(|poison| ids.contains(poison)) {
        return (StatusCode::UNPROCESSABLE_ENTITY, "no such field").into_response();
    }
    // The strictest reading of 409: nothing of the request is taken.
    if ids.iter().any(|id| seen.accepted.contains_key(id)) {
        return StatusCode::CONFLICT.into_response();
    }
    for id in ids {
        *seen.accepted.entry(id).or_default() += 1;
    }
    StatusCode::ACCEPTED.into_response()
}

/// The runs' ids; every part's length must be true.
fn multipart_ids(content_type: &str, mut body: &[u8]) -> Vec<String> {
    let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
    let mut ids = Vec::new();
    loop {
        let rest = body.strip_prefix(format!("--{boundary}").as_bytes()).unwrap();
        if rest == b"--\r\n" {
            return ids;
        }
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&rest[..end]).unwrap();
        let name = head.split("name=\"").nth(1).unwrap().split('"').next().unwrap();
        let length: usize = head.split("Content-Length: ").nth(1).unwrap().trim().parse().unwrap();
        let content = &rest[end + 4..end + 4 + length];
        let parsed: Value = serde_json::from_slice(content).unwrap();
        let mut words = name.split('.');
        assert_eq!(words.next(), Some("post"));
        let id = words.next().unwrap();
        match words.next() {
            None => {
                assert_eq!(parsed["id"], id);
                ids.push(id.to_owned());
            }
            Some(field) => assert!(["inputs", "outputs", "extra", "events", "error"].contains(&field), "{field}"),
        }
        body = rest[end + 4 + length..].strip_prefix(b"\r\n").unwrap();
    }
}

struct Rig {
    fake: Arc<Fake>,
    spool: Arc<Spool>,
    dir: tempfile::TempDir,
    endpoint: String,
    /// The destination's.
    name: String,
    metrics: Arc<Metrics>,
}

fn id(n: usize) -> String {
    format!("01a20791-8327-7764-a3ea-{n:012}")
}

fn open_spool(dir: &FsPath, destinations: &[String]) -> Arc<Spool> {
    let options = spool::Options {
        dir: dir.join("spool"),
        segment_bytes: 1 << 16,
        max_bytes: 1 << 20,
        retention: Duration::from_secs(3600),
        destinations: destinations.to_vec(),
    };
    Arc::new(Spool::open(options).unwrap())
}

impl Rig {
    /// Every record makes two runs.
    async fn new(records: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let name = address.to_string().replace(':', "_");
        let spool = open_spool(dir.path(), std::slice::from_ref(&name));
        for n in 0..records {
            let record = json!({
                "v": 1, "id": id(n), "start_us": 1_795_423_306_535_477_u64, "api": "chat", "status": 200,
                "messages": [{"role": "user", "content": "--x\r\n"}], "cache": {"outcome": "miss"},
            });
            spool.append(&[line(&record.to_string()).as_bytes()]).unwrap();
        }
        spool.publish();
        let endpoint = format!("http://{address}");
        let router = Router::new().fallback(answer).with_state(Arc::clone(&fake));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { fake, spool, dir, endpoint, name, metrics: Arc::new(Metrics::new()) }
    }

    fn script(&self, answers: &[(u16, Option<&'static str>)]) {
        self.fake.state.lock().unwrap().script.extend(answers);
    }

    fn config(&self) -> Config {
        let endpoint = self.endpoint.clone();
        Config::from_env(move |name| match name {
            "LANGSMITH_ENDPOINT" => Some(endpoint.clone()),
            "LANGSMITH_API_KEY" => Some("the-key".to_owned()),
            "LANGSMITH_WORKSPACE_ID" => Some("0198f0c1-0000-7000-8000-000000000001".to_owned()),
            _ => None,
        })
        .unwrap()
    }

    fn uploader(&self, config: Config, stop: watch::Receiver<bool>) -> Uploader {
        let wait = Duration::from_millis(1);
        let destination = &config.destinations[0];
        assert_eq!(destination.name, self.name);
        let queue = Queue::open(&self.dir.path().join("feedback.jsonl"), std::slice::from_ref(&self.name)).unwrap();
        let feedback = Feedback::new(queue, Arc::new(Mutex::new(Index::new(10))), Arc::clone(&self.metrics), false);
        let delivery = Delivery {
            destination: self.name.clone(),
            client: Arc::new(Client::new(&config, destination).unwrap()),
            dead_letters: Arc::new(DeadLetters::new(self.dir.path())),
            metrics: Arc::clone(&self.metrics),
            policy: Policy { first: wait, max: wait * 4, operator: wait },
            stop,
            pace: Pace::default(),
        };
        Uploader {
            delivery: Arc::new(delivery),
            shape: config.shape_for(destination),
            config: Arc::new(config),
            queue: self.spool.queue(&self.name),
            feedback: Arc::new(feedback),
        }
    }

    fn start(&self) -> (watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let (stop, stopping) = watch::channel(false);
        (stop, tokio::spawn(self.uploader(self.config(), stopping).run()))
    }

    /// Uploads until nothing waits.
    async fn upload(&self) {
        let (stop, task) = self.start();
        self.until_delivered().await;
        stop.send(true).unwrap();
        task.await.unwrap();
    }

    async fn until_delivered(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while self.spool.stats().waiting > 0 {
            assert!(tokio::time::Instant::now() < deadline, "still waiting: {:?}", self.spool.stats());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Every run of so many records was accepted exactly once.
    fn assert_all_once(&self, records: usize) {
        let seen = self.fake.state.lock().unwrap();
        assert_eq!(seen.accepted.len(), records * 2);
        assert!(seen.accepted.values().all(|&count| count == 1));
        assert!((0..records).all(|n| seen.accepted.contains_key(&id(n))));
    }

    fn dead_letters(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("dead-letters.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[tokio::test]
async fn runs_are_uploaded_with_the_key_and_the_workspace() {
    let rig = Rig::new(70).await;
    rig.upload().await;
    rig.assert_all_once(70);
    let seen = rig.fake.state.lock().unwrap();
    assert_eq!(seen.posts.len(), 3, "140 runs, about 100 at a time");
    for (path, headers) in &seen.posts {
        assert_eq!(path, "/runs/multipart");
        assert_eq!(headers["x-api-key"], "the-key");
        assert_eq!(headers["x-tenant-id"], "0198f0c1-0000-7000-8000-000000000001");
    }
}

#[tokio::test]
async fn passing_failures_are_retried_until_they_pass() {
    for status in [408, 425, 429, 500, 502, 503, 504, 401, 403, 302] {
        let rig = Rig::new(5).await;
        rig.script(&[(status, None), (status, None), (status, None)]);
        rig.upload().await;
        rig.assert_all_once(5);
        assert!(rig.dead_letters().is_empty(), "status {status}");
        assert_eq!(rig.fake.state.lock().unwrap().posts.len(), 4, "status {status}");
    }
}

#[tokio::test]
async fn the_servers_wait_is_kept() {
    let rig = Rig::new(1).await;
    rig.script(&[(429, Some("1"))]);
    let start = Instant::now();
    rig.upload().await;
    assert!(start.elapsed() >= Duration::from_secs(1));
    rig.assert_all_once(1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_has_accepted_nothing() {
    let rig = Rig::new(5).await;
    rig.script(&[(202, Some("cut")), (200, Some("cut"))]);
    rig.upload().await;
    rig.assert_all_once(5);
    assert_eq!(rig.fake.state.lock().unwrap().posts.len(), 3);
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_split() {
    let rig = Rig::new(9).await;
    rig.fake.state.lock().unwrap().max_runs = 3;
    rig.upload().await;
    rig.assert_all_once(9);
    assert!(rig.dead_letters().is_empty());
}

#[tokio::test]
async fn a_run_refused_for_good_is_parked_alone() {
    let rig = Rig::new(9).await;
    rig.fake.state.lock().unwrap().poison = Some(id(4));
    rig.upload().await;
    let letters = rig.dead_letters();
    assert_eq!(letters.len(), 1);
    assert_eq!((&letters[0]["run"]["id"], &letters[0]["status"]), (&json!(id(4)), &json!(422)));
    assert_eq!(letters[0]["response"], "no such field");
    assert_eq!(rig.fake.state.lock().unwrap().accepted.len(), 17);
}

#[tokio::test]
async fn a_server_without_multipart_gets_batches() {
    let rig = Rig::new(5).await;
    rig.fake.state.lock().unwrap().no_multipart = true;
    rig.upload().await;
    rig.assert_all_once(5);
    assert_eq!(rig.fake.state.lock().unwrap().posts.last().unwrap().0, "/runs/batch");
}

#[tokio::test]
async fn an_address_that_knows_neither_path_loses_nothing() {
    let rig = Rig::new(2).await;
    rig.script(&[(404, None), (404, None), (404, None), (404, None)]);
    rig.upload().await;
    rig.assert_all_once(2);
    assert!(rig.dead_letters().is_empty());
}

#[tokio::test]
async fn killed_at_any_post_and_started_again_every_run_is_there_once() {
    for kill_at in 1..6 {
        let mut rig = Rig::new(12).await;
        rig.fake.state.lock().unwrap().max_runs = 7;
        let (_stop, task) = rig.start();
        while rig.fake.state.lock().unwrap().posts.len() < kill_at {
            rig.fake.changed.notified().await;
        }
        task.abort();
        assert!(task.await.is_err() || kill_at > 3);
        rig.spool = open_spool(rig.dir.path(), std::slice::from_ref(&rig.name));
        rig.upload().await;
        rig.assert_all_once(12);
        assert!(rig.dead_letters().is_empty());
    }
}

#[tokio::test]
async fn told_to_end_while_the_server_is_down_it_ends_and_keeps_the_runs() {
    let rig = Rig::new(3).await;
    rig.script(&[(503, Some("3600"))]);
    let (stop, task) = rig.start();
    while rig.fake.state.lock().unwrap().posts.is_empty() {
        rig.fake.changed.notified().await;
    }
    stop.send(true).unwrap();
    task.await.unwrap();
    assert_eq!(rig.spool.stats().waiting, 3);
    rig.upload().await;
    rig.assert_all_once(3);
}

#[tokio::test]
async fn what_is_not_sampled_is_passed_over() {
    let rig = Rig::new(3).await;
    let (stop, stopping) = watch::channel(false);
    let uploader = rig.uploader(Config { sampling_rate: 0.0, ..rig.config() }, stopping);
    let task = tokio::spawn(uploader.run());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while rig.spool.stats().waiting > 0 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    stop.send(true).unwrap();
    task.await.unwrap();
    assert!(rig.fake.state.lock().unwrap().posts.is_empty());
}

#[tokio::test]
async fn bodies_are_compressed_as_the_server_says_and_not_where_it_does_not() {
    for (flags, refused, disabled, expected) in [
        (json!({"zstd_compression_enabled": true, "gzip_body_enabled": true}), None, false, Some("zstd")),
        (json!({"zstd_compression_enabled": false, "gzip_body_enabled": true}), None, false, Some("gzip")),
        (json!({}), None, false, None),
        (json!({"zstd_compression_enabled": true}), None, true, None),
        (json!({"zstd_compression_enabled": true}), Some("zstd"), false, None),
    ] {
        let rig = Rig::new(5).await;
        {
            let mut seen = rig.fake.state.lock().unwrap();
            (seen.flags, seen.refuse_encoding) = (flags.clone(), refused);
        }
        let config = Config { compress: !disabled, ..rig.config() };
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(rig.uploader(config, stopping).run());
        rig.until_delivered().await;
        stop.send(true).unwrap();
        task.await.unwrap();
        rig.assert_all_once(5);
        let seen = rig.fake.state.lock().unwrap();
        let (_, headers) = seen.posts.last().unwrap();
        let encoding = headers.get("content-encoding").map(|value| value.to_str().unwrap());
        assert_eq!(encoding, expected, "{flags} {refused:?} {disabled}");
    }
}

#[tokio::test]
async fn a_dead_letter_is_sent_again_when_told_and_is_the_same_run() {
    let rig = Rig::new(9).await;
    rig.fake.state.lock().unwrap().poison = Some(id(4));
    rig.upload().await;
    assert_eq!(rig.dead_letters().len(), 1);
    let letters = DeadLetters::new(rig.dir.path());
    // Refused again, it is a dead letter again.
    letters.retry(&Selection::All).unwrap();
    let (stop, task) = rig.start();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let wait_for = async |what: &dyn Fn() -> bool| {
        while !what() {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    wait_for(&|| rig.dead_letters().len() == 1 && letters.waiting().unwrap().is_empty()).await;
    rig.fake.state.lock().unwrap().poison = None;
    letters.retry(&Selection::All).unwrap();
    wait_for(&|| rig.fake.state.lock().unwrap().accepted.len() == 18 && letters.waiting().unwrap().is_empty()).await;
    stop.send(true).unwrap();
    task.await.unwrap();
    rig.assert_all_once(9);
    assert!(rig.dead_letters().is_empty());
}

#[test]
fn a_run_read_back_is_the_run_that_was_written() {
    let record = json!({"v": 1, "id": id(1), "api": "chat", "status": 502, "messages": [1e2, {"a": "é"}]});
    let (line, _) = line::parse(line(&record.to_string()).as_bytes()).unwrap();
    for run in tree::tree(&line, &Shape::default()) {
        let whole: Box<serde_json::value::RawValue> = serde_json::from_slice(&run.whole().unwrap()).unwrap();
        let read = Run::read(&whole).unwrap();
        assert_eq!(read.json(), run.json());
        assert!(read.fields.iter().any(|(name, _)| *name == "inputs"));
    }
}
