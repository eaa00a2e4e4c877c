//! The attempts at providers: how they ended, what they used and what that cost.

use super::exchange::Exchange;
use super::{Context, End, Flow, Head};
use crate::config::{Config, Price};
use crate::provider;
use crate::record::{Attempt, Usage};

/// What the provider filter says of an attempt that answers while others were begun: how many of those that Envoy counts
/// were never sent, and when it was sent itself, in microseconds.
pub const ATTEMPT: &str = "x-parapet-attempt";

impl Flow {
    /// The head tells how many attempts there were and whose answer it is.
    pub(super) fn note_attempt(&mut self, exchange: &Exchange, head: &Head<'_>, context: &Context<'_>) {
        let raced = head.get(ATTEMPT).and_then(read_raced);
        let begun: Option<u32> = head.number("x-envoy-attempt-count");
        let held = raced.map_or(0, |(held, _)| held);
        self.attempts = begun.map(|begun| begun.saturating_sub(held).max(1));
        let Some(provider) = head.tag("x-parapet-provider") else { return };
        let model = context.config.models.get(exchange.model);
        let link = model.and_then(|model| model.chain.iter().find(|link| link.provider == provider));
        self.raced_from_us = raced.map(|(_, sent_us)| sent_us);
        self.record.attempts.push(Attempt {
            provider,
            model: link.map(|link| link.model.clone()).unwrap_or_default(),
            start_us: self.raced_from_us.or(exchange.sent_us).unwrap_or(context.now_us),
            status: head.status(),
            outcome: if head.status() == 200 { "ok" } else { "status" }.to_owned(),
            ..Attempt::default()
        });
    }

    /// The answer whose head said 200 was none in the end.
    pub(super) fn note_outcome(&mut self, outcome: &str) {
        if let Some(attempt) = self.record.attempts.last_mut() {
            outcome.clone_into(&mut attempt.outcome);
        }
    }

    /// Attempts in the order of their beginning. One that answered began when the last failed one was over, unless they
    /// ran beside each other.
    pub(super) fn note_failed_attempts(&mut self, end: &End<'_>) {
        let mut failed = provider::failed(end.failed_attempts.unwrap_or_default());
        let last_end = failed.iter().filter_map(|attempt| attempt.end_us).max();
        if let (Some(answering), Some(last_end)) = (self.record.attempts.first_mut(), last_end) {
            if answering.outcome == "status" {
                // The provider filter has noted this failure itself.
                self.record.attempts.clear();
            } else if self.raced_from_us.is_none() {
                answering.start_us = answering.start_us.max(last_end);
            }
        }
        failed.append(&mut self.record.attempts);
        // A handful; the library's sort takes 14 KB of the module.
        for attempt in failed {
            let at = self.record.attempts.iter().rposition(|known| known.start_us <= attempt.start_us);
            self.record.attempts.insert(at.map_or(0, |at| at.saturating_add(1)), attempt);
        }
    }

    /// What each attempt used: the one that answered what the record says, one that was at work when it was cut off at
    /// least the prompt. The request's cost is the sum.
    pub(super) fn price_attempts(&mut self, config: &Config) {
        let Some(sent) = self.sent else { return };
        let record = &mut self.record;
        let mut own = record.usage;
        let prompt = Usage { prompt: sent.prompt_tokens, estimated: true, ..Usage::default() };
        for attempt in record.attempts.iter_mut().rev() {
            let answered = matches!(&*attempt.outcome, "ok" | "cut");
            let worked = matches!(&*attempt.outcome, "lost" | "no_first_token" | "empty");
            attempt.usage = if answered { own.take() } else { worked.then_some(prompt) };
        }
        if let Some(own) = own {
            // Nobody answered, but somebody was at it when the client left.
            match record.attempts.last_mut() {
                Some(attempt) => attempt.usage = Some(own),
                None => {
                    let first = config.models.get(sent.model).and_then(|model| model.chain.get(sent.link));
                    record.cost_nanousd = first.map_or(0, |link| cost_at(config, &link.provider, own));
                    return;
                }
            }
        }
        for attempt in &mut record.attempts {
            let Some(usage) = attempt.usage else { continue };
            let written = Usage { completion: usage.completion, ..Usage::default() };
            attempt.cost_nanousd = Some(cost_at(config, &attempt.provider, usage));
            attempt.output_nanousd = Some(cost_at(config, &attempt.provider, written));
        }
        let costs = record.attempts.iter().filter_map(|attempt| attempt.cost_nanousd);
        record.cost_nanousd = costs.fold(0, u64::saturating_add);
    }

    /// How long the first provider's first token took: what later limits follow. A failure says nothing of that; one whom
    /// another beat took at least so long.
    pub(super) fn learn_first_token(&self, context: &mut Context<'_>) {
        let Some(sent) = self.sent.filter(|sent| sent.stream && sent.link == 0) else { return };
        let model = context.config.models.get(sent.model);
        let link = model.and_then(|model| model.chain.get(sent.link));
        let first = self.record.attempts.first();
        let Some(first) = first.filter(|first| link.is_some_and(|link| link.provider == first.provider)) else {
            return;
        };
        let until_us = match &*first.outcome {
            "ok" | "cut" => first.first_token_us,
            "lost" => first.end_us,
            _ => None,
        };
        if let Some(until_us) = until_us {
            let took_us = until_us.saturating_sub(first.start_us);
            let models = context.config.models.len();
            context.memory.first_tokens.saw(sent.model, models, sent.prompt_tokens, took_us);
        }
    }
}

fn number<T: core::str::FromStr>(value: &[u8]) -> Option<T> {
    core::str::from_utf8(value).ok()?.parse().ok()
}

fn read_raced(value: &[u8]) -> Option<(u32, u64)> {
    let mut parts = value.splitn(2, |byte| *byte == b' ');
    Some((number(parts.next()?)?, number(parts.next()?)?))
}

#[inline(never)]
fn cost_at(config: &Config, provider: &str, usage: Usage) -> u64 {
    config.provider(provider).map_or(0, |provider| cost_nanousd(provider.price, usage))
}

/// Tokens at US dollars per million, in billionths of a dollar: a thousand times the product.
#[must_use]
fn cost_nanousd(price: Price, usage: Usage) -> u64 {
    let fresh = usage.prompt.saturating_sub(usage.cached);
    let cached_price = price.cached.unwrap_or(price.input);
    let cost = [(fresh, price.input), (usage.cached, cached_price), (usage.completion, price.output)];
    // Exact to the nano-dollar up to 2^53 of them, nine million dollars.
    let nano: f64 = cost.into_iter().map(|(tokens, per_million)| tokens as f64 * per_million * 1000.0).sum();
    nano.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_exact_and_cached_tokens_are_cheaper() {
        let price = Price { input: 0.15, cached: Some(0.075), output: 0.6 };
        let usage = Usage { prompt: 1000, completion: 10, cached: 400, ..Usage::default() };
        assert_eq!(cost_nanousd(price, usage), 600 * 150 + 400 * 75 + 10 * 600);
    }

    #[test]
    fn the_provider_filters_word_is_two_numbers() {
        assert_eq!(read_raced(b"2 1795509895000000"), Some((2, 1_795_509_895_000_000)));
        for odd in ["", "2", "2 ", "x 1", "2 1 3"] {
            assert_eq!(read_raced(odd.as_bytes()), None, "{odd}");
        }
    }
}
