//! Misbehaviour on command. [`Faults`] is what a test writes; it is checked once and becomes a [`Fault`] per request.

use std::{sync::Mutex, time::Duration};

use serde::{Deserialize, Serialize};

/// How a simulator misbehaves. Set as a whole by `POST /sim/faults` or [`super::Simulator::set_faults`]; `{}` ends all misbehaviour.
///
/// At most one behaviour may be given (`status` … `garbage_verdict`); timings, `times`, `random` and `path` go with any.
/// Faults hit the routes that do the work (completions, run and feedback ingestion), never `/health`, `/info`, `/metrics` or
/// `/v1/models` unless `path` names them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Answer with this status (200..=599) and the server's own error shape, or with `body`.
    pub status: Option<u16>,
    /// With `status`: do the work first and answer so afterwards (a lost acknowledgement).
    pub after_processing: bool,
    /// 429 with OpenAI's code `insufficient_quota`.
    pub insufficient_quota: bool,
    /// `retry-after` of the error answer, in seconds.
    pub retry_after_s: Option<u64>,
    /// Read the request and never answer.
    pub hang: bool,
    /// Send 200 and headers, then nothing.
    pub hang_after_headers: bool,
    /// 200 and an endless SSE stream of comments.
    pub keepalive_only: bool,
    /// 200 whose first data event is an error, then `[DONE]`.
    pub error_event_first: bool,
    /// After this many tokens an error event, then `[DONE]`.
    pub error_event_after: Option<usize>,
    /// After this many tokens the connection is aborted.
    pub cut_after: Option<usize>,
    /// After this many tokens a clean end with neither `finish_reason` nor `[DONE]`.
    pub no_finish_after: Option<usize>,
    /// 200 with an answer of no text.
    pub empty: bool,
    /// 200 with broken JSON.
    pub malformed: bool,
    /// Raw body instead of the answer (status 200 unless `status` says otherwise).
    pub body: Option<String>,
    /// The model's text, whatever it was asked; meant for the guard.
    pub garbage_verdict: Option<String>,
    /// Until the first token, in milliseconds.
    pub first_token_ms: Option<u64>,
    /// Between tokens, in milliseconds.
    pub token_ms: Option<u64>,
    /// Before anything is sent, headers included, in milliseconds. For the guard it replaces `--latency-ms`.
    pub latency_ms: Option<u64>,
    /// vLLM's gauge `num_requests_waiting`; no fault of its own.
    pub waiting: Option<u64>,
    /// vLLM's gauge `kv_cache_usage_perc`, 0 to 1; absent: as many answers as are being given.
    pub kv_cache: Option<f64>,
    /// How many requests are hit; absent: all.
    pub times: Option<u64>,
    /// Probability (0..=1) that a request is hit; absent: 1.
    pub random: Option<f64>,
    /// Start of the sequence behind `random`: the same seed hits the same requests.
    pub seed: u64,
    /// Hit only requests whose path starts so; any route then, not only those that do the work.
    pub path: Option<String>,
}

/// What is wrong with a set of faults.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum FaultError {
    #[error("give at most one behaviour, not `{0}` and `{1}` together")]
    Exclusive(&'static str, &'static str),
    #[error("status {0} is not between 200 and 599")]
    Status(u16),
    #[error("random {0} is not between 0 and 1")]
    Probability(f64),
    #[error("after_processing needs status")]
    AfterWhat,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Behaviour {
    #[default]
    Honest,
    Status {
        code: u16,
        after_processing: bool,
    },
    InsufficientQuota,
    Hang,
    HangAfterHeaders,
    KeepaliveOnly,
    ErrorEventFirst,
    ErrorEventAfter(usize),
    CutAfter(usize),
    NoFinishAfter(usize),
    Empty,
    Malformed,
    Body {
        code: u16,
        body: String,
    },
    Text(String),
}

/// What happens to one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fault {
    pub(super) behaviour: Behaviour,
    pub(super) retry_after_s: Option<u64>,
    pub(super) first_token: Option<Duration>,
    pub(super) token: Option<Duration>,
    pub(super) latency: Option<Duration>,
}

