//! Local quota: one token bucket for requests and one for model tokens per user, kept in Envoy's shared data.
//!
//! A request reserves what it may use and settles what it did use. A bucket refills continuously at its limit per
//! minute, and holds one minute's worth. Settlement may drive the token bucket below zero: an answer longer than its
//! reservation is never uncounted, the next requests wait for it.

use crate::config::Limits;

/// Levels are kept in sixty-millionths: a limit per minute then gains exactly itself per microsecond, and however often
/// the buckets are refilled nothing is lost to rounding.
const SCALE: i128 = 60_000_000;

/// The state of one user's buckets, as bytes in shared data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    /// Microseconds since the Unix epoch of the last refill.
    at_us: u64,
    requests: i128,
    tokens: i128,
}

/// What the buckets said to a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub granted: bool,
    /// Whole seconds, rounded up, until the refused reservation would be granted.
    pub retry_after_s: u64,
    pub requests: Option<Window>,
    pub tokens: Option<Window>,
}

/// One limit as the `x-ratelimit-*` headers show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub limit: u64,
    pub remaining: u64,
    /// Microseconds until the bucket is full again.
    pub reset_us: u64,
}

impl Buckets {
    #[must_use]
    pub fn full(limits: &Limits, now_us: u64) -> Self {
        Self {
            at_us: now_us,
            requests: capacity(limits.requests_per_minute),
            tokens: capacity(limits.tokens_per_minute),
        }
    }

    /// Reads what [`Buckets::to_bytes`] wrote; anything else is a fresh, full bucket (a new user, an older layout).
    #[must_use]
    pub fn from_bytes(bytes: Option<&[u8]>, limits: &Limits, now_us: u64) -> Self {
        bytes.and_then(Self::read).unwrap_or_else(|| Self::full(limits, now_us))
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (at, rest) = bytes.split_first_chunk::<8>()?;
        let (requests, rest) = rest.split_first_chunk::<16>()?;
        let (tokens, []) = rest.split_first_chunk::<16>()? else { return None };
        Some(Self {
            at_us: u64::from_le_bytes(*at),
            requests: i128::from_le_bytes(*requests),
            tokens: i128::from_le_bytes(*tokens),
        })
    }

    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.extend_from_slice(&self.at_us.to_le_bytes());
        bytes.extend_from_slice(&self.requests.to_le_bytes());
        bytes.extend_from_slice(&self.tokens.to_le_bytes());
        bytes
    }

    /// Takes one request and `tokens` model tokens, or nothing.
    #[must_use]
    pub fn reserve(mut self, limits: &Limits, tokens: u64, now_us: u64) -> (Self, Decision) {
        self.refill(limits, now_us);
        // A single request may ask for more than a minute's worth: it is let in by a full bucket and leaves a debt.
        let asked = scaled(tokens).min(capacity(limits.tokens_per_minute));
        let short_requests = limits.requests_per_minute.map_or(0, |_| SCALE.saturating_sub(self.requests));
        let short_tokens = limits.tokens_per_minute.map_or(0, |_| asked.saturating_sub(self.tokens));
        let granted = short_requests <= 0 && short_tokens <= 0;
        if granted {
            self.requests = self.requests.saturating_sub(SCALE);
            self.tokens = self.tokens.saturating_sub(scaled(tokens));
        }
        let wait_us =
            time_for(short_requests, limits.requests_per_minute).max(time_for(short_tokens, limits.tokens_per_minute));
        let decision = Decision {
            granted,
            retry_after_s: if granted { 0 } else { wait_us.div_ceil(1_000_000).max(1) },
            requests: limits.requests_per_minute.map(|limit| window(limit, self.requests)),
            tokens: limits.tokens_per_minute.map(|limit| window(limit, self.tokens)),
        };
        (self, decision)
    }

    /// Replaces a reservation of `reserved` tokens by the `used` ones.
    #[must_use]
    pub fn settle(mut self, limits: &Limits, reserved: u64, used: u64, now_us: u64) -> Self {
        self.refill(limits, now_us);
        self.tokens = self
            .tokens
            .saturating_add(scaled(reserved))
            .saturating_sub(scaled(used))
            .min(capacity(limits.tokens_per_minute));
        self
    }

    fn refill(&mut self, limits: &Limits, now_us: u64) {
        // Workers read their clocks on their own: time that seems to run backwards refills nothing.
        let elapsed = i128::from(now_us.saturating_sub(self.at_us));
        self.at_us = self.at_us.max(now_us);
        for (level, limit) in
            [(&mut self.requests, limits.requests_per_minute), (&mut self.tokens, limits.tokens_per_minute)]
        {
            let gain = elapsed.saturating_mul(i128::from(limit.unwrap_or(0)));
            *level = level.saturating_add(gain).min(capacity(limit));
        }
    }
}

/// What a request is taken to use before it has run: its prompt, and the answer it may generate.
///
/// Without `max_tokens` the answer is taken for [`UNBOUNDED_ANSWER`] tokens: the difference is settled afterwards, and a
/// reservation as large as the model's context would lock out every other request of the user.
#[must_use]
pub fn reservation(prompt_tokens: u64, max_tokens: Option<u64>, choices: u64) -> u64 {
    prompt_tokens.saturating_add(max_tokens.unwrap_or(UNBOUNDED_ANSWER).saturating_mul(choices.max(1)))
}

