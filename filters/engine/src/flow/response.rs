//! The provider's answer: its head, its whole body, and what the output guard's verdict does to it.

use super::exchange::{Collecting, Exchange, Phase, Whole, Wire};
use super::stream::{Form, Found, Stream};
use super::{Context, Effect, Flow, Head, Reply, State, calls, respond};
use crate::answer::{Answer, REFUSAL};
use crate::config::OutputMode;
use crate::guard::Action;
use crate::guard::passage::{self, Marks};
use crate::openai::{self, Chunk, Frame};
use crate::reason::{Reason, Refusal};
use crate::record::Answered;
use crate::{cache, chat};

impl Flow {
    pub(super) fn on_response_head(
        &mut self,
        mut exchange: Box<Exchange>,
        head: &Head<'_>,
        ends: bool,
        context: &mut Context<'_>,
    ) -> State {
        let status = head.status();
        self.note_attempt(&exchange, head, context);
        if ends || status != 200 {
            let retry_after_s = head.number("retry-after");
            // Only of these the body says more than the status; any other is not waited for.
            if ends || !matches!(status, 400 | 422 | 429) {
                return self.fail(&exchange, &provider_failure(status, retry_after_s, b""), context);
            }
            exchange.phase = Phase::Collecting(Collecting::Failure { status, retry_after_s });
            return State::Exchanging(exchange);
        }
        self.write_response_head(&exchange, head, context);
        let policy = context.config.policy(&exchange.principal).and_then(|policy| policy.output_guard.as_ref());
        exchange.phase = if head.is_event_stream() {
            let form = match exchange.wire {
                Wire::OpenAi { include_usage } => {
                    let id = format!("chatcmpl-{}", self.record.id);
                    Form::OpenAi { id, model: exchange.public_model.clone(), usage: include_usage }
                }
                Wire::Chat => Form::Chat,
            };
            let mode = policy.map_or(OutputMode::Off, |policy| policy.mode);
            let windows = policy.map(|policy| policy.window_tokens.clone()).unwrap_or_default();
            Phase::Streaming(Box::new(Stream::new(form, mode, windows)))
        } else {
            exchange.told_bytes = head.number("content-length");
            Phase::Collecting(Collecting::Answer)
        };
        State::Exchanging(exchange)
    }

    /// What the client gets of the head: what is Parapet's own. Of the provider's it gets the date alone: the rest may speak
    /// of its account, or say what no guard reads.
    fn write_response_head(&self, exchange: &Exchange, head: &Head<'_>, context: &mut Context<'_>) {
        let is_event_stream = head.is_event_stream();
        for name in head.names() {
            // A whole answer's length is written when the answer is known.
            let own = matches!(name, "content-type" | "date" | "transfer-encoding" | "x-parapet-provider")
                || (name == "content-length" && !is_event_stream);
            if !own && !name.starts_with(':') {
                context.effects.push(Effect::RemoveResponseHeader(name.to_owned()));
            }
        }
        let content_type = if is_event_stream { "text/event-stream" } else { "application/json" };
        let parameters = head.get("content-type").and_then(|known| known.strip_prefix(content_type.as_bytes()));
        if !matches!(parameters, Some(b"" | b"; charset=utf-8")) {
            context.effects.push(Effect::SetResponseHeader("content-type", content_type.to_owned()));
        }
        context.effects.push(Effect::SetResponseHeader("x-parapet-attempts", self.attempts.unwrap_or(1).to_string()));
        let headers = respond::answer_headers(&self.record, exchange);
        context.effects.extend(headers.into_iter().map(|(name, value)| Effect::SetResponseHeader(name, value)));
    }

    pub(super) fn on_response_body(
        &mut self,
        mut exchange: Box<Exchange>,
        bytes: &[u8],
        ends: bool,
        context: &mut Context<'_>,
    ) -> State {
        match &mut exchange.phase {
            Phase::Streaming(stream) => {
                let found = stream.feed(bytes, ends, context.now_us);
                self.on_found(exchange, found, context)
            }
            Phase::Collecting(Collecting::Answer) if ends => self.on_whole(exchange, bytes, context),
            Phase::Collecting(Collecting::Failure { status, retry_after_s }) if ends => {
                let refusal = provider_failure(*status, *retry_after_s, bytes);
                self.fail(&exchange, &refusal, context)
            }
            _ => State::Exchanging(exchange),
        }
    }

