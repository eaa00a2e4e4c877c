//! What a simulator was asked, and whether the asker stayed to the end.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::http::request::Parts;
use bytes::Bytes;
use serde::Serialize;

/// The oldest requests are forgotten beyond these.
const MAX_REQUESTS: usize = 4096;
const MAX_BODY_BYTES: usize = 64 << 20;

/// One request as it arrived. Times are microseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeenRequest {
    pub method: String,
    /// Path with query.
    pub path: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// In order of arrival, repeated ones repeated, `authorization` included.
    pub headers: Vec<(String, String)>,
    /// Bytes that are not UTF-8 become U+FFFD.
    pub body: String,
    pub received_us: u64,
    /// When the last byte of the answer (or its deliberate cut) was handed to the connection.
    pub finished_us: Option<u64>,
    /// When the client was found gone before that.
    pub disconnected_us: Option<u64>,
}

impl SeenRequest {
    /// The first header of that name (lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    #[must_use]
    pub fn disconnected(&self) -> bool {
        self.disconnected_us.is_some()
    }
}

/// How one exchange ended; 0 stands for not yet.
#[derive(Default)]
struct End {
    finished_us: AtomicU64,
    disconnected_us: AtomicU64,
}

/// Lives as long as the exchange: dropped before [`Ticket::finish`], the client went away.
pub(super) struct Ticket(Arc<End>);

impl Ticket {
    /// Of an exchange that nobody looks at.
    pub(super) fn unseen() -> Self {
        Self(Arc::default())
    }

    pub(super) fn finish(&self) {
        self.0.finished_us.store(now_us(), Ordering::Release);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.0.finished_us.load(Ordering::Acquire) == 0 {
            self.0.disconnected_us.store(now_us(), Ordering::Release);
        }
    }
}

struct Entry {
    parts: Parts,
    body: Bytes,
    received_us: u64,
    end: Arc<End>,
}

#[derive(Default)]
struct Log {
    entries: VecDeque<Entry>,
    body_bytes: usize,
}

#[derive(Default)]
pub(super) struct Requests(Mutex<Log>);

impl Requests {
    pub(super) fn record(&self, parts: Parts, body: Bytes) -> Ticket {
        let end = Arc::new(End::default());
        let mut log = self.lock();
        log.body_bytes += body.len();
        log.entries.push_back(Entry { parts, body, received_us: now_us(), end: Arc::clone(&end) });
        while log.entries.len() > MAX_REQUESTS || log.body_bytes > MAX_BODY_BYTES {
            let Some(oldest) = log.entries.pop_front() else { break };
            log.body_bytes -= oldest.body.len();
        }
        Ticket(end)
    }

    /// Oldest first.
    pub(super) fn list(&self) -> Vec<SeenRequest> {
        self.lock().entries.iter().map(seen).collect()
    }

    pub(super) fn clear(&self) {
        *self.lock() = Log::default();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn seen(entry: &Entry) -> SeenRequest {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let time = |at: &AtomicU64| Some(at.load(Ordering::Acquire)).filter(|us| *us != 0);
    SeenRequest {
        method: entry.parts.method.to_string(),
        path: entry.parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        version: format!("{:?}", entry.parts.version),
        headers: entry.parts.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect(),
        body: text(&entry.body),
        received_us: entry.received_us,
        finished_us: time(&entry.end.finished_us),
        disconnected_us: time(&entry.end.disconnected_us),
    }
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        axum::http::Request::post("/v1/x?y=1").header("authorization", "Bearer k").body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_dropped_ticket_means_the_client_left() {
        let requests = Requests::default();
        let kept = requests.record(parts(), Bytes::from_static(b"{\"a\":1}"));
        drop(requests.record(parts(), Bytes::new()));
        kept.finish();
        drop(kept);
        let seen = requests.list();
        assert_eq!((seen[0].path.as_str(), seen[0].header("authorization")), ("/v1/x?y=1", Some("Bearer k")));
        assert_eq!(seen[0].json()["a"], 1);
        assert!(!seen[0].disconnected() && seen[0].finished_us.is_some());
        assert!(seen[1].disconnected() && seen[1].finished_us.is_none());
    }

    #[test]
    fn the_oldest_are_forgotten_by_count_and_by_size() {
        let requests = Requests::default();
        for _ in 0..MAX_REQUESTS + 5 {
            requests.record(parts(), Bytes::new()).finish();
        }
        assert_eq!(requests.list().len(), MAX_REQUESTS);
        for _ in 0..3 {
            requests.record(parts(), Bytes::from(vec![b'x'; MAX_BODY_BYTES / 2])).finish();
        }
        assert_eq!(requests.list().len(), 2);
    }
}
