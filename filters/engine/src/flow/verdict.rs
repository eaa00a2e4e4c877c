//! What the guard's word does, on either side.
//!
//! A verdict of one token names no categories; they are asked for in a second call, of a guard that has any. Where a
//! policy excuses none, a stream of which something has left does not wait for them.

use super::exchange::{Exchange, Input, Phase};
use super::{Call, Context, Flow, State, calls, response};
use crate::config::{Categories, Config, OnFailure};
use crate::guard::{self, Action, Category, Remembered, Side, Verdict};
use crate::reason::{Reason, Refusal};
use crate::record::GuardRecord;

/// How long the categories of a stream that has got its ending are waited for: its provider is cut off within 50 ms of
/// the verdict, and nobody hears of them afterwards.
const AFTER_CUT_MS: u64 = 25;

/// Bytes of a judged text in the record.
pub(super) const AUDIT_BYTES: usize = 8_000;

/// What a policy says of the guard on one side.
pub(super) struct Rules<'a> {
    pub(super) timeout_ms: u64,
    on_failure: OnFailure,
    threshold: f64,
    categories: &'a Categories,
}

impl Rules<'_> {
    fn decide(&self, verdict: &Verdict) -> Action {
        guard::decide(verdict, self.categories, self.on_failure)
    }

    /// No category makes an unsafe text pass.
    const fn excuses_none(&self) -> bool {
        self.categories.flag.is_empty() && self.categories.ignore.is_empty()
    }
}

pub(super) fn rules<'a>(config: &'a Config, exchange: &Exchange, side: Side) -> Option<Rules<'a>> {
    let policy = config.policy(&exchange.principal)?;
    Some(match side {
        Side::Input => {
            let guard = policy.input_guard.as_ref()?;
            Rules {
                timeout_ms: guard.timeout_ms,
                on_failure: guard.on_failure,
                threshold: guard.threshold,
                categories: &guard.categories,
            }
        }
        Side::Output => {
            let guard = policy.output_guard.as_ref()?;
            Rules {
                timeout_ms: guard.timeout_ms,
                on_failure: guard.on_failure,
                threshold: guard.threshold,
                categories: &guard.categories,
            }
        }
    })
}

impl Flow {
    fn guard_record(&mut self, side: Side) -> &mut GuardRecord {
        match side {
            Side::Input => self.record.input_guard.get_or_insert_default(),
            Side::Output => self.record.output_guard.get_or_insert_default(),
        }
    }

    /// The first call's answer.
    pub(super) fn on_verdict(
        &mut self,
        mut exchange: Box<Exchange>,
        side: Side,
        status: u16,
        body: &[u8],
        context: &mut Context<'_>,
    ) -> State {
        let Some(rules) = rules(context.config, &exchange, side) else { return State::Exchanging(exchange) };
        let Some(prompt) = exchange.asked(side) else { return State::Exchanging(exchange) };
        let dialect = context.config.dialect();
        let verdict = dialect.parse(status, body, rules.threshold);
        let unnamed = matches!(&verdict, Verdict::Unsafe { categories, .. } if categories.is_empty());
        if !unnamed || !dialect.names_categories() {
            return self.on_judged(exchange, side, &verdict, context);
        }
        let at_once = side == Side::Output && rules.excuses_none() && exchange.has_left();
        let limit_ms = if at_once { AFTER_CUT_MS.min(rules.timeout_ms) } else { rules.timeout_ms };
        let limit_ms = exchange.timing.deadline.bound_ms(limit_ms, context.now_us);
        calls::push_guard_call(context, Call::Categories(side), prompt, limit_ms);
        let guard_record = self.guard_record(side);
        calls::count_call(Some(guard_record));
        let Verdict::Unsafe { score, .. } = verdict else { return State::Exchanging(exchange) };
        guard_record.score = score;
        if let (Side::Output, Phase::Streaming(stream)) = (side, &mut exchange.phase) {
            if at_once {
                stream.explains(true);
                return self.on_judged(exchange, side, &verdict, context);
            }
            stream.suspected();
        }
        State::Exchanging(exchange)
    }

    /// The second call's answer. Its word on safety does not count, only its categories do; a call that fails leaves
    /// the verdict unsafe.
    pub(super) fn on_categories(
        &mut self,
        mut exchange: Box<Exchange>,
        side: Side,
        status: u16,
        body: &[u8],
        context: &mut Context<'_>,
    ) -> State {
        let Some(rules) = rules(context.config, &exchange, side) else { return State::Exchanging(exchange) };
        let categories = match context.config.dialect().parse(status, body, rules.threshold) {
            Verdict::Unsafe { categories, .. } => categories,
            Verdict::Safe { .. } | Verdict::Failed => Vec::new(),
        };
        let verdict = Verdict::Unsafe { score: self.guard_record(side).score, categories };
        if let (Side::Output, Phase::Streaming(stream)) = (side, &mut exchange.phase)
            && stream.is_explaining()
        {
            stream.explains(false);
            self.guard_record(side).categories = names(&verdict);
            return State::Exchanging(exchange);
        }
        if exchange.asked(side).is_none() {
            return State::Exchanging(exchange);
        }
        self.on_judged(exchange, side, &verdict, context)
    }