    fn on_found(&mut self, mut exchange: Box<Exchange>, found: Found, context: &mut Context<'_>) -> State {
        let Phase::Streaming(stream) = &mut exchange.phase else { return State::Exchanging(exchange) };
        match found {
            Found::Nothing => State::Exchanging(exchange),
            Found::Due => {
                let Some(text) = stream.passage() else { return State::Exchanging(exchange) };
                let prompt = self.call_output_guard(&exchange, &text, context);
                if let Phase::Streaming(stream) = &mut exchange.phase {
                    stream.asked(prompt);
                }
                State::Exchanging(exchange)
            }
            Found::Failed => {
                self.record.truncated = true;
                let outcome = if stream.answer.progress > 0 { "cut" } else { "error_event" };
                self.note_outcome(outcome);
                let refusal = broke_off();
                self.cut_stream(exchange, &refusal, Stream::failed_ending(), context)
            }
            Found::Overflow => {
                let refusal = calls::unavailable(&exchange, context.now_us);
                let ending = Stream::unavailable_ending(&refusal);
                self.cut_stream(exchange, &refusal, ending, context)
            }
        }
    }

    /// Ends a stream for a failure: by an error event if bytes of it have left, by an error answer if none have.
    fn cut_stream(
        &mut self,
        mut exchange: Box<Exchange>,
        refusal: &Refusal,
        ending: Vec<u8>,
        context: &mut Context<'_>,
    ) -> State {
        let input_is_pending = exchange.input_is_pending();
        let Phase::Streaming(stream) = &mut exchange.phase else { return State::Exchanging(exchange) };
        if !stream.released && !input_is_pending {
            return self.fail(&exchange, refusal, context);
        }
        self.record.reason = Some(refusal.reason.code().to_owned());
        stream.cut(&ending);
        exchange.broken = (!stream.released).then_some(refusal.reason);
        State::Exchanging(exchange)
    }

    /// Ends the exchange with an error answer; what the provider did is accounted.
    pub(super) fn fail(&mut self, exchange: &Exchange, refusal: &Refusal, context: &mut Context<'_>) -> State {
        let used = self.used_tokens(exchange, false);
        self.settle(exchange, used, context);
        let state = self.refuse(refusal.clone(), context);
        if let Some(Effect::Reply(reply)) = context.effects.last_mut() {
            reply.headers.push(("x-parapet-attempts", self.attempts.unwrap_or(1).to_string()));
        }
        state
    }

    fn on_whole(&mut self, exchange: Box<Exchange>, bytes: &[u8], context: &mut Context<'_>) -> State {
        let (answer, model) = match openai::parse_answer(bytes) {
            Ok(parsed) => parsed,
            Err(error) => {
                let status = match error {
                    Chunk::Error { code: Some(code), .. } => code,
                    _ => 502,
                };
                self.note_outcome("error_event");
                return self.fail(&exchange, &provider_failure(status, None, bytes), context);
            }
        };
        self.record.usage = answer.usage;
        let body = match exchange.wire {
            Wire::Chat => Some(chat::write_answer(answer.choices.first().map_or("", |choice| &choice.content))),
            Wire::OpenAi { .. } if exchange.output_context.is_some() => {
                let judged =
                    openai::judged_only(bytes, &format!("chatcmpl-{}", self.record.id), &exchange.public_model);
                let Some(judged) = judged else {
                    self.note_outcome("error_event");
                    return self.fail(&exchange, &provider_failure(502, None, b""), context);
                };
                Some(judged)
            }
            Wire::OpenAi { .. } if model.as_deref() != Some(&*exchange.public_model) => {
                openai::with_model_in(bytes, &exchange.public_model)
            }
            Wire::OpenAi { .. } => None,
        };
        let whole = Whole { answer, body, came_bytes: bytes.len(), passage: None, prompt: None };
        self.judge_whole(exchange, whole, &Marks::default(), context)
    }

