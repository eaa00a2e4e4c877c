//! What a load is and what came of it.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::guard::{Prefill, Said};

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
    /// Of a thousand requests to the first provider so many, and how long it thinks about those.
    pub(crate) slow: Option<(u64, u64)>,
    /// How long the guard thinks.
    pub(crate) guard_us: u64,
    /// Delays to some ten microseconds, for the price of a core that never rests; else to a millisecond.
    pub(crate) precise: bool,
    /// Between the first requests of two connections.
    pub(crate) stagger_us: u64,
    /// No conversation is sent twice, so that no verdict is remembered.
    pub(crate) fresh: bool,
    /// The guard reads its prompts, and a token is five bytes of text.
    pub(crate) reads: bool,
    /// Tokens of a sentence, with `reads`; 0: sentences never end.
    pub(crate) sentence: u32,
    /// Where a stream's offence stands, with `reads`: from this token on, each stream at another of so many.
    pub(crate) offence: Option<(u32, u32)>,
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
            slow: None,
            guard_us: 0,
            precise: false,
            stagger_us: 0,
            fresh: false,
            reads: false,
            sentence: 0,
            offence: None,
        }
    }
}

impl Plan {
    /// How long the model thinks about its request with this number.
    pub(crate) fn model_us(&self, request: u64, second: bool) -> u64 {
        // Spread over every thousand.
        const STEP: u64 = 617;
        let place = request.wrapping_mul(STEP) % 1000;
        let slow = self.slow.filter(|(per_mille, _)| !second && place < *per_mille);
        slow.map_or(self.model_us, |(_, us)| us)
    }

    /// The token that offends in the stream with this number.
    pub(crate) fn offence(&self, stream: u64) -> Option<u32> {
        // A step that meets every place of any span up to itself before it meets one twice.
        const STEP: u64 = 1009;
        let (from, span) = self.offence?;
        let place = stream.wrapping_mul(STEP).checked_rem(u64::from(span)).unwrap_or(0);
        Some(from.saturating_add(u32::try_from(place).unwrap_or(0)))
    }
}

/// When the guard's word on a stream left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judged {
    pub(crate) unsafe_us: u64,
    pub(crate) categories_us: Option<u64>,
    pub(crate) closed: bool,
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
        json!({
            "n": self.0.len(), "min": self.0.first(), "p50": at(500), "p90": at(900), "p95": at(950), "p99": at(990), "p999": at(999),
            "max": self.0.last()
        })
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
    /// From the request's first byte to the stream's last.
    pub(crate) total_us: Times,
    /// Each stream's longest time between two reads with text.
    pub(crate) stall_us: Times,
    /// By the number of the model's connection.
    pub(crate) judged: HashMap<usize, Judged>,
    /// Streams that ended with a refusal, and those that offended and went on to their end.
    pub(crate) cut: u64,
    pub(crate) missed: u64,
    /// Tokens that the client got behind the offending one.
    pub(crate) exposure: Times,
    /// From the guard's first word of a stream's offence to the end of the model's connection, and from the categories.
    pub(crate) unsafe_to_close_us: Times,
    pub(crate) categories_to_close_us: Times,
    /// From the categories to the client's end of the stream.
    pub(crate) categories_to_done_us: Times,
    /// What the guard read.
    pub(crate) prefill: Prefill,
    /// What the guard and the model were asked.
    pub(crate) verdicts: u64,
    pub(crate) served: u64,
    /// Of those, what came to the second provider.
    pub(crate) second: u64,
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
            "served": self.served, "second": self.second, "total_us": self.total_us.summary(), "stall_us": self.stall_us.summary(),
            "cut": self.cut, "missed": self.missed, "exposure": self.exposure.summary(),
            "unsafe_to_close_us": self.unsafe_to_close_us.summary(),
            "categories_to_close_us": self.categories_to_close_us.summary(),
            "categories_to_done_us": self.categories_to_done_us.summary(),
            "prompt_tokens": self.prefill.prompt_tokens, "uncached_tokens": self.prefill.uncached_tokens,
        })
    }

    /// The guard's word leaves.
    pub(crate) fn judge(&mut self, said: Said, now_us: u64) {
        match said {
            Said::Safe => {}
            Said::Unsafe(stream) => {
                self.judged.insert(stream, Judged { unsafe_us: now_us, categories_us: None, closed: false });
            }
            Said::Categories(stream) => {
                if let Some(judged) = self.judged.get_mut(&stream) {
                    judged.categories_us = Some(now_us);
                }
            }
        }
    }

    /// The model's connection in the middle of a stream is over.
    pub(crate) fn closed(&mut self, stream: usize, now_us: u64) {
        let Some(judged) = self.judged.get_mut(&stream).filter(|judged| !judged.closed) else { return };
        judged.closed = true;
        self.unsafe_to_close_us.note(now_us.saturating_sub(judged.unsafe_us));
        if let Some(categories_us) = judged.categories_us {
            self.categories_to_close_us.note(now_us.saturating_sub(categories_us));
        }
    }
}
