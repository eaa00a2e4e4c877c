//! First-token limits that follow what was seen. A fixed one is wrong for somebody: what is an outage for a small model is
//! every day's work of one that reasons.
//!
//! For each model a worker counts how long its first provider took to a token, in classes a quarter of an octave wide.
//! The limit is twice what 99 of 100 streams took, between the operator's floor and ceiling. Times are compared as if of
//! equally long prompts: prefill grows with the prompt, so a time is divided by, and the limit multiplied with,
//! [`scale`].

use crate::config::FirstToken;

/// Fewer streams than this say nothing about one in a hundred; until then the configured limit counts.
const ENOUGH: u32 = 64;

/// With so many counted, all counts are halved: what was seen lately weighs more.
const FULL: u32 = 4_096;

/// A class for each quarter of an octave of milliseconds, up to 2^20 ms.
const CLASSES: usize = 80;

/// Prompt tokens for which a prefill takes as long again as everything else before the first token.
const PROMPT_TOKENS: u64 = 2_048;

/// The worker's memory: some 330 bytes for each configured model.
#[derive(Debug, Default)]
pub struct FirstTokens {
    /// By the model's index in the configuration.
    models: Vec<Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    counts: [u32; CLASSES],
    total: u32,
}

impl Default for Seen {
    fn default() -> Self {
        Self { counts: [0; CLASSES], total: 0 }
    }
}

impl FirstTokens {
    /// A stream of `model` with a prompt of about `prompt_tokens` had its first token after `took_us`, or had none for so
    /// long when another provider's came.
    pub fn saw(&mut self, model: usize, models: usize, prompt_tokens: u64, took_us: u64) {
        if model >= models {
            return;
        }
        if self.models.len() < models {
            self.models.resize(models, Seen::default());
        }
        let Some(seen) = self.models.get_mut(model) else { return };
        let ms = took_us.saturating_mul(1024).checked_div(scale(prompt_tokens)).unwrap_or(0) / 1000;
        if let Some(count) = seen.counts.get_mut(class(ms)) {
            *count = count.saturating_add(1);
        }
        seen.total = seen.total.saturating_add(1);
        if seen.total >= FULL {
            seen.counts.iter_mut().for_each(|count| *count /= 2);
            seen.total = seen.counts.iter().fold(0, |sum, count| sum.saturating_add(*count));
        }
    }

    /// How long a stream of `model` may be without a token, in milliseconds.
    #[must_use]
    pub fn limit_ms(&self, model: usize, prompt_tokens: u64, limits: &FirstToken) -> u64 {
        if limits.floor_ms == limits.ceiling_ms {
            return limits.stream_ms;
        }
        let seen = self.models.get(model).filter(|seen| seen.total >= ENOUGH);
        let Some(seen) = seen else { return limits.stream_ms };
        let expected_ms = seen.quantile_ms().saturating_mul(scale(prompt_tokens)) / 1024;
        expected_ms.saturating_mul(2).clamp(limits.floor_ms, limits.ceiling_ms)
    }
}

impl Seen {
    /// What 99 of 100 took at most, to the end of its class.
    fn quantile_ms(&self) -> u64 {
        let beyond = self.total / 100;
        let mut above = 0_u32;
        for (class, count) in self.counts.iter().enumerate().rev() {
            above = above.saturating_add(*count);
            if above > beyond {
                return end_ms(class);
            }
        }
        0
    }
}

/// In 1024ths: 1 for a short prompt, 2 for [`PROMPT_TOKENS`], and so on.
const fn scale(prompt_tokens: u64) -> u64 {
    (prompt_tokens.saturating_mul(1024) / PROMPT_TOKENS).saturating_add(1024)
}

/// The octave of `ms + 4`, and which quarter of it; the 4 makes the first classes one millisecond wide.
fn class(ms: u64) -> usize {
    let shifted = ms.saturating_add(4);
    let octave = shifted.ilog2().saturating_sub(2);
    let quarter = (shifted >> octave) & 3;
    let class = u64::from(octave).saturating_mul(4).saturating_add(quarter);
    usize::try_from(class).unwrap_or(CLASSES).min(CLASSES.saturating_sub(1))
}

