//! The callouts: what is asked, and what becomes of the answers.

use super::exchange::{Exchange, Input, Lookup, Phase};
use super::{Call, Callout, Context, Effect, Flow, Reply, State, respond};
use crate::cache::{self, Entry};
use crate::config::Policy;
use crate::guard::dialect::Dialect;
use crate::guard::{self, Action, Category, Remembered, Verdict};
use crate::openai::{self, Frame};
use crate::reason::{Reason, Refusal};
use crate::record::GuardRecord;
use crate::{chat, deadline, record};

impl Flow {
    pub(super) fn call_input_guard(
        &mut self,
        exchange: &mut Exchange,
        prompt: String,
        key: guard::Key,
        first: bool,
        context: &mut Context<'_>,
    ) {
        let timeout_ms = input_policy(context, exchange).map_or(0, |guard| guard.timeout_ms);
        let timeout_ms = exchange.timing.deadline.bound_ms(timeout_ms, context.now_us);
        push_guard_call(context, Call::InputVerdict, &prompt, timeout_ms);
        count_call(self.record.input_guard.as_mut());
        exchange.input = Input::Pending { first, prompt, key };
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
            Call::InputVerdict | Call::InputCategories => self.on_input_verdict(exchange, call, status, body, context),
            Call::OutputVerdict | Call::OutputCategories => {
                self.on_output_verdict(exchange, call, status, body, context)
            }
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

    fn on_input_verdict(
        &mut self,
        mut exchange: Box<Exchange>,
        call: Call,
        status: u16,
        body: &[u8],
        context: &mut Context<'_>,
    ) -> State {
        let config = context.config;
        let Some(policy) = config.policy(&exchange.principal) else { return State::Exchanging(exchange) };
        let Some(input) = &policy.input_guard else { return State::Exchanging(exchange) };
        let Input::Pending { first, prompt, key } = core::mem::replace(&mut exchange.input, Input::Off) else {
            return State::Exchanging(exchange);
        };
        let dialect = config.dialect();
        let verdict = dialect.parse(status, body, input.threshold);
        let guard_record = self.record.input_guard.get_or_insert_default();
        let verdict = match ask_categories(dialect, call, verdict, guard_record) {
            Ok(verdict) => verdict,
            Err(AskCategories) => {
                let timeout_ms = exchange.timing.deadline.bound_ms(input.timeout_ms, context.now_us);
                push_guard_call(context, Call::InputCategories, &prompt, timeout_ms);
                exchange.input = Input::Pending { first, prompt, key };
                return State::Exchanging(exchange);
            }
        };
        guard_record.end_us = Some(context.now_us);
        if verdict != Verdict::Failed {
            let remembered = Remembered { verdict: verdict.clone(), at_us: context.now_us };
            context.memory.verdicts.insert(key, remembered, 64);
        }
        if let Some(refusal) = self.apply_input_verdict(&mut exchange, &verdict, &key, policy) {
            let used = self.used_tokens(&exchange, true);
            self.settle(&exchange, used, context);
            let refusal = if verdict == Verdict::Failed { unavailable(&exchange, context) } else { refusal };
            return self.refuse(refusal, context);
        }
        if exchange.is_asking() { self.send_when_ready(exchange, context) } else { State::Exchanging(exchange) }
    }

    /// Notes the verdict; the refusal, if the policy says so.
    pub(super) fn apply_input_verdict(
        &mut self,
        exchange: &mut Exchange,
        verdict: &Verdict,
        key: &guard::Key,
        policy: &Policy,
    ) -> Option<Refusal> {
        let input = policy.input_guard.as_ref()?;
        let action = guard::decide(verdict, &input.categories, input.on_failure);
        let guard_record = self.record.input_guard.get_or_insert_default();
        note_verdict(guard_record, verdict, &action);
        if action != Action::Pass {
            guard_record.text_digest = Some(key.digest());
        }
        if action == Action::Flag {
            // What was let through against the guard's word is not kept for others.
            exchange.key = None;
        }
        match action {
            Action::Pass | Action::Flag => None,
            Action::Unavailable => Some(guard_unavailable()),
            Action::Block => {
                let mut refusal = Refusal::new(Reason::ContentBlocked, "The request was blocked by the safety policy.");
                refusal.categories = names(verdict);
                Some(refusal)
            }
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

    fn on_output_verdict(
        &mut self,
        mut exchange: Box<Exchange>,
        call: Call,
        status: u16,
        body: &[u8],
        context: &mut Context<'_>,
    ) -> State {
        let config = context.config;
        let policy = config.policy(&exchange.principal).and_then(|policy| policy.output_guard.as_ref());
        let (Some(policy), Some(prompt)) = (policy, exchange.asked_prompt()) else {
            return State::Exchanging(exchange);
        };
        let dialect = config.dialect();
        let verdict = dialect.parse(status, body, policy.threshold);
        let guard_record = self.record.output_guard.get_or_insert_default();
        let verdict = match ask_categories(dialect, call, verdict, guard_record) {
            Ok(verdict) => verdict,
            Err(AskCategories) => {
                let timeout_ms = exchange.timing.deadline.bound_ms(policy.timeout_ms, context.now_us);
                push_guard_call(context, Call::OutputCategories, &prompt, timeout_ms);
                if let Phase::Streaming(stream) = &mut exchange.phase {
                    stream.suspected();
                }
                return State::Exchanging(exchange);
            }
        };
        guard_record.end_us = Some(context.now_us);
        let action = guard::decide(&verdict, &policy.categories, policy.on_failure);
        note_verdict(guard_record, &verdict, &action);
        if action != Action::Pass {
            guard_record.text_digest = Some(guard::text_digest(&prompt));
        }
        if action == Action::Flag {
            exchange.key = None;
        }
        self.apply_output_action(exchange, &action, context)
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
        push_guard_call(context, Call::OutputVerdict, &prompt, timeout_ms);
        prompt
    }
}

impl Exchange {
    /// The prompt of the output call in flight.
    fn asked_prompt(&self) -> Option<String> {
        match &self.phase {
            Phase::Streaming(stream) => stream.asked_prompt().map(str::to_owned),
            Phase::Judging(whole) => whole.prompt.clone(),
            _ => None,
        }
    }
}

fn input_policy<'a>(context: &Context<'a>, exchange: &Exchange) -> Option<&'a crate::config::InputGuard> {
    context.config.policy(&exchange.principal).and_then(|policy| policy.input_guard.as_ref())
}

fn push_guard_call(context: &mut Context<'_>, call: Call, prompt: &str, timeout_ms: u64) {
    let Some(guard) = &context.config.guard else { return };
    let body = match call {
        Call::InputCategories | Call::OutputCategories => guard.dialect.categories_request(&guard.model, prompt),
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

const fn count_call(guard_record: Option<&mut GuardRecord>) {
    if let Some(guard_record) = guard_record {
        guard_record.calls = guard_record.calls.saturating_add(1);
    }
}

struct AskCategories;

/// An unsafe verdict of one token names no categories: they are asked for once, of a guard that has any. The second call's word on safety does not
/// count, only its categories do; one that fails leaves the verdict unsafe.
fn ask_categories(
    dialect: Dialect,
    call: Call,
    verdict: Verdict,
    guard_record: &mut GuardRecord,
) -> Result<Verdict, AskCategories> {
    match (call, verdict) {
        (Call::InputVerdict | Call::OutputVerdict, Verdict::Unsafe { score, categories })
            if categories.is_empty() && dialect.names_categories() =>
        {
            guard_record.score = score;
            guard_record.calls = guard_record.calls.saturating_add(1);
            Err(AskCategories)
        }
        (Call::InputCategories | Call::OutputCategories, second) => {
            let categories = match second {
                Verdict::Unsafe { categories, .. } => categories,
                Verdict::Safe { .. } | Verdict::Failed => Vec::new(),
            };
            Ok(Verdict::Unsafe { score: guard_record.score, categories })
        }
        (_, verdict) => Ok(verdict),
    }
}

/// What was worst stays: a later safe window does not wash a flag away.
fn note_verdict(guard_record: &mut GuardRecord, verdict: &Verdict, action: &Action) {
    let score = match verdict {
        Verdict::Safe { score } | Verdict::Unsafe { score, .. } => *score,
        Verdict::Failed => None,
    };
    if *action == Action::Pass && guard_record.action == "flag" {
        return;
    }
    guard_record.score = score;
    guard_record.categories = names(verdict);
    (guard_record.verdict, guard_record.action) = (
        match verdict {
            Verdict::Safe { .. } => "safe",
            Verdict::Unsafe { .. } => "unsafe",
            Verdict::Failed => "failed",
        }
        .to_owned(),
        match action {
            Action::Pass => "pass",
            Action::Flag => "flag",
            Action::Block | Action::Unavailable => "block",
        }
        .to_owned(),
    );
}

fn names(verdict: &Verdict) -> Vec<String> {
    match verdict {
        Verdict::Unsafe { categories, .. } => categories.iter().map(Category::to_string).collect(),
        Verdict::Safe { .. } | Verdict::Failed => Vec::new(),
    }
}

/// No usable verdict: the guard's fault, unless the request's own time was up.
pub(super) fn unavailable(exchange: &Exchange, context: &Context<'_>) -> Refusal {
    if exchange.timing.deadline.is_over(context.now_us) { deadline::refusal() } else { guard_unavailable() }
}

fn guard_unavailable() -> Refusal {
    Refusal::new(Reason::GuardUnavailable, "The safety check is not available; try again shortly.")
}
