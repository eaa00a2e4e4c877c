//! The callouts: what is asked, and what becomes of the answers.

use std::collections::VecDeque;

use super::exchange::{Exchange, Input, Lookup};
use super::verdict::rules;
use super::{Call, Callout, Context, Effect, Flow, Reply, State, respond};
use crate::cache::{self, Entry};
use crate::guard::dialect::Dialect;
use crate::guard::{self, Side};
use crate::openai::{self, Frame};
use crate::reason::{Reason, Refusal};
use crate::record::GuardRecord;
use crate::{chat, deadline, record};

impl Flow {
    /// Asks about the first of `prompts`; the others follow when it passed.
    pub(super) fn call_input_guard(
        &mut self,
        exchange: &mut Exchange,
        mut prompts: VecDeque<String>,
        key: guard::Key,
        first: bool,
        context: &mut Context<'_>,
    ) {
        let Some(prompt) = prompts.pop_front() else { return };
        let timeout_ms = rules(context.config, exchange, Side::Input).map_or(0, |rules| rules.timeout_ms);
        let timeout_ms = exchange.timing.deadline.bound_ms(timeout_ms, context.now_us);
        push_guard_call(context, Call::Verdict(Side::Input), &prompt, timeout_ms);
        count_call(self.record.input_guard.as_mut());
        exchange.input = Input::Pending { first, prompt, rest: prompts, key };
    }

    pub(super) fn ask_sidecar(&self, exchange: &mut Exchange, context: &mut Context<'_>) {
        let (Some(sidecar), Some(key)) = (&context.config.sidecar, &exchange.key) else { return };
        context.effects.push(Effect::Call(Callout {
            call: Call::CacheLookup,
            cluster: sidecar.cluster.clone(),
            method: "GET",
            authority: sidecar.authority.clone(),
            path: format!("/internal/cache/{key}"),
            api_key_env: None,
            body: Vec::new(),
            timeout_ms: exchange.timing.deadline.bound_ms(sidecar.timeout_ms, context.now_us),
        }));
        exchange.lookup = Lookup::Pending;
    }

    pub(super) fn on_answered(
        &mut self,
        exchange: Box<Exchange>,
        call: Call,
        status: u16,
        body: &[u8],
        context: &mut Context<'_>,
    ) -> State {
        match call {
            Call::CacheLookup => self.on_looked_up(exchange, status, body, context),
            Call::Verdict(side) => self.on_verdict(exchange, side, status, body, context),
            Call::Categories(side) => self.on_categories(exchange, side, status, body, context),
        }
    }

    fn on_looked_up(
        &mut self,
        mut exchange: Box<Exchange>,
        status: u16,
        body: &[u8],
        context: &mut Context<'_>,
    ) -> State {
        exchange.lookup = Lookup::None;
        if !exchange.is_asking() {
            return State::Exchanging(exchange);
        }
        let found = (status == 200).then(|| serde_json::from_slice::<Entry>(body).ok()).flatten();
        let fresh = found.filter(|entry| cache::is_fresh(entry, &exchange.directives, context.now_s()));
        match (fresh, exchange.key) {
            (Some(entry), Some(key)) if !entry.answers.is_empty() => {
                let bytes = entry.bytes();
                context.memory.answers.insert(key, entry.clone(), bytes);
                self.replay(&exchange, &entry, context)
            }
            _ => self.send_when_ready(exchange, context),
        }
    }

    /// Answers from the cache.
    pub(super) fn replay(&mut self, exchange: &Exchange, entry: &Entry, context: &mut Context<'_>) -> State {
        let age_s = context.now_s().saturating_sub(entry.created_s);
        self.record.cache = Some(record::CacheRecord {
            outcome: "hit".to_owned(),
            key: exchange.key.map(|key| key.to_string()),
            store_s: None,
            age_s: Some(age_s),
        });
        self.record.status = 200;
        self.record.answers.clone_from(&entry.answers);
        self.record.first_token_us = Some(context.now_us);
        self.settle(exchange, 0, context);
        let ttl_s = entry.expires_s.saturating_sub(context.now_s());
        let mut headers = vec![
            ("content-type", if exchange.stream { "text/event-stream" } else { "application/json" }.to_owned()),
            ("x-parapet-trace-id", self.record.id.clone()),
            ("cache-status", format!("parapet; hit; ttl={ttl_s}")),
            ("age", age_s.to_string()),
        ];
        if let Some(decision) = &exchange.quota {
            headers.extend(respond::rate_headers(decision));
        }
        let body = self.replayed_body(exchange, entry);
        context.effects.push(Effect::Reply(Reply { status: 200, headers, body }));
        State::Settled
    }

