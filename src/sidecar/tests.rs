use std::io::Write as _;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use serde_json::{Value, json};

use super::*;
use crate::accesslog::line::tests::line;

const MINE: &str = "01a20791-8327-7764-a3ea-000000000001";
const THEIRS: &str = "01a20791-8327-7764-a3ea-000000000002";

fn options(data_dir: &Path, admin: &str) -> Options {
    Options {
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 0,
        als_port: 0,
        data_dir: data_dir.to_owned(),
        access_log: None,
        admin_port: 0,
        admin_url: Some(admin.to_owned()),
        envoy_config: None,
        hosts: Vec::new(),
        rotate_bytes: 256 << 20,
        cache_bytes: 1 << 20,
        redis_url: None,
        redis_prefix: String::new(),
        spool_bytes: 1 << 20,
        vllm_url: None,
        load_urls: String::new(),
        retention_hours: 1,
    }
}

fn config(endpoint: Option<&str>) -> Config {
    Config::from_env(|name| endpoint.filter(|_| name == "LANGSMITH_ENDPOINT").map(str::to_owned)).unwrap()
}

fn write(data_dir: &Path, id: &str, tenant: &str) {
    let now_us = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
    let record = json!({
        "v": 1, "id": id, "api": "chat", "status": 200, "tenant": tenant, "start_us": now_us, "end_us": now_us + 1000,
        "answers": [{"content": "x", "finish_reason": "stop"}],
        "cache": {"outcome": "miss", "key": "ab".repeat(32), "store_s": 60},
    });
    let path = data_dir.join("log/access.jsonl");
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all((line(&record.to_string()) + "\n").as_bytes()).unwrap();
}

/// Whatever is posted, by path.
type Posts = Arc<Mutex<Vec<(String, Bytes)>>>;

async fn server() -> (String, Posts) {
    async fn answer(State(posts): State<Posts>, uri: Uri, body: Bytes) -> StatusCode {
        posts.lock().unwrap().push((uri.path().to_owned(), body));
        if uri.path() == "/info" { StatusCode::NOT_FOUND } else { StatusCode::ACCEPTED }
    }
    let posts = Posts::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(Arc::clone(&posts));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, posts)
}

fn posted(posts: &Posts, path: &str) -> Vec<Bytes> {
    posts.lock().unwrap().iter().filter(|(seen, _)| seen == path).map(|(_, body)| body.clone()).collect()
}

