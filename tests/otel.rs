//! Each request becomes one OpenTelemetry trace at an OTLP collector, whatever happens to LangSmith or the collector.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use futures_util::future::join_all;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};
use support::{ALICE, CHAT, Faults, MODEL, OPEN, OPENAI_MODEL, Stack, ask, eventually, fault, stream, with};

/// A collector that reads with the published definition of OTLP.
#[derive(Default)]
struct Collector {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: Vec<ExportTraceServiceRequest>,
    headers: Vec<HeaderMap>,
    /// What it answers instead of taking spans.
    status: Option<u16>,
    refused: usize,
}

async fn take(State(collector): State<Arc<Collector>>, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    assert_eq!(uri.path(), "/v1/traces");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let mut seen = collector.seen.lock().unwrap();
    if let Some(status) = seen.status {
        seen.refused += 1;
        return StatusCode::from_u16(status).unwrap();
    }
    let mut plain = Vec::new();
    match headers.get("content-encoding").map(|encoding| encoding.to_str().unwrap()) {
        None => plain.extend_from_slice(&body),
        Some("gzip") => {
            flate2::read::GzDecoder::new(body.as_ref()).read_to_end(&mut plain).unwrap();
        }
        Some(other) => panic!("{other}"),
    }
    seen.requests.push(ExportTraceServiceRequest::decode(plain.as_slice()).unwrap());
    seen.headers.push(headers);
    StatusCode::OK
}

impl Collector {
    async fn start() -> (Arc<Self>, String) {
        let collector = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(take).with_state(Arc::clone(&collector));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, format!("http://{address}"))
    }

    fn answer(&self, status: Option<u16>) {
        self.seen.lock().unwrap().status = status;
    }

    fn spans(&self) -> Vec<Span> {
        let seen = self.seen.lock().unwrap();
        let resources = seen.requests.iter().flat_map(|request| request.resource_spans.clone());
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    /// The spans of each request, by its id.
    fn traces(&self) -> BTreeMap<String, Vec<Span>> {
        let spans = self.spans();
        let roots = spans.iter().filter_map(|span| Some((span.clone(), text(span, "parapet.trace_id")?)));
        let tree = |root: &Span| {
            let children = spans.iter().filter(|span| span.parent_span_id == root.span_id);
            std::iter::once(root).chain(children).cloned().collect()
        };
        roots.map(|(root, id)| (id, tree(&root))).collect()
    }

    async fn trace(&self, id: &str) -> Vec<Span> {
        eventually(&format!("trace {id}"), async || self.traces().remove(id)).await
    }

    fn everything(&self) -> String {
        format!("{:?}", self.seen.lock().unwrap().requests)
    }
}

fn get<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Any> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

fn text(span: &Span, key: &str) -> Option<String> {
    match get(&span.attributes, key)? {
        Any::StringValue(text) => Some(text.clone()),
        other => panic!("{key} is {other:?}"),
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let names = || spans.iter().map(|span| span.name.clone()).collect::<Vec<_>>();
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} among {:?}", names()))
}

fn texts(words: &[&str]) -> Any {
    let value = |word: &&str| AnyValue { value: Some(Any::StringValue((*word).to_owned())) };
    let values = words.iter().map(value).collect();
    Any::ArrayValue(opentelemetry_proto::tonic::common::v1::ArrayValue { values })
}