    /// Asks about the next part of the answer that no call has read; with nothing left to ask it is released.
    fn judge_whole(
        &mut self,
        mut exchange: Box<Exchange>,
        mut whole: Whole,
        read: &Marks,
        context: &mut Context<'_>,
    ) -> State {
        whole.passage = exchange.output_context.as_ref().and_then(|_| passage::next(&whole.answer, read));
        match &whole.passage {
            Some(passage) => {
                whole.prompt = Some(self.call_output_guard(&exchange, &passage.text, context));
                exchange.phase = Phase::Judging(whole);
            }
            None => self.release_whole(&mut exchange, whole, context),
        }
        State::Exchanging(exchange)
    }

    /// The answer may leave as it is (or as the client's wire form wants it).
    fn release_whole(&mut self, exchange: &mut Exchange, whole: Whole, context: &mut Context<'_>) {
        let bytes = whole.body.as_ref().map_or(whole.came_bytes, Vec::len);
        if exchange.told_bytes != Some(bytes) {
            context.effects.push(Effect::SetResponseHeader("content-length", bytes.to_string()));
        }
        self.record.first_token_us = Some(context.now_us);
        self.record.answers = whole.answer.choices;
        exchange.phase = Phase::Releasing { body: whole.body };
    }

    pub(super) fn apply_output_action(
        &mut self,
        mut exchange: Box<Exchange>,
        action: &Action,
        context: &mut Context<'_>,
    ) -> State {
        match (core::mem::replace(&mut exchange.phase, Phase::Sent), action) {
            (Phase::Streaming(mut stream), Action::Pass | Action::Flag) => {
                let found = stream.passed();
                exchange.phase = Phase::Streaming(stream);
                self.on_found(exchange, found, context)
            }
            (Phase::Streaming(mut stream), Action::Block) => {
                let ending = self.block_stream(&mut stream, context);
                // While the input's verdict is out, it has the first word.
                let replies = !stream.released && !exchange.input_is_pending();
                exchange.phase = Phase::Streaming(stream);
                if replies { self.reply_blocked(&exchange, ending, context) } else { State::Exchanging(exchange) }
            }
            (Phase::Streaming(stream), Action::Unavailable) => {
                exchange.phase = Phase::Streaming(stream);
                let refusal = calls::unavailable(&exchange, context.now_us);
                let ending = Stream::unavailable_ending(&refusal);
                self.cut_stream(exchange, &refusal, ending, context)
            }
            (Phase::Judging(mut whole), Action::Pass | Action::Flag) => {
                let read = whole.passage.take().map(|passage| passage.marks).unwrap_or_default();
                self.judge_whole(exchange, whole, &read, context)
            }
            (Phase::Judging(mut whole), Action::Block) => {
                self.record.reason = Some(Reason::OutputBlocked.code().to_owned());
                whole.answer.choices = vec![refused_answer(); whole.answer.choices.len().max(1)];
                whole.body = Some(self.blocked_body(&exchange, &whole, context));
                self.release_whole(&mut exchange, whole, context);
                State::Exchanging(exchange)
            }
            (Phase::Judging(_), Action::Unavailable) => {
                let refusal = calls::unavailable(&exchange, context.now_us);
                self.fail(&exchange, &refusal, context)
            }
            (phase, _) => {
                exchange.phase = phase;
                State::Exchanging(exchange)
            }
        }
    }

    /// The refusal is the stream's ending.
    pub(super) fn block_stream(&mut self, stream: &mut Stream, context: &Context<'_>) -> Vec<u8> {
        self.record.reason = Some(Reason::OutputBlocked.code().to_owned());
        let ending = stream.blocked_ending(context.now_s());
        stream.cut(&ending);
        ending
    }