/// The first millisecond beyond a class.
fn end_ms(class: usize) -> u64 {
    let next = (class as u64).saturating_add(1);
    let start = (next % 4).saturating_add(4) << (next / 4);
    start.saturating_sub(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FirstToken = FirstToken {
        stream_ms: 5000,
        json_ms: 5000,
        per_token_ms: 15,
        deadline_ms: 120_000,
        floor_ms: 500,
        ceiling_ms: 30_000,
    };

    fn after(times_ms: impl IntoIterator<Item = u64>) -> FirstTokens {
        let mut seen = FirstTokens::default();
        times_ms.into_iter().for_each(|ms| seen.saw(0, 2, 0, ms * 1000));
        seen
    }

    #[test]
    fn every_time_has_a_class_that_holds_it() {
        for ms in (0..100_000).chain([1 << 22, u64::MAX]) {
            let class = class(ms);
            assert!(class < CLASSES);
            assert!(ms < end_ms(class) || class == CLASSES - 1, "{ms} {class}");
            assert!(class == 0 || ms >= end_ms(class - 1), "{ms} {class}");
        }
    }

    #[test]
    fn the_limit_is_twice_what_99_of_100_took_within_floor_and_ceiling() {
        let mixed = |slow_ms: u64, every: u64| (0..2000).map(move |i| if i % every == 0 { slow_ms } else { 100 });
        for (name, seen, at_least, at_most) in [
            ("nothing seen", after([]), 5000, 5000),
            ("too little seen", after([100; 63]), 5000, 5000),
            ("fast: the floor", after([100; 64]), 500, 500),
            ("one in 20 is slow", after(mixed(3000, 20)), 6000, 7500),
            ("one in 500 is slow", after(mixed(3000, 500)), 500, 500),
            ("a model that thinks", after([9000; 200]), 18_000, 22_500),
            ("hopeless: the ceiling", after([60_000; 200]), 30_000, 30_000),
        ] {
            let limit = seen.limit_ms(0, 0, &LIMITS);
            assert!((at_least..=at_most).contains(&limit), "{name}: {limit}");
            assert_eq!(seen.limit_ms(1, 0, &LIMITS), 5000, "another model's limit is its own");
        }
    }

    #[test]
    fn a_long_prompt_has_more_time_and_does_not_raise_the_limit_of_short_ones() {
        let mut seen = FirstTokens::default();
        for _ in 0..100 {
            seen.saw(0, 1, 0, 1_000_000);
            seen.saw(0, 1, 8 * PROMPT_TOKENS, 9_000_000);
        }
        let (short, long) = (seen.limit_ms(0, 0, &LIMITS), seen.limit_ms(0, 8 * PROMPT_TOKENS, &LIMITS));
        assert!((2000..=2500).contains(&short) && long == short * 9, "{short} {long}");
    }

    #[test]
    fn the_limit_comes_back_when_the_model_does() {
        let mut seen = after([20_000; 4000]);
        assert_eq!(seen.limit_ms(0, 0, &LIMITS), 30_000);
        for _ in 0..30_000 {
            seen.saw(0, 2, 0, 100_000);
        }
        assert_eq!(seen.limit_ms(0, 0, &LIMITS), 500);
    }

    #[test]
    fn without_room_between_floor_and_ceiling_the_limit_is_a_constant() {
        let fixed = FirstToken { floor_ms: 5000, ceiling_ms: 5000, ..LIMITS };
        assert_eq!(after([100; 500]).limit_ms(0, 0, &fixed), 5000);
    }

    #[test]
    fn an_unknown_model_takes_no_memory() {
        let mut seen = FirstTokens::default();
        seen.saw(7, 2, 0, 1);
        assert!(seen.models.is_empty());
    }
}