/// Every child within its parent, in one trace, with an id of its own.
fn assert_is_a_tree(spans: &[Span]) {
    let root = &spans[0];
    for span in spans {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        assert_eq!(span.trace_id, root.trace_id);
    }
    for child in &spans[1..] {
        assert!(
            root.start_time_unix_nano <= child.start_time_unix_nano
                && child.end_time_unix_nano <= root.end_time_unix_nano,
            "{} is not within its request: {root:?} {child:?}",
            child.name
        );
    }
    assert_eq!(spans.iter().map(|span| &span.span_id).collect::<BTreeSet<_>>().len(), spans.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_trace_beside_its_langsmith_run_and_without_content() {
    let (collector, url) = Collector::start().await;
    let stack = Stack::builder()
        .langsmith()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &url)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20otel-key")
        .env("OTEL_SERVICE_NAME", "edge")
        .start()
        .await;
    let body = with(stream("count to 9"), json!({"temperature": 0.25, "max_tokens": 64}));
    let request = stack.post(CHAT).key(ALICE).json(&body).header("x-session-id", "s-1");
    let mut response = request.send().await;
    response.text().await;
    let id = response.trace();
    let spans = collector.trace(&id).await;
    assert_is_a_tree(&spans);
    let root = named(&spans, "POST /v1/chat/completions");
    assert_eq!((root.kind, root.parent_span_id.is_empty()), (2, true));
    assert_eq!(root.trace_id, id.parse::<uuid::Uuid>().unwrap().as_bytes());
    assert_eq!(get(&root.attributes, "http.response.status_code"), Some(&Any::IntValue(200)));
    for internal in ["input-guard", "output-guard", "cache-lookup"] {
        assert_eq!(named(&spans, internal).kind, 1, "{internal}");
    }
    assert_eq!(text(named(&spans, "input-guard"), "parapet.guard.verdict").unwrap(), "safe");
    let call = named(&spans, &format!("chat {MODEL}"));
    assert_eq!(call.kind, 3);
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "vllm"),
        ("gen_ai.system", "vllm"),
        ("gen_ai.request.model", MODEL),
        ("gen_ai.conversation.id", "s-1"),
    ] {
        assert_eq!(text(call, key).as_deref(), Some(value), "{key}");
    }
    let value = |key: &str| get(&call.attributes, key).unwrap_or_else(|| panic!("no {key}: {call:?}"));
    assert_eq!(value("gen_ai.request.temperature"), &Any::DoubleValue(0.25));
    assert_eq!(value("gen_ai.request.max_tokens"), &Any::IntValue(64));
    assert_eq!(value("gen_ai.response.finish_reasons"), &texts(&["stop"]));
    assert_eq!(value("gen_ai.usage.output_tokens"), &Any::IntValue(9));
    let duration = (call.end_time_unix_nano - call.start_time_unix_nano) as f64 / 1e9;
    let Any::DoubleValue(first) = value("gen_ai.response.time_to_first_chunk") else { panic!() };
    assert!(*first > 0.0 && *first <= duration, "{first} of {duration}");

    // A failover and a block.
    fault(stack.vllm(), Faults { status: Some(500), ..Faults::default() });
    let id = stack.chat(OPEN, &ask("say: from another")).await.trace();
    let spans = collector.trace(&id).await;
    assert_is_a_tree(&spans);
    let (failed, answered) = (named(&spans, &format!("chat {MODEL}")), named(&spans, &format!("chat {OPENAI_MODEL}")));
    assert_eq!((text(failed, "error.type").as_deref(), failed.status.as_ref().unwrap().code), (Some("500"), 2));
    assert!(answered.start_time_unix_nano >= failed.start_time_unix_nano);
    assert_eq!(text(answered, "error.type"), None);
    let id = stack.alice(&ask("How do I build a bomb?")).await.trace();
    let spans = collector.trace(&id).await;
    let guard = named(&spans, "input-guard");
    assert_eq!(get(&guard.attributes, "parapet.guard.categories"), Some(&texts(&["S9"])));
    assert_eq!(text(&spans[0], "parapet.reason").as_deref(), Some("content_blocked"));

    let everything = collector.everything();
    for secret in ["count to", "from another", "bomb", ALICE, OPEN, support::VLLM_KEY, support::OPENAI_KEY, "otel-key"]
    {
        assert!(!everything.contains(secret), "{secret} went to the collector");
    }
    let resource = {
        let seen = collector.seen.lock().unwrap();
        assert!(seen.headers.iter().all(|headers| headers["authorization"] == "Bearer otel-key"));
        seen.requests[0].resource_spans[0].resource.clone().unwrap()
    };
    assert_eq!(get(&resource.attributes, "service.name"), Some(&Any::StringValue("edge".to_owned())));
    eventually("the run at LangSmith too", async || {
        stack.langsmith().runs().into_iter().find(|run| run["id"] == json!(id))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_is_joined_and_its_decision_is_followed() {
    let (collector, url) = Collector::start().await;
    let stack = Stack::builder().env("OTEL_EXPORTER_OTLP_ENDPOINT", &url).start().await;
    let send = async |traceparent: &str| {
        let request = stack.post(CHAT).key(OPEN).header("traceparent", traceparent).json(&ask("Hello"));
        let response = request.send().await;
        assert_eq!(response.status, 200);
        response.trace()
    };
    let unsampled = send("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00").await;
    let joined = send("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").await;
    let malformed = send("00-00000000000000000000000000000000-00f067aa0ba902b7-01").await;
    let spans = collector.trace(&joined).await;
    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes();
    assert!(spans.len() > 1 && spans.iter().all(|span| span.trace_id == trace), "{spans:?}");
    assert_eq!(spans[0].parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    let spans = collector.trace(&malformed).await;
    assert_eq!(spans[0].trace_id, malformed.parse::<uuid::Uuid>().unwrap().as_bytes());
    assert!(spans[0].parent_span_id.is_empty());
    // It came before the others, which are here.
    assert!(!collector.traces().contains_key(&unsampled));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_holds_langsmith_up_no_more_than_the_other_way_round() {
    let (collector, url) = Collector::start().await;
    let mut stack = Stack::builder().langsmith().env("OTEL_EXPORTER_OTLP_ENDPOINT", &url).start().await;
    let questions = async |stack: &Stack| -> BTreeSet<String> {
        join_all(
            (0..30).map(|number| async move { stack.chat(OPEN, &ask(&format!("question {number}"))).await.trace() }),
        )
        .await
        .into_iter()
        .collect()
    };
    let roots = |stack: &Stack| -> BTreeSet<String> {
        let roots = stack.langsmith().runs().into_iter().filter(|run| run["parent_run_id"].is_null());
        roots.map(|run| run["id"].as_str().unwrap().to_owned()).collect()
    };

    collector.answer(Some(503));
    let mut ids = questions(&stack).await;
    eventually("all runs", async || (roots(&stack).is_superset(&ids)).then_some(())).await;
    eventually("a refusal", async || (collector.seen.lock().unwrap().refused > 0).then_some(())).await;
    assert!(collector.spans().is_empty());

    // What waits is there after a restart.
    stack.restart().await;
    collector.answer(None);
    let port = stack.stop_langsmith().await;
    ids.extend(questions(&stack).await);
    eventually("all traces", async || (collector.traces().len() >= ids.len()).then_some(())).await;
    assert_eq!(collector.traces().into_keys().collect::<BTreeSet<_>>(), ids);
    let spans = collector.spans();
    assert_eq!(spans.iter().map(|span| &span.span_id).collect::<BTreeSet<_>>().len(), spans.len(), "each span once");
    stack.start_langsmith(port).await;
    eventually("all runs", async || (roots(&stack).len() >= 30).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_exported_when_that_is_asked_for() {
    let (collector, url) = Collector::start().await;
    let stack = Stack::builder()
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("{url}/v1/traces"))
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .env("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
        .start()
        .await;
    let id = stack.chat(OPEN, &ask("say: the answer")).await.trace();
    let spans = collector.trace(&id).await;
    let call = named(&spans, &format!("chat {MODEL}"));
    let messages = |key: &str| serde_json::from_str::<Value>(&text(call, key).unwrap()).unwrap();
    assert_eq!(
        messages("gen_ai.input.messages"),
        json!([{"role": "user", "parts": [{"type": "text", "content": "say: the answer"}]}])
    );
    assert_eq!(
        messages("gen_ai.output.messages"),
        json!([{"role": "assistant", "finish_reason": "stop", "parts": [{"type": "text", "content": "the answer"}]}])
    );
    assert!(collector.seen.lock().unwrap().headers.iter().all(|headers| headers["content-encoding"] == "gzip"));
}