    fn replayed_body(&self, exchange: &Exchange, entry: &Entry) -> Vec<u8> {
        let id = format!("chatcmpl-{}", self.record.id);
        let frame = Frame { id: &id, created_s: entry.created_s, model: &exchange.public_model };
        let text = entry.answers.first().map_or("", |answer| &answer.content);
        match (exchange.wire, exchange.stream) {
            (super::exchange::Wire::OpenAi { include_usage }, true) => {
                openai::write_replay(frame, &entry.answers, include_usage.then_some(entry.usage))
            }
            (super::exchange::Wire::OpenAi { .. }, false) => {
                openai::write_answer(frame, &entry.answers, Some(entry.usage))
            }
            (super::exchange::Wire::Chat, true) => {
                let mut body = chat::write_piece(text);
                body.extend_from_slice(openai::DONE);
                body
            }
            (super::exchange::Wire::Chat, false) => chat::write_answer(text),
        }
    }

    /// Asks the output guard about everything said so far.
    pub(super) fn call_output_guard(&mut self, exchange: &Exchange, answer: &str, context: &mut Context<'_>) -> String {
        let said = exchange.output_context.as_deref().unwrap_or_default();
        let prompt = context.config.dialect().output_prompt(said, answer);
        let policy = context.config.policy(&exchange.principal).and_then(|policy| policy.output_guard.as_ref());
        let mode = policy.map_or("", |policy| match policy.mode {
            crate::config::OutputMode::Hold => "hold",
            crate::config::OutputMode::Async => "async",
            crate::config::OutputMode::Full => "full",
            crate::config::OutputMode::Off => "off",
        });
        let guard_record = self.record.output_guard.get_or_insert_with(|| GuardRecord {
            mode: mode.to_owned(),
            verdict: "pending".to_owned(),
            model: context.config.guard.as_ref().map(|guard| guard.model.clone()).unwrap_or_default(),
            start_us: Some(context.now_us),
            ..GuardRecord::default()
        });
        count_call(Some(guard_record));
        let timeout_ms = policy.map_or(0, |policy| policy.timeout_ms);
        let timeout_ms = exchange.timing.deadline.bound_ms(timeout_ms, context.now_us);
        push_guard_call(context, Call::Verdict(Side::Output), &prompt, timeout_ms);
        prompt
    }
}

pub(super) fn push_guard_call(context: &mut Context<'_>, call: Call, prompt: &str, timeout_ms: u64) {
    let Some(guard) = &context.config.guard else { return };
    let body = match call {
        Call::Categories(_) => guard.dialect.categories_request(&guard.model, prompt),
        _ => Some(guard.dialect.verdict_request(&guard.model, prompt)),
    };
    let Some(body) = body else { return };
    context.effects.push(Effect::Call(Callout {
        call,
        cluster: guard.cluster.clone(),
        method: "POST",
        authority: guard.authority.clone(),
        path: Dialect::path(&guard.base_path),
        api_key_env: guard.api_key_env.clone(),
        body,
        timeout_ms,
    }));
}

pub(super) const fn count_call(guard_record: Option<&mut GuardRecord>) {
    if let Some(guard_record) = guard_record {
        guard_record.calls = guard_record.calls.saturating_add(1);
    }
}

/// No usable verdict: the guard's fault, unless the request's own time was up.
pub(super) fn unavailable(exchange: &Exchange, now_us: u64) -> Refusal {
    if exchange.timing.deadline.has_run_out(now_us) {
        return deadline::refusal();
    }
    Refusal::new(Reason::GuardUnavailable, "The safety check is not available; try again shortly.")
}
