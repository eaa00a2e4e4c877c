//! A small HTTP/1.1 client that shows what a library hides: each chunk as it comes, how a body ended, bytes that are not
//! UTF-8 in a head, a body that never ends.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

pub struct Request {
    address: SocketAddr,
    head: Vec<u8>,
    has_length: bool,
    body: Vec<u8>,
}

impl Request {
    pub fn new(address: SocketAddr, method: &str, path: &str) -> Self {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n").into_bytes();
        Self { address, head, has_length: false, body: Vec::new() }
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.has_length |= ["content-length", "transfer-encoding"].contains(&name);
        self.head.extend_from_slice(name.as_bytes());
        self.head.extend_from_slice(b": ");
        self.head.extend_from_slice(value.as_ref());
        self.head.extend_from_slice(b"\r\n");
        self
    }

    pub fn key(self, key: &str) -> Self {
        self.header("authorization", format!("Bearer {key}"))
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// Sends the head and whatever body there is; the rest may follow on [`Connection::write`].
    pub async fn open(mut self) -> Connection {
        if !self.has_length && !self.body.is_empty() {
            let length = self.body.len();
            self = self.header("content-length", length.to_string());
        }
        self.head.extend_from_slice(b"\r\n");
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&self.head).await.unwrap();
        // A server that refuses by the head may have closed already.
        let _ = stream.write_all(&self.body).await;
        Connection { stream, buffer: Vec::new() }
    }

    /// The answer's head; its body is still to be read.
    pub async fn send(self) -> Response {
        self.open().await.response().await
    }
}

pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// False when the server has closed its end.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    pub async fn response(mut self) -> Response {
        loop {
            let end = self.buffer.windows(4).position(|window| window == b"\r\n\r\n");
            let Some(end) = end else {
                assert!(self.fill().await, "no whole head: {:?}", String::from_utf8_lossy(&self.buffer));
                continue;
            };
            let head = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
            self.buffer.drain(..end + 4);
            let response = Response::read(&head, self);
            if response.status == 100 {
                self = response.connection;
                continue;
            }
            return response;
        }
    }

    /// False at the end of the connection, be it clean or not.
    async fn fill(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match timeout(PATIENCE, self.stream.read(&mut bytes)).await.expect("nothing comes any more") {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                true
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(usize),
    Chunked,
    Ended,
}

pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    connection: Connection,
    body: Body,
}

/// The connection ended before the body did.
#[derive(Debug, PartialEq, Eq)]
pub struct CutOff;

impl Response {
    fn read(head: &str, connection: Connection) -> Self {
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = Self { status, headers, connection, body: Body::Ended };
        response.body = match response.header("content-length") {
            Some(length) => Body::Length(length.parse().unwrap()),
            None if response.header("transfer-encoding") == Some("chunked") => Body::Chunked,
            None => Body::Ended,
        };
        response
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn trace(&self) -> String {
        self.header("x-parapet-trace-id").unwrap_or_else(|| panic!("no trace id in {:?}", self.headers)).to_owned()
    }

    /// The next piece of the body as soon as it is here; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, CutOff> {
        loop {
            if let Some(piece) = self.take_piece() {
                return Ok(piece);
            }
            if !self.connection.fill().await {
                return Err(CutOff);
            }
        }
    }

    /// What the buffer holds: `None` when that is too little.
    fn take_piece(&mut self) -> Option<Option<Vec<u8>>> {
        let buffer = &mut self.connection.buffer;
        match self.body {
            Body::Ended => Some(None),
            Body::Length(0) => {
                self.body = Body::Ended;
                Some(None)
            }
            Body::Length(_) if buffer.is_empty() => None,
            Body::Length(left) => {
                let piece: Vec<u8> = buffer.drain(..left.min(buffer.len())).collect();
                self.body = Body::Length(left - piece.len());
                Some(Some(piece))
            }
            Body::Chunked => {
                let line = buffer.windows(2).position(|window| window == b"\r\n")?;
                let size = usize::from_str_radix(std::str::from_utf8(&buffer[..line]).unwrap(), 16).unwrap();
                let whole = line + 2 + size + 2;
                if buffer.len() < whole {
                    return None;
                }
                let piece = buffer[line + 2..line + 2 + size].to_vec();
                buffer.drain(..whole);
                if size == 0 {
                    self.body = Body::Ended;
                    return Some(None);
                }
                Some(Some(piece))
            }
        }
    }

    /// All that is left, and whether it ended as it should.
    pub async fn rest(&mut self) -> (Vec<u8>, Result<(), CutOff>) {
        let mut bytes = Vec::new();
        loop {
            match self.chunk().await {
                Ok(Some(piece)) => bytes.extend(piece),
                Ok(None) => return (bytes, Ok(())),
                Err(cut) => return (bytes, Err(cut)),
            }
        }
    }

