use std::collections::{HashMap, VecDeque};
use std::io::Read as _;
use std::path::Path;
use std::sync::Mutex;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest as Official;
use serde_json::{Value, json};

use super::super::config::Exports;
use super::super::proto::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use super::*;
use crate::langsmith::dead_letter::Selection;
use crate::spool::{self, Spool};

/// A collector that keeps spans by id and answers what it is told to.
#[derive(Default)]
struct Fake {
    state: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Answers to the next posts, before the fake judges by itself.
    script: VecDeque<(u16, Option<&'static str>)>,
    /// A trace whose spans are answered with this status.
    poison: Option<(String, u16)>,
    max_spans: usize,
    /// Spans that a good answer says it refused.
    rejects: i64,
    /// How often each span was accepted.
    accepted: HashMap<Vec<u8>, usize>,
    posts: usize,
    headers: Vec<HeaderMap>,
}

async fn answer(State(fake): State<Arc<Fake>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut seen = fake.state.lock().unwrap();
    seen.posts += 1;
    seen.headers.push(headers.clone());
    if let Some((status, after)) = seen.script.pop_front() {
        let after = after.map(|after| [("retry-after", after)]);
        return (
            StatusCode::from_u16(status).unwrap(),
            after.map_or_else(HeaderMap::new, |after| {
                after.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
            }),
        )
            .into_response();
    }
    let plain = if headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip") {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(body.as_ref()).read_to_end(&mut plain).unwrap();
        plain
    } else {
        body.to_vec()
    };
    let request = Official::decode(plain.as_slice()).unwrap();
    let spans: Vec<_> =
        request.resource_spans.iter().flat_map(|one| &one.scope_spans).flat_map(|one| &one.spans).collect();
    if seen.max_spans > 0 && spans.len() > seen.max_spans {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    if let Some((poison, status)) = &seen.poison {
        let poison = poison.parse::<uuid::Uuid>().unwrap();
        if spans.iter().any(|span| span.trace_id == poison.as_bytes()) {
            return (StatusCode::from_u16(*status).unwrap(), "it is the trace").into_response();
        }
    }
    for span in spans {
        *seen.accepted.entry(span.span_id.clone()).or_default() += 1;
    }
    let partial = ExportTracePartialSuccess { rejected_spans: seen.rejects, error_message: "too old".to_owned() };
    ExportTraceServiceResponse { partial_success: (seen.rejects > 0).then_some(partial) }
        .encode_to_vec()
        .into_response()
}

struct Rig {
    fake: Arc<Fake>,
    spool: Arc<Spool>,
    dir: tempfile::TempDir,
    endpoint: String,
    metrics: Arc<Metrics>,
}

fn id(n: usize) -> String {
    format!("01a20791-8327-7764-a3ea-{n:012}")
}

fn open_spool(dir: &Path) -> Arc<Spool> {
    Arc::new(
        Spool::open(spool::Options {
            dir: dir.join("spool"),
            segment_bytes: 1 << 16,
            max_bytes: 1 << 20,
            retention: Duration::from_secs(3600),
            destinations: vec!["otlp".to_owned()],
        })
        .unwrap(),
    )
}

impl Rig {
    /// Every record makes two spans.
    async fn new(records: usize) -> Self {
        Self::with(records, &json!({})).await
    }

    async fn with(records: usize, more: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spool = open_spool(dir.path());
        for n in 0..records {
            let mut record = json!({
                "v": 1, "id": id(n), "start_us": 1_795_423_306_535_477_u64, "api": "chat", "status": 200,
                "cache": {"outcome": "miss"},
            });
            record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spool.append(&[line::tests::line(&record.to_string()).as_bytes()]).unwrap();
        }
        spool.publish();
        let fake = Arc::new(Fake::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", axum::routing::post(answer)).with_state(Arc::clone(&fake));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { fake, spool, dir, endpoint, metrics: Arc::new(Metrics::new()) }
    }

    fn set(&self, set: impl FnOnce(&mut Seen)) {
        set(&mut self.fake.state.lock().unwrap());
    }

    fn start(&self) -> (watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let (stop, stopping) = watch::channel(false);
        let sampling = Sampling::from_env(|_| None).unwrap();
        let get = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(self.endpoint.clone()),
            "OTEL_EXPORTER_OTLP_HEADERS" => Some("authorization=Bearer%20the-key".to_owned()),
            "OTEL_EXPORTER_OTLP_COMPRESSION" => Some("gzip".to_owned()),
            _ => None,
        };
        let config = Exports::from_env(get, &sampling).unwrap().otlp.unwrap();
        let wait = Duration::from_millis(1);
        let exporter = Exporter {
            client: Arc::new(Client::new(config).unwrap()),
            sampling: Arc::new(sampling),
            queue: self.spool.queue("otlp"),
            dead_letters: Arc::new(DeadLetters::otlp(self.dir.path())),
            metrics: Arc::clone(&self.metrics),
            policy: Policy { first: wait, max: wait * 4, operator: wait },
            stop: stopping,
        };
        (stop, tokio::spawn(exporter.run()))
    }