    /// All is known of the verdict that ever will be.
    fn on_judged(
        &mut self,
        mut exchange: Box<Exchange>,
        side: Side,
        verdict: &Verdict,
        context: &mut Context<'_>,
    ) -> State {
        self.guard_record(side).end_us = Some(context.now_us);
        match side {
            Side::Input => self.on_input_judged(exchange, verdict, context),
            Side::Output => {
                let Some(rules) = rules(context.config, &exchange, side) else { return State::Exchanging(exchange) };
                let action = rules.decide(verdict);
                let guard_record = self.guard_record(side);
                note_verdict(guard_record, verdict, &action);
                if action != Action::Pass {
                    guard_record.text_digest = exchange.asked(side).map(guard::text_digest);
                    // A passage is no longer than that.
                    guard_record.text = exchange.said.as_ref().and(exchange.read()).map(str::to_owned);
                }
                if action == Action::Flag {
                    exchange.key = None;
                }
                self.apply_output_action(exchange, &action, context)
            }
        }
    }

    fn on_input_judged(&mut self, mut exchange: Box<Exchange>, verdict: &Verdict, context: &mut Context<'_>) -> State {
        let Input::Pending { first, rest, key, .. } = core::mem::replace(&mut exchange.input, Input::Off) else {
            return State::Exchanging(exchange);
        };
        if matches!(verdict, Verdict::Safe { .. }) && !rest.is_empty() {
            self.call_input_guard(&mut exchange, rest, key, first, context);
            return State::Exchanging(exchange);
        }
        if *verdict != Verdict::Failed {
            let remembered = Remembered { verdict: verdict.clone(), at_us: context.now_us };
            context.memory.verdicts.insert(key, remembered, 64);
        }
        if let Some(refusal) = self.apply_input_verdict(&mut exchange, verdict, &key, context) {
            let used = self.used_tokens(&exchange, true);
            self.settle(&exchange, used, context);
            return self.refuse(refusal, context);
        }
        match exchange.broken.take() {
            Some(Reason::UpstreamError) => self.fail(&exchange, &response::broke_off(), context),
            Some(_) => self.fail(&exchange, &calls::unavailable(&exchange, context.now_us), context),
            None if exchange.is_asking() => self.send_when_ready(exchange, context),
            None => State::Exchanging(exchange),
        }
    }

    /// Notes the verdict; the refusal, if the policy says so.
    pub(super) fn apply_input_verdict(
        &mut self,
        exchange: &mut Exchange,
        verdict: &Verdict,
        key: &guard::Key,
        context: &Context<'_>,
    ) -> Option<Refusal> {
        let action = match rules(context.config, exchange, Side::Input)?.decide(verdict) {
            // Of what it was shown the guard said safe.
            Action::Pass if exchange.unseen => Action::Flag,
            action => action,
        };
        let guard_record = self.guard_record(Side::Input);
        note_verdict(guard_record, verdict, &action);
        if action != Action::Pass {
            guard_record.text_digest = Some(key.digest());
            guard_record.text.clone_from(&exchange.said);
        }
        if action == Action::Flag {
            // What was let through against the guard's word is not kept for others.
            exchange.key = None;
        }
        match action {
            Action::Pass | Action::Flag => None,
            Action::Unavailable => Some(calls::unavailable(exchange, context.now_us)),
            Action::Block => {
                let mut refusal = Refusal::new(Reason::ContentBlocked, "The request was blocked by the safety policy.");
                refusal.categories = names(verdict);
                Some(refusal)
            }
        }
    }
}

impl Exchange {
    /// The prompt of the call in flight on one side.
    fn asked(&self, side: Side) -> Option<&str> {
        match (side, &self.input, &self.phase) {
            (Side::Input, Input::Pending { prompt, .. }, _) => Some(prompt),
            (Side::Output, _, Phase::Streaming(stream)) => stream.asked_prompt(),
            (Side::Output, _, Phase::Judging(whole)) => whole.prompt.as_deref(),
            _ => None,
        }
    }

    /// What of the answer the call in flight reads.
    fn read(&self) -> Option<&str> {
        match &self.phase {
            Phase::Streaming(stream) => stream.reading(),
            Phase::Judging(whole) => whole.passage.as_ref().map(|passage| &*passage.text),
            _ => None,
        }
    }

    /// Something of the answer is with the client: it can only be cut, no more replaced.
    fn has_left(&self) -> bool {
        self.streaming().is_some_and(|stream| stream.released)
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