/// Tokens reserved for an answer whose request sets no limit.
pub const UNBOUNDED_ANSWER: u64 = 128;

/// A rough count where no tokenizer is at hand: four bytes to a token, as is usual for English text.
#[must_use]
pub const fn estimate_tokens(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(4)
}

fn scaled(count: u64) -> i128 {
    i128::from(count).saturating_mul(SCALE)
}

fn capacity(limit: Option<u64>) -> i128 {
    scaled(limit.unwrap_or(0))
}

/// Microseconds until a bucket has gained `short`.
fn time_for(short: i128, limit: Option<u64>) -> u64 {
    let Ok(short) = u128::try_from(short) else { return 0 };
    let time = short.div_ceil(u128::from(limit.unwrap_or(1).max(1)));
    u64::try_from(time).unwrap_or(u64::MAX)
}

fn window(limit: u64, level: i128) -> Window {
    let remaining = u64::try_from(level.max(0).checked_div(SCALE).unwrap_or(0)).unwrap_or(0);
    Window { limit, remaining, reset_us: time_for(capacity(Some(limit)).saturating_sub(level), Some(limit)) }
}

/// A duration as OpenAI's `x-ratelimit-reset-*` headers write it: Go's form, `120ms`, `1s`, `6m0s`.
#[must_use]
pub fn go_duration(us: u64) -> String {
    let ms = us.div_ceil(1000);
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let seconds = ms.div_ceil(1000);
    match (seconds.checked_div(60).unwrap_or(0), seconds.checked_rem(60).unwrap_or(0)) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TINY: Limits = Limits { requests_per_minute: Some(5), tokens_per_minute: Some(1000) };
    const T0: u64 = 1_700_000_000_000_000;

    #[test]
    fn the_sixth_request_of_a_minute_is_refused_and_told_when() {
        let mut buckets = Buckets::full(&TINY, T0);
        for i in 0..5 {
            let (next, decision) = buckets.reserve(&TINY, 10, T0 + i);
            assert!(decision.granted);
            assert_eq!(decision.requests.map(|window| window.remaining), Some(4 - i));
            buckets = next;
        }
        let (after, decision) = buckets.reserve(&TINY, 10, T0 + 10);
        assert!(!decision.granted);
        assert_eq!(decision.retry_after_s, 12);
        let (_, decision) = after.reserve(&TINY, 10, T0 + 12_000_010);
        assert!(decision.granted, "the time it was told is enough");
    }

    #[test]
    fn a_long_answer_leaves_a_debt_that_the_next_request_waits_for() {
        let (buckets, decision) = Buckets::full(&TINY, T0).reserve(&TINY, 100, T0);
        assert!(decision.granted);
        let buckets = buckets.settle(&TINY, 100, 1500, T0);
        let (_, decision) = buckets.reserve(&TINY, 10, T0);
        assert!(!decision.granted);
        assert_eq!(decision.retry_after_s, 31, "510 tokens at 1000 a minute");
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_a_full_one() {
        let (buckets, decision) = Buckets::full(&TINY, T0).reserve(&TINY, 5000, T0);
        assert!(decision.granted);
        assert!(!buckets.reserve(&TINY, 1, T0).1.granted);
    }

    #[test]
    fn no_limits_never_refuse() {
        let none = Limits::default();
        let mut buckets = Buckets::full(&none, T0);
        for _ in 0..100 {
            let (next, decision) = buckets.reserve(&none, 1_000_000, T0);
            assert_eq!(decision, Decision { granted: true, retry_after_s: 0, requests: None, tokens: None });
            buckets = next;
        }
    }

    #[test]
    fn durations_are_gos() {
        for (us, text) in [(0, "0ms"), (120_000, "120ms"), (999_001, "1s"), (1_000_000, "1s"), (360_000_000, "6m0s")] {
            assert_eq!(go_duration(us), text);
        }
    }

    proptest! {
        #[test]
        fn bytes_come_back(at in 0..u64::MAX, requests in -1_000_000_000_i128..1_000_000_000, tokens in any::<i64>()) {
            let buckets = Buckets { at_us: at, requests, tokens: i128::from(tokens) };
            prop_assert_eq!(Buckets::from_bytes(Some(&buckets.to_bytes()), &TINY, 0), buckets);
        }

        /// Whatever the order of reservations and settlements, what was used is charged: never more granted than the
        /// bucket and its refill hold, plus one request's overdraft.
        #[test]
        fn nothing_is_uncounted(steps in prop::collection::vec((1_u64..400, 0_u64..800, 0_u64..5_000_000), 1..60)) {
            let limits = Limits { requests_per_minute: None, tokens_per_minute: Some(1000) };
            let mut buckets = Buckets::full(&limits, T0);
            let (mut now, mut used, mut overdraft) = (T0, 0_u64, 0_u64);
            for (reserve, use_, pause) in steps {
                now += pause;
                let (next, decision) = buckets.reserve(&limits, reserve, now);
                buckets = next;
                if decision.granted {
                    buckets = buckets.settle(&limits, reserve, use_, now);
                    used += use_;
                    overdraft = use_.max(overdraft);
                }
                let refilled = (now - T0) * 1000 / 60_000_000;
                prop_assert!(used <= 1000 + refilled + overdraft + 1);
            }
        }
    }
}