impl Faults {
    fn behaviour(&self) -> Result<Behaviour, FaultError> {
        if let Some(code) = self.status
            && !(200..=599).contains(&code)
        {
            return Err(FaultError::Status(code));
        }
        if self.after_processing && self.status.is_none() {
            return Err(FaultError::AfterWhat);
        }
        let when = |set: bool, behaviour: Behaviour| set.then_some(behaviour);
        let with_body = self.body.clone().map(|body| Behaviour::Body { code: self.status.unwrap_or(200), body });
        let status = self.status.filter(|_| self.body.is_none());
        let after_processing = self.after_processing;
        let candidates = [
            ("status", status.map(|code| Behaviour::Status { code, after_processing })),
            ("body", with_body),
            ("insufficient_quota", when(self.insufficient_quota, Behaviour::InsufficientQuota)),
            ("hang", when(self.hang, Behaviour::Hang)),
            ("hang_after_headers", when(self.hang_after_headers, Behaviour::HangAfterHeaders)),
            ("keepalive_only", when(self.keepalive_only, Behaviour::KeepaliveOnly)),
            ("error_event_first", when(self.error_event_first, Behaviour::ErrorEventFirst)),
            ("error_event_after", self.error_event_after.map(Behaviour::ErrorEventAfter)),
            ("cut_after", self.cut_after.map(Behaviour::CutAfter)),
            ("no_finish_after", self.no_finish_after.map(Behaviour::NoFinishAfter)),
            ("empty", when(self.empty, Behaviour::Empty)),
            ("malformed", when(self.malformed, Behaviour::Malformed)),
            ("garbage_verdict", self.garbage_verdict.clone().map(Behaviour::Text)),
        ];
        let mut chosen: Option<(&'static str, Behaviour)> = None;
        for (name, candidate) in candidates {
            match (candidate, &chosen) {
                (Some(_), Some((first, _))) => return Err(FaultError::Exclusive(first, name)),
                (Some(behaviour), None) => chosen = Some((name, behaviour)),
                (None, _) => {}
            }
        }
        Ok(chosen.map(|(_, behaviour)| behaviour).unwrap_or_default())
    }
}

#[derive(Default)]
struct Current {
    faults: Faults,
    fault: Fault,
    left: Option<u64>,
    draws: u64,
}

/// The faults in force.
#[derive(Default)]
pub(super) struct FaultSet(Mutex<Current>);

impl FaultSet {
    pub(super) fn set(&self, faults: Faults) -> Result<(), FaultError> {
        if let Some(probability) = faults.random
            && !(0.0..=1.0).contains(&probability)
        {
            return Err(FaultError::Probability(probability));
        }
        let millis = |ms: Option<u64>| ms.map(Duration::from_millis);
        let fault = Fault {
            behaviour: faults.behaviour()?,
            retry_after_s: faults.retry_after_s,
            first_token: millis(faults.first_token_ms),
            token: millis(faults.token_ms),
            latency: millis(faults.latency_ms),
        };
        *self.lock() = Current { left: faults.times, draws: faults.seed, fault, faults };
        Ok(())
    }

    /// The faults in force, `times` being what is left of it.
    pub(super) fn get(&self) -> Faults {
        let current = self.lock();
        Faults { times: current.left, ..current.faults.clone() }
    }

    /// `waiting` and `kv_cache`.
    pub(super) fn load(&self) -> (Option<u64>, Option<f64>) {
        let current = self.lock();
        (current.faults.waiting, current.faults.kv_cache)
    }

    /// Decides about one request. `works`: whether its route is one that faults hit by default.
    pub(super) fn take(&self, path: &str, works: bool) -> Fault {
        let mut current = self.lock();
        let aimed = match &current.faults.path {
            Some(prefix) => path.starts_with(prefix.as_str()),
            None => works,
        };
        if !aimed || current.left == Some(0) {
            return Fault::default();
        }
        if let Some(probability) = current.faults.random
            && draw(&mut current.draws) >= probability
        {
            return Fault::default();
        }
        if let Some(left) = current.left.as_mut() {
            *left -= 1;
        }
        current.fault.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for a repeatable coin. In 0..1.
fn draw(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(json: serde_json::Value) -> FaultSet {
        let set = FaultSet::default();
        set.set(serde_json::from_value(json).unwrap()).unwrap();
        set
    }

    #[test]
    fn times_counts_only_the_requests_that_were_hit() {
        let faults = set(serde_json::json!({"status": 503, "times": 2}));
        assert_eq!(faults.take("/health", false), Fault::default());
        for _ in 0..2 {
            assert_eq!(faults.take("/v1/x", true).behaviour, Behaviour::Status { code: 503, after_processing: false });
        }
        assert_eq!(faults.take("/v1/x", true), Fault::default());
        assert_eq!(faults.get().times, Some(0));
    }

    #[test]
    fn a_path_aims_at_any_route() {
        let faults = set(serde_json::json!({"status": 503, "path": "/health"}));
        assert_ne!(faults.take("/health", false), Fault::default());
        assert_eq!(faults.take("/v1/chat/completions", true), Fault::default());
    }

    #[test]
    fn the_same_seed_hits_the_same_requests_about_as_often_as_said() {
        let hits = || -> Vec<bool> {
            let faults = set(serde_json::json!({"hang": true, "random": 0.25, "seed": 7}));
            (0..1000).map(|_| faults.take("/", true).behaviour == Behaviour::Hang).collect()
        };
        let first = hits();
        assert_eq!(first, hits());
        let count = first.iter().filter(|hit| **hit).count();
        assert!((200..300).contains(&count), "{count}");
    }

    #[test]
    fn contradictions_and_unknown_fields_are_refused() {
        let refused =
            |json: serde_json::Value| FaultSet::default().set(serde_json::from_value(json).unwrap()).unwrap_err();
        assert_eq!(
            refused(serde_json::json!({"hang": true, "cut_after": 1})),
            FaultError::Exclusive("hang", "cut_after")
        );
        assert_eq!(refused(serde_json::json!({"status": 99})), FaultError::Status(99));
        assert_eq!(refused(serde_json::json!({"random": 1.5})), FaultError::Probability(1.5));
        assert_eq!(refused(serde_json::json!({"after_processing": true})), FaultError::AfterWhat);
        assert!(serde_json::from_str::<Faults>(r#"{"stauts": 500}"#).is_err());
    }

    #[test]
    fn a_body_takes_the_status_beside_it() {
        let faults = set(serde_json::json!({"status": 502, "body": "bad gateway"}));
        let expected = Behaviour::Body { code: 502, body: "bad gateway".into() };
        assert_eq!(faults.take("/", true).behaviour, expected);
    }
}
