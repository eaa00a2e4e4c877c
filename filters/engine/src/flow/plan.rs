//! What becomes of a conversation before it is sent: the model, the quota, the cache, the input guard.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::exchange::{Exchange, Input, Lookup, Phase, Reservation, Wire};
use super::request::{Caller, WireName};
use super::send::{self, Timing};
use super::verdict::AUDIT_BYTES;
use super::{Context, Effect, Flow, State, respond};
use crate::affinity;
use crate::cache;
use crate::config::{Config, InputMode, Media, Policy};
use crate::conversation::Conversation;
use crate::guard;
use crate::quota::{self, Decision};
use crate::reason::{Reason, Refusal};
use crate::{deadline, openai};

/// What follows once the quota has agreed.
#[derive(Debug)]
pub(super) enum Plan {
    Replay(Box<cache::Entry>),
    Proceed { question: Option<Question>, judge_first: bool },
}

/// The input guard's part of a plan.
#[derive(Debug)]
pub(super) struct Question {
    key: guard::Key,
    asked: Asked,
}

#[derive(Debug)]
enum Asked {
    /// Remembered: costs no call and no prompt.
    Before(guard::Verdict),
    Now {
        prompts: VecDeque<String>,
    },
    /// Longer than may be judged.
    Never,
}

impl Flow {
    /// Everything that needs the conversation itself happens here; what is kept of it is owned.
    pub(super) fn plan(
        &mut self,
        caller: Caller,
        conversation: &Conversation<'_>,
        session: Option<Cow<'_, str>>,
        context: &mut Context<'_>,
    ) -> Result<State, Refusal> {
        let config = context.config;
        if let Some(session) = session.filter(|session| !session.is_empty()) {
            self.record.session = Some(session.chars().take(256).collect());
        }
        self.record.stream = conversation.stream;
        respond::note_conversation(&mut self.record, conversation);
        let policy = config.policy(&caller.principal).ok_or_else(|| model_not_found(""))?;
        let (index, model) = find_model(config, conversation)?;
        self.record.model.clone_from(&model.name);
        if !policy.allows(model) {
            return Err(Refusal::new(Reason::ModelNotAllowed, "This key may not use the model.").at("model"));
        }
        let deadline = send::deadline(self.record.start_us, caller.timeout_ms, policy, conversation.stream, config);
        let link = usize::from(send::spills(model, policy, context));
        let first = model.chain.get(link).ok_or_else(|| model_not_found(&model.name))?;
        let public_model = conversation.model.as_deref().unwrap_or(&model.name).to_owned();

        let cache_policy = policy.cache.as_ref().filter(|policy| cache::is_cacheable(policy, conversation));
        let input = policy.input_guard.as_ref().filter(|guard| guard.mode != InputMode::Off);
        let unseen = conversation.unseen.as_ref().filter(|_| input.is_some());
        if let Some((at, kind)) = unseen.filter(|_| input.is_some_and(|guard| guard.media == Media::Refuse)) {
            self.record.input_guard = Some(crate::record::GuardRecord {
                mode: "blocking".to_owned(),
                verdict: "failed".to_owned(),
                action: "block".to_owned(),
                text: policy.audit.text.then(|| conversation.latest(AUDIT_BYTES)),
                ..crate::record::GuardRecord::default()
            });
            return Err(not_judged(at, kind));
        }
        let turns = (cache_policy.is_some() || input.is_some()).then(|| conversation.digest());
        let key = cache_policy
            .and(turns.as_ref())
            .map(|turns| cache::Key::of(&caller.principal, &model.name, conversation, turns));
        let entry = key.as_ref().filter(|_| caller.directives.may_read()).and_then(|key| {
            let entry = context.memory.answers.get(key)?;
            cache::is_fresh(entry, &caller.directives, context.now_us / 1_000_000).then(|| entry.clone())
        });
        if entry.is_none() && caller.directives.only_if_cached && (key.is_none() || config.sidecar.is_none()) {
            return Err(not_cached());
        }

        let question = input.zip(turns).filter(|_| entry.is_none()).map(|(input, turns)| {
            let key = guard::Key::of(turns, input.threshold);
            Question { key, asked: asked(conversation, &key, context) }
        });
        let judges_output =
            policy.output_guard.as_ref().is_some_and(|guard| guard.mode != crate::config::OutputMode::Off);
        let judge_first = input.is_some_and(|guard| guard.mode == InputMode::Blocking) || conversation.acts;

        let prompt_tokens = conversation.prompt_tokens();
        let tokens = if entry.is_some() {
            0
        } else {
            quota::reservation(prompt_tokens, conversation.max_tokens, conversation.choices)
        };
        let bucket = format!("quota/{}/{}", caller.principal.tenant, caller.principal.user);
        let exchange = Exchange {
            wire: match caller.wire {
                WireName::Chat => Wire::Chat,
                WireName::OpenAi => Wire::OpenAi { include_usage: conversation.include_usage },
            },
            stream: conversation.stream,
            model: index,
            link,
            public_model,
            body: openai::write_for_provider(conversation, openai::Edits { model: &first.model }),
            request_id: caller.request_id.clone(),
            affinity: affinity::key(model.affinity, &caller.principal, self.record.session.as_deref(), conversation),
            timing: Timing::new(index, conversation, prompt_tokens, policy, deadline, context),
            input: Input::Off,
            unseen: unseen.is_some(),
            said: policy.audit.text.then(|| conversation.latest(AUDIT_BYTES)),
            output_context: judges_output.then(|| config.dialect().output_context(&conversation.turns)),
            lookup: Lookup::None,
            key,
            directives: caller.directives,
            reservation: Reservation { bucket: bucket.clone(), tokens, limited: is_limited(policy) },
            prompt_tokens,
            quota: None,
            phase: Phase::Asking,
            broken: None,
            sent_us: None,
            told_bytes: None,
            principal: caller.principal,
        };
        let plan = entry.map_or(Plan::Proceed { question, judge_first }, |entry| Plan::Replay(Box::new(entry)));
        if exchange.reservation.limited {
            context.effects.push(Effect::Reserve { bucket, limits: policy.limits, tokens });
            Ok(State::Reserving(Box::new(exchange), plan))
        } else {
            Ok(self.proceed(Box::new(exchange), plan, context))
        }
    }