    pub async fn text(&mut self) -> String {
        let (bytes, end) = self.rest().await;
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(end, Ok(()), "cut off after {text:?}");
        text
    }

    pub async fn into_json(mut self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
    }

    /// The error of the contract's shape, which has to have this status and code.
    #[track_caller]
    pub fn into_error(self, status: u16, code: &str) -> impl Future<Output = Value> {
        let (place, code) = (std::panic::Location::caller(), code.to_owned());
        async move {
            let (found, trace) = (self.status, self.trace());
            let body = self.into_json().await;
            assert_eq!((found, body["error"]["code"].as_str()), (status, Some(&*code)), "{body} at {place}");
            let error = &body["error"];
            let message = error["message"].as_str().unwrap();
            assert!(!message.is_empty() && !message.contains('\n'), "{message:?} at {place}");
            assert!(error["type"].is_string() && error.get("param").is_some(), "{body} at {place}");
            assert_eq!(body.as_object().unwrap().len(), 1, "{body} at {place}");
            assert_eq!(trace.len(), 36, "{trace} at {place}");
            body["error"].clone()
        }
    }

    /// The body as server-sent events.
    pub fn events(self) -> Events {
        assert_eq!(self.status, 200, "{:?}", self.headers);
        let content_type = self.header("content-type").unwrap_or_default().to_owned();
        assert!(content_type.starts_with("text/event-stream"), "{content_type}");
        Events { response: self, buffer: Vec::new() }
    }
}

pub struct Events {
    response: Response,
    buffer: Vec<u8>,
}

/// A stream that has ended.
#[derive(Debug)]
pub struct Streamed {
    /// The data of its events, `[DONE]` excepted.
    pub events: Vec<Value>,
    pub done: bool,
    pub end: Result<(), CutOff>,
}

impl Events {
    /// The data of the next event; `None` at the end of the body. Comments are left out.
    pub async fn next(&mut self) -> Result<Option<String>, CutOff> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let event = String::from_utf8(event).unwrap();
                if let Some(data) = event.trim_end().strip_prefix("data:") {
                    return Ok(Some(data.trim_start().to_owned()));
                }
                assert!(event.starts_with(':'), "neither data nor comment: {event:?}");
                continue;
            }
            match self.response.chunk().await? {
                Some(piece) => self.buffer.extend(piece),
                None => {
                    assert!(self.buffer.is_empty(), "half an event: {:?}", String::from_utf8_lossy(&self.buffer));
                    return Ok(None);
                }
            }
        }
    }

    /// Reads until the text so far is `wanted`; nothing after it is waited for.
    pub async fn until_text(&mut self, wanted: &str) {
        let mut text = String::new();
        while text != wanted {
            let data = self.next().await.unwrap().unwrap_or_else(|| panic!("ended after {text:?}"));
            let event: Value = serde_json::from_str(&data).unwrap();
            text.push_str(content(&event));
            assert!(wanted.starts_with(&text), "{text:?}");
        }
    }

    pub async fn all(mut self) -> Streamed {
        let (mut events, mut done) = (Vec::new(), false);
        let end = loop {
            match self.next().await {
                Ok(Some(data)) if data == "[DONE]" => {
                    assert!(!done, "[DONE] twice");
                    done = true;
                }
                Ok(Some(data)) => {
                    assert!(!done, "after [DONE]: {data}");
                    events.push(serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {data:?}")));
                }
                Ok(None) => break Ok(()),
                Err(cut) => break Err(cut),
            }
        };
        Streamed { events, done, end }
    }
}

fn content(event: &Value) -> &str {
    event["choices"][0]["delta"]["content"].as_str().unwrap_or_default()
}

impl Streamed {
    pub fn text(&self) -> String {
        self.text_of(0)
    }

    pub fn text_of(&self, choice: u64) -> String {
        let deltas = self.events.iter().flat_map(|event| event["choices"].as_array().into_iter().flatten());
        let deltas = deltas.filter(|delta| delta["index"] == choice);
        deltas.filter_map(|delta| delta["delta"]["content"].as_str()).collect()
    }

    pub fn finish_reasons(&self) -> Vec<&str> {
        let choices = self.events.iter().flat_map(|event| event["choices"].as_array().into_iter().flatten());
        choices.filter_map(|choice| choice["finish_reason"].as_str()).collect()
    }

    pub fn error(&self) -> Option<&Value> {
        self.events.iter().find_map(|event| event.get("error"))
    }

    /// The whole answer, ended as a good stream ends.
    #[track_caller]
    pub fn whole(&self) -> String {
        assert!(self.done && self.end.is_ok() && self.error().is_none(), "{self:#?}");
        assert_eq!(self.finish_reasons(), ["stop"], "{self:#?}");
        self.text()
    }
}
