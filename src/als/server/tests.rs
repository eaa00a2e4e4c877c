use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;

use super::super::arrivals::{self, Arrivals};
use super::super::proto::{AccessLogCommon, HttpAccessLogEntries};
use super::*;

struct Rig {
    address: std::net::SocketAddr,
    arrivals: Arrivals,
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Rig {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (entrance, arrivals) = arrivals::channel(64 << 20);
        let metrics = Arc::new(Metrics::new());
        let (stop, stopping) = watch::channel(false);
        let server = Server { entrance, metrics: Arc::clone(&metrics) };
        Self { address, arrivals, metrics, stop, task: tokio::spawn(server.run(listener, stopping)) }
    }

    /// Streams the messages and ends the stream; the `grpc-status`.
    async fn send(&self, path: &str, messages: &[StreamAccessLogsMessage]) -> String {
        let mut body = Vec::new();
        for message in messages {
            let encoded = message.encode_to_vec();
            body.push(0);
            body.extend_from_slice(&u32::try_from(encoded.len()).unwrap().to_be_bytes());
            body.extend_from_slice(&encoded);
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let request = HttpRequest::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = |headers: &tonic::codegen::http::HeaderMap| {
            headers.get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
        };
        if let Some(status) = status(response.headers()) {
            return status;
        }
        let collected = response.into_body().collect().await.unwrap();
        collected.trailers().and_then(status).unwrap()
    }

    fn lines(&mut self) -> Vec<String> {
        let taken = self.arrivals.take(usize::MAX);
        taken.into_iter().map(|arrived| String::from_utf8(arrived.split().0).unwrap()).collect()
    }

    fn counted(&self, line: &str) -> bool {
        self.metrics.encode().unwrap().contains(line)
    }
}

fn entry(tag: &str, line: &str) -> HttpAccessLogEntry {
    let custom_tags = [(tag.to_owned(), line.to_owned())].into();
    HttpAccessLogEntry { common_properties: Some(AccessLogCommon { custom_tags }) }
}

fn message(entries: Vec<HttpAccessLogEntry>) -> StreamAccessLogsMessage {
    StreamAccessLogsMessage { http_logs: Some(HttpAccessLogEntries { log_entry: entries }) }
}

#[tokio::test]
async fn lines_arrive_in_order_and_what_is_none_is_counted() {
    let mut rig = Rig::new().await;
    let long = "x".repeat(1 << 20);
    let messages = [
        message(vec![entry("parapet", "one\n"), entry("other", "-"), entry("parapet", "two")]),
        StreamAccessLogsMessage::default(),
        message(vec![entry("parapet", "a\nb"), entry("parapet", " \n"), HttpAccessLogEntry::default()]),
        message(vec![entry("parapet", &long)]),
    ];
    assert_eq!(rig.send(PATH, &messages).await, "0");
    assert_eq!(rig.lines(), ["one".to_owned(), "two".to_owned(), long]);
    for (outcome, count) in [("taken", 3), ("without_line", 2), ("not_a_line", 2)] {
        assert!(rig.counted(&format!("parapet_als_entries_total{{outcome=\"{outcome}\"}} {count}")), "{outcome}");
    }
}

#[tokio::test]
async fn a_message_beyond_the_bound_ends_its_stream_and_no_other() {
    let mut rig = Rig::new().await;
    let huge = message(vec![entry("parapet", &"x".repeat(MAX_MESSAGE + 1))]);
    // OUT_OF_RANGE: tonic's word for it.
    assert_eq!(rig.send(PATH, &[huge]).await, "11");
    assert!(rig.counted("parapet_als_entries_total{outcome=\"stream_broken\"} 1"));
    let long = message(vec![entry("parapet", &"x".repeat(MAX_LINE + 1)), entry("parapet", "one")]);
    assert_eq!(rig.send(PATH, &[long]).await, "0");
    assert!(rig.counted("parapet_als_entries_total{outcome=\"too_long\"} 1"));
    assert_eq!(rig.lines(), ["one"]);
}

#[tokio::test]
async fn other_services_are_not_there() {
    let rig = Rig::new().await;
    assert_eq!(rig.send("/envoy.service.accesslog.v3.AccessLogService/Other", &[]).await, "12");
}

#[tokio::test]
async fn it_ends_when_told_to() {
    let rig = Rig::new().await;
    assert_eq!(rig.send(PATH, &[message(vec![entry("parapet", "one")])]).await, "0");
    rig.stop.send(true).unwrap();
    rig.task.await.unwrap();
    assert!(TcpStream::connect(rig.address).await.is_err());
}
