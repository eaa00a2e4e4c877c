//! The six service levels: their targets, and which requests count in each.
//!
//! The metrics, the dashboard and (by a test) the Prometheus rules all follow this file.

use parapet_engine::record::{GuardRecord, Record};

use super::outcome::Outcome;

/// What a service level measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// A quantile of seconds.
    Seconds(Quantile),
    /// A quantile of US dollars.
    Usd(Quantile),
    /// A share of requests, 0 to 1.
    Share,
}

/// In percent.
pub type Quantile = u8;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slo {
    pub title: &'static str,
    /// Its alert in `envoy/prometheus/parapet.rules.yml`.
    pub alert_name: &'static str,
    pub measure: Measure,
    /// To stay below.
    pub target: f64,
    /// An alert above.
    pub alert: f64,
    /// Which requests count.
    pub counted: &'static str,
    /// With fewer there is no alert: one of two requests says nothing.
    pub at_least: u64,
}

pub const TIME_TO_FIRST_TOKEN: Slo = Slo {
    title: "Time to first token",
    alert_name: "ParapetFirstTokenSlow",
    measure: Measure::Seconds(95),
    target: 0.3,
    alert: 0.5,
    counted: "streams whose first token was there",
    at_least: 20,
};
pub const DURATION: Slo = Slo {
    title: "Whole request",
    alert_name: "ParapetRequestsSlow",
    measure: Measure::Seconds(95),
    target: 2.0,
    alert: 5.0,
    counted: "answers and failures",
    at_least: 20,
};
pub const INPUT_BLOCKS: Slo = Slo {
    title: "Blocked inputs",
    alert_name: "ParapetInputBlocksHigh",
    measure: Measure::Share,
    target: 0.02,
    alert: 0.1,
    counted: "inputs with a verdict",
    at_least: 20,
};
pub const OUTPUT_BLOCKS: Slo = Slo {
    title: "Blocked outputs",
    alert_name: "ParapetOutputBlocksHigh",
    measure: Measure::Share,
    target: 0.005,
    alert: 0.02,
    counted: "outputs with a verdict",
    at_least: 20,
};
pub const FALLBACKS: Slo = Slo {
    title: "Fallbacks",
    alert_name: "ParapetFallbacksHigh",
    measure: Measure::Share,
    target: 0.01,
    alert: 0.05,
    counted: "requests that went to a provider",
    at_least: 20,
};
pub const COST: Slo = Slo {
    title: "Cost per request",
    alert_name: "ParapetCostHigh",
    measure: Measure::Usd(99),
    target: 0.01,
    alert: 0.05,
    counted: "requests with a provider's usage",
    at_least: 100,
};

pub const ALL: [Slo; 6] = [TIME_TO_FIRST_TOKEN, DURATION, INPUT_BLOCKS, OUTPUT_BLOCKS, FALLBACKS, COST];

/// What one request says about the service levels. `None`: it does not count in that one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    pub outcome: Outcome,
    /// Seconds. An answer that is sent whole has no first token of its own, so only streams count; those from the cache
    /// and those whose client left later are among them.
    pub first_token: Option<f64>,
    /// Seconds. Refusals and blocked inputs are no answers, and when a client left says nothing about us.
    pub duration: Option<f64>,
    /// Blocked, of inputs that got a verdict. A guard that failed closed is a failure, not a block.
    pub input_blocked: Option<bool>,
    pub output_blocked: Option<bool>,
    /// Of requests that went to a provider: answers from the cache had nothing to fall back from.
    pub fell_back: Option<bool>,
    /// US dollars. A cached answer was paid for once, by the request that made it.
    pub cost: Option<f64>,
}

impl Observation {
    /// `None` for what is no chat.
    pub fn of(record: &Record) -> Option<Self> {
        if !is_chat(record) {
            return None;
        }
        let outcome = Outcome::of(record);
        let answers = matches!(outcome, Outcome::Answered | Outcome::OutputBlocked | Outcome::Failed);
        let sent = !record.attempts.is_empty();
        Some(Self {
            outcome,
            first_token: first_token_us(record).filter(|_| record.stream).map(|at| seconds(record.start_us, at)),
            duration: answers.then(|| seconds(record.start_us, record.end_us)),
            input_blocked: blocked(record.input_guard.as_ref()),
            output_blocked: blocked(record.output_guard.as_ref()),
            fell_back: sent.then(|| fell_back(record)),
            cost: (sent && record.usage.is_some()).then(|| record.cost_nanousd as f64 / 1e9),
        })
    }
}

