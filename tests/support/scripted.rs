//! A provider whose every byte the test sends itself, at the moment it chooses.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::{MODEL, PATIENCE};

pub struct Scripted {
    requests: Mutex<mpsc::Receiver<Exchange>>,
    pub url: String,
}

impl Scripted {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::channel(16);
        // Whoever asks how it is (health checks, metrics) hears at any time that it is well.
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut exchange = Exchange { stream, request: Vec::new() };
                    if exchange.read_request().await {
                        let _ = sender.send(exchange).await;
                    }
                });
            }
        });
        Self { requests: Mutex::new(requests), url }
    }

    /// The next request, read to its end.
    pub async fn request(&self) -> Exchange {
        let next = async { self.requests.lock().await.recv().await.unwrap() };
        timeout(PATIENCE, next).await.expect("no request comes")
    }
}

pub struct Exchange {
    stream: TcpStream,
    request: Vec<u8>,
}

impl Exchange {
    /// False for a question without a body, which is answered, and for a connection that asks nothing.
    async fn read_request(&mut self) -> bool {
        loop {
            let text = String::from_utf8_lossy(&self.request).to_ascii_lowercase();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                if head.starts_with("get ") {
                    self.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
                    return false;
                }
                let length = head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
                if body.len() >= length.expect("the gateway sends a length").parse().unwrap() {
                    return true;
                }
            }
            let mut bytes = [0; 4096];
            let count = self.stream.read(&mut bytes).await.unwrap_or(0);
            if count == 0 {
                return false;
            }
            self.request.extend_from_slice(&bytes[..count]);
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The head of a stream.
    pub async fn stream_head(&mut self) {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
        self.send(head).await;
    }

    /// One piece of the body.
    pub async fn chunk(&mut self, bytes: &[u8]) {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.send(chunk).await;
    }

    /// As [`Self::send`]; false where the gateway has gone.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    pub async fn try_chunk(&mut self, bytes: &[u8]) -> bool {
        self.try_send(&[format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()).await
    }

    /// One token as one event.
    pub async fn token(&mut self, text: &str) {
        self.event(&delta(json!({"content": text}), Value::Null)).await;
    }

    pub async fn event(&mut self, data: &Value) {
        self.chunk(&event(data)).await;
    }

    /// The finish reason, `[DONE]` and the end of the body.
    pub async fn finish(&mut self) {
        self.event(&delta(json!({}), json!("stop"))).await;
        self.chunk(b"data: [DONE]\n\n").await;
        self.end().await;
    }

    pub async fn end(&mut self) {
        self.send("0\r\n\r\n").await;
    }

    pub async fn answer(&mut self, status: &str, content_type: &str, body: &[u8]) {
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), body].concat()).await;
    }

    /// Waits until the gateway has closed its end.
    pub async fn closed(mut self) {
        let mut bytes = [0; 1024];
        let end = async { while self.stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {} };
        timeout(PATIENCE, end).await.expect("the gateway does not leave");
    }

    /// Whether the gateway is there still, so far as is known.
    pub fn is_open(&self) -> bool {
        let mut byte = [0];
        matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

pub fn delta(delta: Value, finish_reason: Value) -> Value {
    json!({
        "id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    })
}

pub fn event(data: &Value) -> Vec<u8> {
    format!("data: {data}\n\n").into_bytes()
}

/// Long enough for bytes that were let out by mistake to arrive; where nothing may come, time is all there is to wait for.
pub const SETTLED: Duration = Duration::from_millis(150);