    pub(super) fn on_reserved(
        &mut self,
        mut exchange: Box<Exchange>,
        plan: Plan,
        decision: &Decision,
        context: &mut Context<'_>,
    ) -> State {
        if !decision.granted {
            let mut refusal = Refusal::new(
                Reason::RateLimitExceeded,
                format!("The limit per minute is reached; try again in {} s.", decision.retry_after_s),
            );
            refusal.retry_after_s = Some(decision.retry_after_s);
            let state = self.refuse(refusal, context);
            respond::add_rate_headers(context.effects, decision);
            return state;
        }
        self.record.quota = Some(crate::record::QuotaRecord {
            reserved_tokens: exchange.reservation.tokens,
            settled_tokens: exchange.reservation.tokens,
        });
        exchange.quota = Some(decision.clone());
        self.proceed(exchange, plan, context)
    }

    /// The callouts start together; without any the request goes on at once.
    fn proceed(&mut self, mut exchange: Box<Exchange>, plan: Plan, context: &mut Context<'_>) -> State {
        let (question, judge_first) = match plan {
            Plan::Replay(entry) => return self.replay(&exchange, &entry, context),
            Plan::Proceed { question, judge_first } => (question, judge_first),
        };
        respond::note_cache(&mut self.record, &exchange, context.config);
        if let Some(question) = question
            && let Some(refusal) = self.ask_input_guard(&mut exchange, question, judge_first, context)
        {
            self.settle(&exchange, 0, context);
            return self.refuse(refusal, context);
        }
        if exchange.key.is_some() && exchange.directives.may_read() {
            self.ask_sidecar(&mut exchange, context);
        }
        self.send_when_ready(exchange, context)
    }