/// When the client could have the first token: not before the input's verdict, which holds the answer. What the output
/// guard holds is not in the record.
pub fn first_token_us(record: &Record) -> Option<u64> {
    let judged_us = record.input_guard.as_ref().and_then(|guard| guard.end_us);
    record.first_token_us.map(|first| first.max(judged_us.unwrap_or(0)))
}

/// Whether another provider than the first was needed. One that was asked beside it (a hedge) and lost was not.
fn fell_back(record: &Record) -> bool {
    let first = record.attempts.first().map(|attempt| &attempt.provider);
    record.spilled
        || record.attempts.iter().any(|attempt| Some(&attempt.provider) != first && attempt.outcome != "lost")
}

/// Whether the request is one that the service levels are about.
pub fn is_chat(record: &Record) -> bool {
    matches!(record.api.as_str(), "chat_completions" | "chat")
}

fn blocked(guard: Option<&GuardRecord>) -> Option<bool> {
    let guard = guard.filter(|guard| matches!(guard.verdict.as_str(), "safe" | "unsafe"))?;
    Some(guard.verdict == "unsafe" && guard.action == "block")
}

pub(super) fn seconds(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use parapet_engine::record::{Attempt, Usage};

    use super::*;

    fn attempt(provider: &str) -> Attempt {
        Attempt { provider: provider.to_owned(), ..Attempt::default() }
    }

    fn guard(verdict: &str, action: &str) -> Option<GuardRecord> {
        Some(GuardRecord { verdict: verdict.to_owned(), action: action.to_owned(), ..GuardRecord::default() })
    }

    fn answered() -> Record {
        Record {
            api: "chat".to_owned(),
            status: 200,
            stream: true,
            start_us: 1_000_000,
            first_token_us: Some(1_250_000),
            end_us: 3_000_000,
            usage: Some(Usage::default()),
            cost_nanousd: 3_000_000,
            attempts: vec![attempt("vllm")],
            input_guard: guard("safe", "pass"),
            output_guard: guard("unsafe", "flag"),
            ..Record::default()
        }
    }

    #[test]
    fn an_answered_stream_counts_everywhere() {
        let expected = Observation {
            outcome: Outcome::Answered,
            first_token: Some(0.25),
            duration: Some(2.0),
            input_blocked: Some(false),
            // Flagged is not blocked.
            output_blocked: Some(false),
            fell_back: Some(false),
            cost: Some(0.003),
        };
        assert_eq!(Observation::of(&answered()), Some(expected));
    }

    #[test]
    fn what_does_not_count_is_left_out() {
        let observe = |record| Observation::of(&record).unwrap();
        assert_eq!(Observation::of(&Record { api: "models".to_owned(), ..answered() }), None);
        assert_eq!(observe(Record { stream: false, ..answered() }).first_token, None);
        let late = GuardRecord { end_us: Some(1_400_000), ..guard("safe", "pass").unwrap() };
        assert_eq!(observe(Record { input_guard: Some(late), ..answered() }).first_token, Some(0.4));

        let cached = observe(Record { attempts: Vec::new(), ..answered() });
        assert_eq!((cached.fell_back, cached.cost, cached.first_token), (None, None, Some(0.25)));

        let limited = Record {
            status: 429,
            reason: Some("rate_limit_exceeded".to_owned()),
            ..Record { api: "chat".to_owned(), ..Record::default() }
        };
        let limited = observe(limited);
        assert_eq!((limited.duration, limited.input_blocked, limited.fell_back), (None, None, None));

        let left = observe(Record { client_aborted: true, ..answered() });
        assert_eq!((left.duration, left.first_token), (None, Some(0.25)));

        let blocked = Record {
            reason: Some("content_blocked".to_owned()),
            status: 403,
            input_guard: guard("unsafe", "block"),
            ..answered()
        };
        let blocked = observe(blocked);
        assert_eq!((blocked.input_blocked, blocked.duration), (Some(true), None));

        let down =
            Record { input_guard: guard("failed", "block"), output_guard: guard("pending", "pass"), ..answered() };
        let down = observe(down);
        assert_eq!((down.input_blocked, down.output_blocked), (None, None));

        let fallen = observe(Record { attempts: vec![attempt("vllm"), attempt("openai")], ..answered() });
        assert_eq!(fallen.fell_back, Some(true));
        let spilled = Record { attempts: vec![attempt("openai")], spilled: true, ..answered() };
        assert_eq!(observe(spilled).fell_back, Some(true), "the first one was not even asked");
        let lost = Attempt { outcome: "lost".to_owned(), ..attempt("openai") };
        let hedged = observe(Record { attempts: vec![attempt("vllm"), lost], ..answered() });
        assert_eq!(hedged.fell_back, Some(false), "the first one's token came first");
    }
}