    /// Exports until nothing waits.
    async fn export(&self) {
        let (stop, task) = self.start();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while self.spool.stats().waiting > 0 {
            assert!(tokio::time::Instant::now() < deadline, "still waiting: {:?}", self.spool.stats());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.send(true).unwrap();
        task.await.unwrap();
    }

    fn dead_letters(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("dead-letters-otlp.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn counted(&self, metric: &str) -> String {
        let text = self.metrics.encode().unwrap();
        text.lines().filter(|line| line.starts_with(metric)).map(|line| line.to_owned() + "\n").collect()
    }

    fn accepted(&self) -> usize {
        self.fake.state.lock().unwrap().accepted.len()
    }
}

#[tokio::test]
async fn every_span_arrives_once_compressed_and_with_the_headers() {
    let rig = Rig::new(30).await;
    rig.export().await;
    let seen = rig.fake.state.lock().unwrap();
    assert_eq!(seen.accepted.len(), 60);
    assert!(seen.accepted.values().all(|&count| count == 1));
    for headers in &seen.headers {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        assert_eq!(headers["content-encoding"], "gzip");
        assert_eq!(headers["authorization"], "Bearer the-key");
    }
}

#[tokio::test]
async fn what_passes_is_waited_for_and_nothing_is_lost() {
    let rig = Rig::new(5).await;
    let script = [429, 502, 503, 504, 408, 500, 401, 404, 302];
    rig.set(|seen| seen.script.extend(script.map(|status| (status, None))));
    rig.export().await;
    assert_eq!((rig.accepted(), rig.dead_letters().len()), (10, 0));
    assert_eq!(rig.fake.state.lock().unwrap().posts, script.len() + 1);
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let rig = Rig::new(1).await;
    rig.set(|seen| seen.script.push_back((503, Some("1"))));
    let started = tokio::time::Instant::now();
    rig.export().await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(rig.accepted(), 2);
}

#[tokio::test]
async fn a_record_that_is_refused_is_parked_alone_and_the_others_arrive() {
    for status in [400, 422, 500, 413] {
        let rig = Rig::new(9).await;
        rig.set(|seen| seen.poison = Some((id(4), status)));
        rig.export().await;
        assert_eq!(rig.accepted(), 16, "{status}");
        let letters = rig.dead_letters();
        assert_eq!(letters.len(), 1, "{status}");
        assert_eq!((&letters[0]["status"], &letters[0]["line"]["record"]["id"]), (&json!(status), &json!(id(4))));
        assert!(rig.counted("parapet_otlp_spans").contains(r#"{outcome="parked"} 2"#));
    }
}

#[tokio::test]
async fn dead_letters_are_sent_again_when_an_operator_says_so() {
    let rig = Rig::new(3).await;
    rig.set(|seen| seen.poison = Some((id(1), 400)));
    rig.export().await;
    assert_eq!((rig.accepted(), rig.dead_letters().len()), (4, 1));
    let letters = DeadLetters::otlp(rig.dir.path());
    let again = async |accepted| {
        assert_eq!(letters.retry(&Selection::All).unwrap(), 1);
        let (stop, task) = rig.start();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while rig.accepted() < accepted || !letters.retries("otlp", 9).unwrap().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "{} of {accepted}", rig.accepted());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        stop.send(true).unwrap();
        task.await.unwrap();
    };
    again(4).await;
    assert_eq!(rig.dead_letters().len(), 1, "refused again");
    rig.set(|seen| seen.poison = None);
    again(6).await;
    assert!(rig.dead_letters().is_empty());
}

#[tokio::test]
async fn what_is_too_large_is_split() {
    let rig = Rig::new(20).await;
    rig.set(|seen| seen.max_spans = 6);
    rig.export().await;
    assert_eq!((rig.accepted(), rig.dead_letters().len()), (40, 0));
}

#[tokio::test]
async fn a_partial_success_is_counted_and_not_repeated() {
    let rig = Rig::new(3).await;
    rig.set(|seen| seen.rejects = 2);
    rig.export().await;
    assert_eq!(rig.fake.state.lock().unwrap().posts, 1);
    let counted = rig.counted("parapet_otlp_spans");
    assert!(
        counted.contains(r#"{outcome="rejected"} 2"#) && counted.contains(r#"{outcome="accepted"} 4"#),
        "{counted}"
    );
    let letters = rig.dead_letters();
    assert_eq!((letters.len(), &letters[0]["response"]), (3, &json!("too old")));
}

#[tokio::test]
async fn what_is_not_sampled_stays() {
    let caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    for more in [json!({"unsampled": true}), json!({"traceparent": caller})] {
        let rig = Rig::with(3, &more).await;
        rig.export().await;
        assert_eq!(rig.fake.state.lock().unwrap().posts, 0, "{more}");
    }
    // A client's own word of that name is none of ours.
    let rig = Rig::with(1, &json!({"params": {"unsampled": true}})).await;
    rig.export().await;
    assert_eq!(rig.accepted(), 2);
}

#[tokio::test]
async fn a_stop_while_the_collector_is_away_keeps_what_waits_for_the_next_start() {
    let mut rig = Rig::new(4).await;
    rig.set(|seen| seen.script.extend(vec![(503, Some("3600")); 3]));
    let (stop, task) = rig.start();
    while rig.fake.state.lock().unwrap().posts == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.send(true).unwrap();
    task.await.unwrap();
    assert_eq!(rig.spool.stats().waiting, 4);
    rig.set(|seen| seen.script.clear());
    rig.spool = open_spool(rig.dir.path());
    rig.export().await;
    assert_eq!(rig.accepted(), 8);
}

#[test]
fn requests_are_bounded_but_one_large_record_passes() {
    let traced = |size| Traced { id: uuid::Uuid::nil(), line: 0, spans: Vec::new(), size };
    let sizes = [REQUEST_BYTES / 2, REQUEST_BYTES / 2, 1, 3 * REQUEST_BYTES, 1, 1];
    assert_eq!(chunks(&sizes.map(traced)), [0..2, 2..3, 3..4, 4..6]);
    assert!(chunks(&[]).is_empty());
}
