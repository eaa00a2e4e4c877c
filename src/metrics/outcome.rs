//! How a request ended, in six words: what the SLOs' populations are cut from.

use parapet_engine::record::Record;

/// The ends of a chat request. Exhaustive and exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer went out whole, from a provider or from the cache.
    Answered,
    InputBlocked,
    /// The refusal went out in the answer's place, or at its end.
    OutputBlocked,
    /// The request itself was at fault: its key, its form, its model, its caller's limits.
    Refused,
    /// No answer, or one that broke off.
    Failed,
    /// The client left first.
    Aborted,
}

impl Outcome {
    pub const ALL: [Self; 6] =
        [Self::Answered, Self::InputBlocked, Self::OutputBlocked, Self::Refused, Self::Failed, Self::Aborted];

    pub fn of(record: &Record) -> Self {
        match (record.reason.as_deref(), record.status) {
            (Some("content_blocked"), _) => Self::InputBlocked,
            (Some("output_blocked"), _) => Self::OutputBlocked,
            _ if record.client_aborted => Self::Aborted,
            // The client asked for nothing but a cached answer.
            (Some("not_cached"), _) | (_, 400..=499) => Self::Refused,
            (None, 200..=399) if !record.truncated => Self::Answered,
            _ => Self::Failed,
        }
    }

    /// The metrics' label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::InputBlocked => "input_blocked",
            Self::OutputBlocked => "output_blocked",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_one_outcome() {
        let record =
            |reason: Option<&str>, status| Record { reason: reason.map(str::to_owned), status, ..Record::default() };
        let table = [
            (record(None, 200), Outcome::Answered),
            (record(Some("content_blocked"), 403), Outcome::InputBlocked),
            (record(Some("output_blocked"), 200), Outcome::OutputBlocked),
            (record(Some("invalid_api_key"), 401), Outcome::Refused),
            (record(Some("rate_limit_exceeded"), 429), Outcome::Refused),
            (record(Some("not_cached"), 504), Outcome::Refused),
            (record(None, 408), Outcome::Refused),
            (record(Some("upstream_timeout"), 504), Outcome::Failed),
            (record(Some("guard_unavailable"), 503), Outcome::Failed),
            // An error event in a stream that had begun.
            (record(Some("upstream_error"), 200), Outcome::Failed),
            (Record { truncated: true, ..record(None, 200) }, Outcome::Failed),
            (record(None, 0), Outcome::Failed),
            (Record { client_aborted: true, ..record(None, 200) }, Outcome::Aborted),
            (Record { client_aborted: true, ..record(None, 0) }, Outcome::Aborted),
        ];
        for (record, expected) in table {
            assert_eq!(Outcome::of(&record), expected, "{record:?}");
        }
    }
}
