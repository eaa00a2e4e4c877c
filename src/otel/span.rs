//! Spans under construction.

use uuid::Uuid;

use super::proto::{Any, KeyValue, Span, SpanKind, Status, StatusCode};

/// Of `Span.flags`: bit 8 says that bit 9 says whether the parent is in another process.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;
const SAMPLED: u32 = 1;

/// A span's id: the tail of the run's UUID, so that one can be found by the other.
pub(super) fn span_id(run: Uuid) -> Vec<u8> {
    run.as_bytes().iter().skip(8).copied().collect()
}

pub(super) struct Draft(Span);

impl Draft {
    /// Times are microseconds since the Unix epoch; a span does not end before it starts.
    pub(super) fn new(name: String, kind: SpanKind, trace_id: [u8; 16], run: Uuid, (start, end): (u64, u64)) -> Self {
        Self(Span {
            trace_id: trace_id.to_vec(),
            span_id: span_id(run),
            flags: SAMPLED | HAS_IS_REMOTE,
            name,
            kind: kind.into(),
            start_time_unix_nano: start.saturating_mul(1000),
            end_time_unix_nano: end.max(start).saturating_mul(1000),
            ..Span::default()
        })
    }

    pub(super) fn parent(&mut self, span_id: &[u8], remote: bool) {
        self.0.parent_span_id = span_id.to_vec();
        if remote {
            self.0.flags |= IS_REMOTE;
        }
    }

    pub(super) fn set(&mut self, key: &str, value: impl Into<Any>) {
        self.0.attributes.push(KeyValue::new(key, value));
    }

    pub(super) fn maybe(&mut self, key: &str, value: Option<impl Into<Any>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// An absent text is an empty one in the record.
    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.maybe(key, (!text.is_empty()).then_some(text));
    }

    pub(super) fn fail(&mut self, kind: &str, message: &str) {
        self.set("error.type", kind);
        self.0.status = Some(Status { message: message.to_owned(), code: StatusCode::Error.into() });
    }

    pub(super) fn done(self) -> Span {
        self.0
    }
}