async fn until(mut what: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !what().await {
        assert!(tokio::time::Instant::now() < deadline, "waited too long");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Running {
    url: String,
    shutdown: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    http: reqwest::Client,
}

impl Running {
    async fn start(options: Options, config: Config) -> Self {
        crate::langsmith::client::install_crypto();
        let exports = Exports { langsmith: config.uploads(), otlp: None };
        let sidecar = start(options, config, exports).await.unwrap();
        let url = format!("http://{}", sidecar.address);
        let (shutdown, told) = oneshot::channel();
        let task = tokio::spawn(sidecar.until(async {
            let _ = told.await;
        }));
        Self { url, shutdown, task, http: reqwest::Client::new() }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn vote(&self, tenant: &str, trace: &str) -> (u16, Value) {
        let answer = self
            .http
            .post(format!("{}/feedback", self.url))
            .header("x-parapet-tenant", tenant)
            .json(&json!({ "trace_id": trace, "score": 1 }))
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn stop(self) {
        self.shutdown.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_becomes_a_run_a_cached_answer_and_a_trace_to_vote_on() {
    let dir = tempfile::tempdir().unwrap();
    let (langsmith, posts) = server().await;
    let running = Running::start(options(dir.path(), &langsmith), config(Some(&langsmith))).await;
    assert_eq!(running.get("/healthz").await, (200, "ok\n".to_owned()));
    let key = format!("/internal/cache/{}", "ab".repeat(32));
    assert_eq!(running.get(&key).await.0, 404);
    let (status, accepted) = running.vote("acme", MINE).await;
    assert_eq!((status, &accepted["status"]), (202, &json!("accepted")));

    write(dir.path(), MINE, "acme");
    write(dir.path(), THEIRS, "globex");
    until(async || posted(&posts, "/feedback").len() == 1 && !posted(&posts, "/runs/multipart").is_empty()).await;
    let sent: Value = serde_json::from_slice(&posted(&posts, "/feedback")[0]).unwrap();
    assert_eq!((&sent["id"], &sent["run_id"], &sent["key"]), (&accepted["id"], &json!(MINE), &json!("user_score")));

    let (status, entry) = running.get(&key).await;
    let entry: parapet_engine::cache::Entry = serde_json::from_str(&entry).unwrap();
    assert_eq!((status, entry.answers[0].content.as_str()), (200, "x"));
    let (status, refused) = running.vote("acme", THEIRS).await;
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("not_found")));

    let runs: Value = serde_json::from_str(&running.get("/runs?limit=1").await.1).unwrap();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 1);
    assert_eq!(runs["runs"][0]["id"], THEIRS);
    assert_eq!(runs["runs"][0]["child_runs"][0]["name"], "cache-lookup");
    let metrics = running.get("/metrics").await.1;
    assert!(metrics.contains(
        r#"parapet_requests_total{tenant="acme",api="chat",status="200",reason="none",outcome="answered"} 1"#
    ));
    let overview = running.get("/").await.1;
    assert!(overview.contains(&format!("/requests/{THEIRS}")) && overview.contains("Too few requests"), "{overview}");
    let (status, request) = running.get(&format!("/requests/{MINE}")).await;
    assert!(status == 200 && request.contains(MINE) && request.contains("Waterfall"), "{request}");
    for missing in ["01a20791-8327-7764-a3ea-00000000abcd", "x"] {
        assert_eq!(running.get(&format!("/requests/{missing}")).await.0, 404);
    }
    running.stop().await;

    // What was uploaded and voted is not repeated, and the cache is kept.
    let running = Running::start(options(dir.path(), &langsmith), config(Some(&langsmith))).await;
    assert_eq!(running.get(&key).await.0, 200);
    write(dir.path(), "01a20791-8327-7764-a3ea-000000000003", "acme");
    until(async || {
        let bodies = posted(&posts, "/runs/multipart");
        bodies.iter().any(|body| body.windows(36).any(|id| id == b"01a20791-8327-7764-a3ea-000000000003"))
    })
    .await;
    let name = format!("name=\"post.{MINE}\"");
    let bodies = posted(&posts, "/runs/multipart");
    let times = bodies.iter().flat_map(|body| body.windows(name.len())).filter(|part| *part == name.as_bytes()).count();
    assert_eq!((times, posted(&posts, "/feedback").len()), (1, 1));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_read_is_given_out_under_our_own_names_only() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(options(dir.path(), "http://127.0.0.1:9"), config(None)).await;
    write(dir.path(), MINE, "acme");
    let page = format!("/requests/{MINE}");
    until(async || running.get(&page).await.0 == 200).await;
    let key = format!("/internal/cache/{}", "ab".repeat(32));
    for path in ["/", &page, "/runs", "/metrics", "/style.css", &key, parapet_engine::admission::PATH] {
        let url = format!("{}{path}", running.url);
        for (host, status) in [("evil.example", 403), ("localhost:1", 200)] {
            let answer = running.http.get(&url).header("host", host).send().await.unwrap();
            assert_eq!(answer.status(), status, "{path} as {host}");
        }
    }
    // A page elsewhere whose name leads here is of the same origin to the browser, and may set any header.
    let vote = json!({ "trace_id": MINE, "score": 1 });
    for (host, status) in [("evil.example", 403), ("127.0.0.1:9090", 202)] {
        let vote = running.http.post(format!("{}/feedback", running.url)).json(&vote);
        let answer = vote.header("host", host).header("x-parapet-tenant", "acme").send().await.unwrap();
        assert_eq!(answer.status(), status, "{host}");
    }
    assert!(running.get("/metrics").await.1.contains(r#"parapet_feedback_total{outcome="accepted"} 1"#));
    // A probe of an orchestrator has a name of its own, and learns nothing.
    let asked = running.http.get(format!("{}/healthz", running.url)).header("host", "parapet.example");
    assert_eq!(asked.send().await.unwrap().status(), 200);

    let answer = running.http.get(format!("{}/", running.url)).send().await.unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'self';") && !policy.contains("script"), "{policy}");
    assert_eq!(
        (&answer.headers()["x-content-type-options"], &answer.headers()["cache-control"]),
        (&"nosniff".parse().unwrap(), &"no-store".parse().unwrap())
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_upload_has_an_age_and_the_last_hour_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody listens there.
    let running = Running::start(options(dir.path(), "http://127.0.0.1:9"), config(Some("http://127.0.0.1:9"))).await;
    assert!(running.get("/metrics").await.1.contains("parapet_spool_oldest_age_seconds 0.0"));
    write(dir.path(), MINE, "acme");
    until(async || running.get("/metrics").await.1.contains("parapet_spool_depth 1")).await;
    let metrics = running.get("/metrics").await.1;
    let age = metrics.lines().find_map(|line| line.strip_prefix("parapet_spool_oldest_age_seconds ")).unwrap();
    assert!(age.parse::<f64>().unwrap() > 0.0, "{age}");
    running.stop().await;
    let running = Running::start(options(dir.path(), "http://127.0.0.1:9"), config(None)).await;
    assert!(running.get("/").await.1.contains(&format!("/requests/{MINE}")));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_upload_runs_stay_local() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(options(dir.path(), "http://127.0.0.1:9"), config(None)).await;
    write(dir.path(), MINE, "acme");
    until(async || running.get("/runs").await.1.contains(MINE)).await;
    assert!(running.get("/metrics").await.1.contains("parapet_spool_depth 0"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sidecars_never_share_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(options(dir.path(), "http://127.0.0.1:9"), config(None)).await;
    let error = start(options(dir.path(), "http://127.0.0.1:9"), config(None), Exports::default()).await.err().unwrap();
    assert!(error.to_string().contains("another sidecar works in"), "{error}");
    running.stop().await;
    Running::start(options(dir.path(), "http://127.0.0.1:9"), config(None)).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_is_rotated_and_the_old_one_removed_when_uploaded() {
    let dir = tempfile::tempdir().unwrap();
    let (both, posts) = server().await;
    // Two lines are too long, one is not.
    let small = Options { rotate_bytes: 450, ..options(dir.path(), &both) };
    let running = Running::start(small, config(Some(&both))).await;
    let (log, old) = (dir.path().join("log/access.jsonl"), dir.path().join("log/access.jsonl.1"));
    write(dir.path(), MINE, "acme");
    let one = std::fs::metadata(&log).unwrap().len();
    assert!(one < 450 && 2 * one > 450, "a line has {one} bytes");
    write(dir.path(), "01a20791-8327-7764-a3ea-000000000003", "acme");
    until(async || old.exists() && !posted(&posts, "/reopen_logs").is_empty()).await;
    assert!(!log.exists());
    write(dir.path(), THEIRS, "acme");
    until(async || !old.exists()).await;
    assert!(log.exists());
    let runs: Value = serde_json::from_str(&running.get("/runs").await.1).unwrap();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 3);
    running.stop().await;
}
