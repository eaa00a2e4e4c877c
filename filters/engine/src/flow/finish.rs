//! The end: what was used is settled, what may be kept is kept, and the record is written.

use super::exchange::{Exchange, Phase};
use super::{Context, Effect, End, Flow, State};
use crate::answer::{Answer, REFUSAL};
use crate::privacy;
use crate::reason::Reason;
use crate::record::{Answered, Usage};

impl Flow {
    pub(super) fn on_ended(&mut self, state: &State, end: &End<'_>, context: &mut Context<'_>) {
        self.record.end_us = context.now_us;
        let details = end.details.unwrap_or_default();
        match state {
            State::Exchanging(exchange)
                if !exchange.is_complete()
                    && (details.starts_with(b"upstream_") || is_late(exchange, details, context)) =>
            {
                self.finish_broken(exchange, context);
            }
            State::Exchanging(exchange) => self.finish_exchange(exchange, true, context),
            // Envoy may have answered itself: a timeout, a body beyond its own limit.
            State::Reading(_) => self.record.client_aborted = self.record.status == 0,
            _ => {}
        }
        self.record.client_aborted |= details.starts_with(b"downstream_remote_disconnect");
        if let Some(answering) = self.record.attempts.last_mut() {
            answering.first_token_us = answering.first_token_us.or(self.record.first_token_us);
            answering.end_us = answering.end_us.or(Some(context.now_us));
        }
        self.note_failed_attempts(end);
        self.note_spill(context.config);
        self.price_attempts(context.config);
        self.learn_first_token(context);
        if let Some(policy) = context.config.policies.get(&self.record.policy) {
            self.record.revision.clone_from(&context.config.revision);
            privacy::apply(&policy.trace, &mut self.record);
        }
        context.effects.push(Effect::Record(self.record.to_line()));
    }

    /// The provider's connection broke. Where nothing had left yet, Envoy has told the client 502.
    fn finish_broken(&mut self, exchange: &Exchange, context: &mut Context<'_>) {
        let progress = exchange.streaming().map_or(0, |stream| stream.answer.progress);
        if self.record.attempts.last().is_some_and(|attempt| attempt.outcome == "ok") {
            self.note_outcome(if progress > 0 { "cut" } else { "no_first_token" });
        }
        self.finish_exchange(exchange, false, context);
        if self.record.client_aborted {
            (self.record.client_aborted, self.record.truncated) = (false, true);
        }
        if self.record.status == 0 {
            let late = exchange.timing.deadline.has_run_out(context.now_us);
            let reason = if late { Reason::UpstreamTimeout } else { Reason::UpstreamError };
            self.record.status = reason.status();
            self.record.reason = Some(reason.code().to_owned());
        }
    }

    /// `worked`: the provider was at it when the end came.
    pub(super) fn finish_exchange(&mut self, exchange: &Exchange, worked: bool, context: &mut Context<'_>) {
        match &exchange.phase {
            Phase::Asking | Phase::Sent | Phase::Collecting(_) => self.record.client_aborted = true,
            Phase::Judging(whole) => {
                self.record.client_aborted = true;
                self.record.usage = whole.answer.usage;
            }
            Phase::Releasing { .. } if exchange.input_is_pending() => {
                self.record.client_aborted = true;
                self.record.answers.clear();
            }
            Phase::Releasing { .. } => {
                self.record.status = 200;
                if self.record.reason.is_none() && exchange.key.is_some() {
                    let answer = Answer { choices: self.record.answers.clone(), usage: self.record.usage, progress: 0 };
                    self.remember(exchange, &answer, context);
                }
            }
            Phase::Streaming(stream) => {
                self.record.status = if stream.released || stream.cut { 200 } else { 0 };
                self.record.first_token_us = stream.first_text_us;
                let whole = stream.answer.is_finished() || stream.done;
                let kept = !whole || !stream.released || stream.holds_back();
                let left = kept && !stream.cut && !self.record.truncated;
                self.record.client_aborted = left || (exchange.input_is_pending() && !stream.cut);
                self.record.answers.clone_from(&stream.shown().choices);
                self.record.usage = stream.answer.usage;
                if self.record.reason.as_deref() == Some(Reason::OutputBlocked.code()) {
                    refuse_open_choices(&mut self.record.answers);
                } else if whole && !stream.cut && stream.is_judged() && !exchange.input_is_pending() {
                    self.remember(exchange, &stream.answer, context);
                }
            }
        }
        let used = self.used_tokens(exchange, worked);
        self.settle(exchange, used, context);
    }

    /// What the provider has read and written, counted where it did not say. `worked`: it was at it when the end came,
    /// so its prompt counts even without an answer.
    pub(super) fn used_tokens(&mut self, exchange: &Exchange, worked: bool) -> u64 {
        let progress = exchange.streaming().map_or(0, |stream| stream.answer.progress);
        let answered = progress > 0 || self.record.attempts.iter().any(|attempt| attempt.outcome == "ok");
        let usage = match self.record.usage {
            Some(usage) => usage,
            None if exchange.sent_us.is_some() && (worked || answered) => {
                Usage { prompt: exchange.prompt_tokens, completion: progress, estimated: true, ..Usage::default() }
            }
            None => return 0,
        };
        self.record.usage = Some(usage);
        usage.total()
    }

    /// Replaces the reservation by what was used.
    pub(super) fn settle(&mut self, exchange: &Exchange, used: u64, context: &mut Context<'_>) {
        if !exchange.reservation.limited {
            return;
        }
        let Some(policy) = context.config.policy(&exchange.principal) else { return };
        if let Some(quota) = &mut self.record.quota {
            quota.settled_tokens = used;
        }
        context.effects.push(Effect::Settle {
            bucket: exchange.reservation.bucket.clone(),
            limits: policy.limits,
            reserved: exchange.reservation.tokens,
            used,
        });
    }
}

/// Time was up, and nobody left by himself.
fn is_late(exchange: &Exchange, details: &[u8], context: &Context<'_>) -> bool {
    exchange.timing.deadline.has_run_out(context.now_us) && !details.starts_with(b"downstream_")
}

/// What a blocked stream ended with.
fn refuse_open_choices(answers: &mut Vec<Answered>) {
    if answers.is_empty() {
        answers.push(Answered::default());
    }
    for answer in answers.iter_mut().filter(|answer| answer.finish_reason.is_none()) {
        answer.content.push_str(REFUSAL);
        answer.finish_reason = Some("content_filter".to_owned());
    }
}
