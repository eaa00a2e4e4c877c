//! What a load is and what came of it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// One line on standard input.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Plan {
    /// 0: the rig's own model, so that the rig alone is measured.
    pub(crate) port: u16,
    pub(crate) connections: usize,
    /// How long requests are sent; those under way then are awaited.
    pub(crate) seconds: f64,
    /// One request per connection.
    pub(crate) once: bool,
    pub(crate) key: String,
    pub(crate) headers: Vec<(String, String)>,
    /// Ask for events.
    pub(crate) stream: bool,
    /// Events with text per stream.
    pub(crate) chunks: u32,
    pub(crate) pace: Pace,
    /// Between two events of a stream, with `paced`.
    pub(crate) interval_us: u64,
    /// How long the model thinks before it answers.
    pub(crate) model_us: u64,
    /// How long the guard thinks.
    pub(crate) guard_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pace {
    /// An event each `interval_us`.
    Paced,
    /// The next event leaves when the client has the one before: as many as go through, none merged with another.
    Lockstep,
    /// As fast as the socket takes them; Envoy merges them as it likes.
    Burst,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            port: 0,
            connections: 1,
            seconds: 1.0,
            once: false,
            key: "sk-demo-open".to_owned(),
            headers: Vec::new(),
            stream: false,
            chunks: 200,
            pace: Pace::Paced,
            interval_us: 10_000,
            model_us: 0,
            guard_us: 0,
        }
    }
}

/// Times in microseconds, kept whole: a slice has some hundred thousand of them.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<u32>);

impl Times {
    pub(crate) fn note(&mut self, us: u64) {
        self.0.push(u32::try_from(us).unwrap_or(u32::MAX));
    }

    fn summary(&mut self) -> Value {
        self.0.sort_unstable();
        let at = |per_mille: usize| {
            let index = self.0.len().saturating_mul(per_mille) / 1000;
            self.0.get(index.min(self.0.len().saturating_sub(1))).copied()
        };
        json!({"n": self.0.len(), "p50": at(500), "p90": at(900), "p99": at(990), "p999": at(999), "max": self.0.last()})
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Broken, unanswered, or unreadable.
    pub(crate) failed: u64,
    pub(crate) reconnects: u64,
    /// From the request's first byte to the answer's last; for streams to the first text.
    pub(crate) latency_us: Times,
    pub(crate) chunks: u64,
    /// Missing, doubled or out of order.
    pub(crate) lost: u64,
    /// Came later than the next one was due.
    pub(crate) late: u64,
    /// From the model's write to the client's read.
    pub(crate) chunk_us: Times,
    /// What the guard and the model were asked.
    pub(crate) verdicts: u64,
    pub(crate) served: u64,
}

impl Outcome {
    pub(crate) fn requests(&self) -> u64 {
        self.statuses.values().sum()
    }

    pub(crate) fn report(&mut self, elapsed_us: u64) -> Value {
        let statuses: serde_json::Map<String, Value> =
            self.statuses.iter().map(|(status, count)| (status.to_string(), json!(count))).collect();
        json!({
            "elapsed_us": elapsed_us, "requests": self.requests(), "statuses": statuses, "failed": self.failed,
            "reconnects": self.reconnects, "latency_us": self.latency_us.summary(), "chunks": self.chunks,
            "lost": self.lost, "late": self.late, "chunk_us": self.chunk_us.summary(), "verdicts": self.verdicts,
            "served": self.served,
        })
    }
}