    /// Sends the request on to its provider unless something has to come first.
    pub(super) fn send_when_ready(&mut self, mut exchange: Box<Exchange>, context: &mut Context<'_>) -> State {
        let judged = !matches!(exchange.input, Input::Pending { first: true, .. });
        if !judged || exchange.lookup == Lookup::Pending {
            return State::Exchanging(exchange);
        }
        if exchange.directives.only_if_cached {
            self.settle(&exchange, 0, context);
            return self.refuse(not_cached(), context);
        }
        if exchange.timing.deadline.is_over(context.now_us) {
            self.settle(&exchange, 0, context);
            return self.refuse(deadline::refusal(), context);
        }
        self.send(&mut exchange, context);
        exchange.phase = Phase::Sent;
        State::Exchanging(exchange)
    }

    fn ask_input_guard(
        &mut self,
        exchange: &mut Exchange,
        question: Question,
        judge_first: bool,
        context: &mut Context<'_>,
    ) -> Option<Refusal> {
        let mut record = crate::record::GuardRecord {
            mode: if judge_first { "blocking" } else { "parallel" }.to_owned(),
            model: context.config.guard.as_ref().map(|guard| guard.model.clone()).unwrap_or_default(),
            ..Default::default()
        };
        match question.asked {
            Asked::Before(verdict) => {
                self.record.input_guard = Some(record);
                self.apply_input_verdict(exchange, &verdict, &question.key, context)
            }
            Asked::Never => {
                self.record.input_guard = Some(record);
                let verdict = guard::Verdict::Failed;
                let refusal = self.apply_input_verdict(exchange, &verdict, &question.key, context);
                let too_long = "What the last message says is longer than the safety check can judge.";
                refusal.map(|_| Refusal::new(Reason::RequestTooLarge, too_long).at("messages"))
            }
            Asked::Now { prompts } => {
                record.verdict = "pending".to_owned();
                record.start_us = Some(context.now_us);
                self.record.input_guard = Some(record);
                self.call_input_guard(exchange, prompts, question.key, judge_first, context);
                None
            }
        }
    }
}

/// A verdict that is remembered needs no prompt.
fn asked(conversation: &Conversation<'_>, key: &guard::Key, context: &mut Context<'_>) -> Asked {
    let fresh = |known: &&guard::Remembered| context.now_us.saturating_sub(known.at_us) < guard::REMEMBER_US;
    match context.memory.verdicts.get(key).filter(fresh) {
        Some(known) => Asked::Before(known.verdict.clone()),
        None => context
            .config
            .dialect()
            .input_prompts(&conversation.turns)
            .map_or(Asked::Never, |prompts| Asked::Now { prompts }),
    }
}

fn is_limited(policy: &Policy) -> bool {
    policy.limits.requests_per_minute.is_some() || policy.limits.tokens_per_minute.is_some()
}

fn find_model<'a>(
    config: &'a Config,
    conversation: &Conversation<'_>,
) -> Result<(usize, &'a crate::config::Model), Refusal> {
    let name = conversation.model.as_deref();
    let found = config.models.iter().enumerate().find(|(_, model)| {
        name.is_none_or(|name| model.name == name || model.aliases.iter().any(|alias| alias == name))
    });
    found.ok_or_else(|| model_not_found(name.unwrap_or_default()))
}

pub(super) fn model_not_found(name: &str) -> Refusal {
    let shown: String = name.chars().take(100).collect();
    Refusal::new(
        Reason::ModelNotFound,
        format!("The model `{shown}` does not exist here; GET /v1/models lists those that do."),
    )
    .at("model")
}

fn not_judged(at: &str, kind: &str) -> Refusal {
    Refusal::new(
        Reason::ContentNotJudged,
        format!(
            "The safety check reads text only, and `{at}` is a part of type `{kind}`: send it as text, or not at all."
        ),
    )
    .at(at)
}

fn not_cached() -> Refusal {
    Refusal::new(Reason::NotCached, "The answer is not in the cache, and only-if-cached was asked.")
}