    /// Nothing has left yet: the blocked stream is a reply of our own, which ends cleanly and cuts the provider at once.
    fn reply_blocked(&mut self, exchange: &Exchange, body: Vec<u8>, context: &mut Context<'_>) -> State {
        self.record.status = 200;
        self.finish_exchange(exchange, true, context);
        let mut headers = respond::answer_headers(&self.record, exchange);
        headers.push(("content-type", "text/event-stream".to_owned()));
        context.effects.push(Effect::Reply(Reply { status: 200, headers, body }));
        State::Settled
    }

    fn blocked_body(&self, exchange: &Exchange, whole: &Whole, context: &Context<'_>) -> Vec<u8> {
        match exchange.wire {
            Wire::Chat => chat::write_answer(REFUSAL),
            Wire::OpenAi { .. } => {
                let id = format!("chatcmpl-{}", self.record.id);
                let frame = Frame { id: &id, created_s: context.now_s(), model: &exchange.public_model };
                openai::write_answer(frame, &whole.answer.choices, whole.answer.usage)
            }
        }
    }

    /// The answer is whole and well: it may be remembered.
    pub(super) fn remember(&mut self, exchange: &Exchange, answer: &Answer, context: &mut Context<'_>) {
        let policy = context.config.policy(&exchange.principal).and_then(|policy| policy.cache.as_ref());
        let (Some(policy), Some(key)) = (policy, exchange.key) else { return };
        let blocked = self.record.reason.is_some() || self.record.truncated || exchange.directives.no_store;
        let provider = self.record.attempts.last().map_or("", |attempt| &attempt.provider);
        let Some(entry) = cache::entry(policy, answer, provider, context.now_s()).filter(|_| !blocked) else { return };
        if let Some(record) = &mut self.record.cache {
            record.store_s = Some(policy.ttl_s);
        }
        let bytes = entry.bytes();
        context.memory.answers.insert(key, entry, bytes);
    }
}

pub(super) fn broke_off() -> Refusal {
    Refusal::new(Reason::UpstreamError, "The model's answer broke off.")
}

/// A choice as the client gets it when the output guard blocks.
pub(super) fn refused_answer() -> Answered {
    Answered { content: REFUSAL.to_owned(), finish_reason: Some("content_filter".to_owned()), ..Answered::default() }
}

/// OpenAI's code for a 429 that no wait helps; what it stands in tells nothing of the request.
const NO_QUOTA: &[u8] = b"insufficient_quota";

/// What the client is told when the last provider failed. A provider's word passes on only where the request itself is
/// at fault; anything else might speak of what is inside.
fn provider_failure(status: u16, retry_after_s: Option<u64>, body: &[u8]) -> Refusal {
    let refusal = match status {
        400 | 422 => {
            let message = match openai::parse_answer(body) {
                Err(Chunk::Error { message, .. }) if !message.is_empty() => message.chars().take(500).collect(),
                _ => "The model refused the request.".to_owned(),
            };
            Refusal::new(Reason::InvalidRequest, message.replace(['\n', '\r'], " "))
        }
        404 => Refusal::new(Reason::ModelNotFound, "The model is not served at the moment.").at("model"),
        429 if body.windows(NO_QUOTA.len()).any(|window| window == NO_QUOTA) => {
            // Not the client's quota, and no wait helps.
            let message = "The model's provider has no quota left for this gateway; its operator has to raise it.";
            Refusal { is_lasting: true, ..Refusal::new(Reason::UpstreamError, message) }
        }
        413 => Refusal::new(Reason::RequestTooLarge, "The request is too large."),
        // 204: what the router says at the deadline of a request that may be hedged.
        204 | 408 | 504 => Refusal::new(Reason::UpstreamTimeout, "No model answered in time."),
        _ => Refusal::new(Reason::UpstreamError, "No model could answer."),
    };
    Refusal { retry_after_s, ..refusal }
}

impl Exchange {
    pub(super) const fn streaming(&self) -> Option<&Stream> {
        match &self.phase {
            Phase::Streaming(stream) => Some(stream),
            _ => None,
        }
    }
}
