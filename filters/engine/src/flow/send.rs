//! The request on its way to a provider: its limits, its head.

use super::exchange::Exchange;
use super::{Context, Effect, Flow};
use crate::affinity;
use crate::config::{Config, Model, Policy};
use crate::conversation::Conversation;
use crate::deadline::Deadline;
use crate::hedge::Terms;
use crate::provider::Ask;

/// The largest timeout in Envoy's per-try header that still makes sense: an hour.
const MAX_TRY_MS: u64 = 3_600_000;

/// The length that a JSON answer without `max_tokens` is given time for.
const DEFAULT_ANSWER_TOKENS: u64 = 512;

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Without a token (streams) or an answer (JSON) for so long, the next provider is asked in any case.
    pub(super) limit_ms: u64,
    /// The same as a hedge, within the budget; at most `limit_ms`.
    pub(super) hedge_ms: u64,
    /// Hedges for every hundred requests; `None`: none.
    pub(super) hedge_percent: Option<u32>,
    pub(super) deadline: Deadline,
}

impl Timing {
    pub(super) fn new(
        model: usize,
        conversation: &Conversation<'_>,
        prompt_tokens: u64,
        policy: &Policy,
        deadline: Deadline,
        context: &Context<'_>,
    ) -> Self {
        let limits = &context.config.first_token;
        // A JSON answer shows no first token: it is given time for all of its tokens.
        let tokens =
            conversation.max_tokens.unwrap_or(DEFAULT_ANSWER_TOKENS).saturating_mul(conversation.choices.max(1));
        let generation_ms = if conversation.stream { 0 } else { limits.per_token_ms.saturating_mul(tokens) };
        let limit_ms = if conversation.stream {
            context.memory.first_tokens.limit_ms(model, prompt_tokens, limits)
        } else {
            limits.json_ms.saturating_add(generation_ms)
        };
        let limit_ms = limit_ms.min(MAX_TRY_MS);
        let hedge_ms = policy.hedge_after_ms.map(|after_ms| after_ms.saturating_add(generation_ms));
        match hedge_ms.filter(|hedge_ms| *hedge_ms < limit_ms) {
            Some(hedge_ms) => Self { limit_ms, hedge_ms, hedge_percent: Some(policy.hedge_budget_percent), deadline },
            None => Self { limit_ms, hedge_ms: limit_ms, hedge_percent: None, deadline },
        }
    }
}

/// What is known of a request at its end, whatever became of it since it was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// Index in the configuration's models.
    pub(super) model: usize,
    /// Index in its chain of the provider that was asked first.
    pub(super) link: usize,
    pub(super) stream: bool,
    /// Estimated.
    pub(super) prompt_tokens: u64,
}

/// The first provider of the chain would only queue the request: it goes to the second.
pub(super) fn spills(model: &Model, policy: &Policy, context: &Context<'_>) -> bool {
    let (Some(spill), Some(_), Some(first)) = (&policy.spill, &model.spill_cluster, model.chain.first()) else {
        return false;
    };
    context.memory.loads.is_full(&first.provider, spill, context.now_us)
}

/// When a request of this policy has to be over. A stream may take what it takes unless somebody says otherwise.
pub(super) fn deadline(
    start_us: u64,
    asked_ms: Option<u64>,
    policy: &Policy,
    stream: bool,
    config: &Config,
) -> Deadline {
    let default_ms = (!stream).then_some(config.first_token.deadline_ms);
    Deadline::new(start_us, asked_ms, policy.deadline_ms.or(default_ms))
}

impl Flow {
    pub(super) fn send(&mut self, exchange: &mut Exchange, context: &mut Context<'_>) {
        let body = core::mem::take(&mut exchange.body);
        let Timing { limit_ms, hedge_percent, .. } = exchange.timing;
        let give_up_at = Deadline::new(self.record.start_us, None, Some(context.config.first_token.deadline_ms));
        let give_up_ms = give_up_at.left_ms(context.now_us).filter(|_| exchange.stream).map(|ms| ms.max(1));
        let terms = Terms { request: self.request, limit_ms, hedge_percent, give_up_ms };
        let ask =
            Ask { model: exchange.model, link: exchange.link, body_bytes: body.len(), stream: exchange.stream, terms };
        context.effects.push(Effect::SetRequestHead(head(exchange, body.len(), context)));
        context.effects.push(Effect::SetRequestBody(body));
        context.effects.push(Effect::Share { ask: ask.to_bytes(), trace_id: self.record.id.clone() });
        self.record.spilled = exchange.link > 0;
        self.sent = Some(Sent {
            model: exchange.model,
            link: exchange.link,
            stream: exchange.stream,
            prompt_tokens: exchange.prompt_tokens,
        });
        exchange.sent_us = Some(context.now_us);
    }
}

/// The head of the request to a provider. The client's own head ends here: its key, its cookies, its `x-envoy-*`. Path,
/// authority and key are the provider filter's, once per attempt; until then the client's path chooses the route.
fn head(exchange: &Exchange, body_bytes: usize, context: &Context<'_>) -> Vec<(&'static str, String)> {
    let model = context.config.models.get(exchange.model);
    let cluster = model.map(|model| match &model.spill_cluster {
        Some(spill_cluster) if exchange.link > 0 => spill_cluster.clone(),
        _ => model.cluster.clone(),
    });
    let cluster = cluster.unwrap_or_default();
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("accept", if exchange.stream { "text/event-stream" } else { "application/json" }.to_owned()),
        ("content-length", body_bytes.to_string()),
        ("user-agent", "parapet".to_owned()),
        ("x-parapet-cluster", cluster),
    ];
    let links = model.map_or(0, |model| model.chain.len().saturating_sub(exchange.link));
    if links > 1 {
        // At this limit the next provider is asked beside the one that is slow, and the first token counts: a late one,
        // of the last provider too, beats none. Envoy cannot give the attempts different limits.
        headers.push(("x-envoy-upstream-rq-per-try-timeout-ms", exchange.timing.hedge_ms.max(1).to_string()));
        headers.push(("x-envoy-hedge-on-per-try-timeout", "true".to_owned()));
        if exchange.timing.hedge_percent.is_some() {
            // What is late for a hedge is no failure yet: outlier detection sees this timer as a 204 instead of a 504. A few
            // slow answers in a row would eject the provider, and all of the load would go where a share of it may.
            headers.push(("x-envoy-upstream-rq-timeout-alt-response", "true".to_owned()));
        }
    }
    if let Some(left_ms) = exchange.timing.deadline.left_ms(context.now_us) {
        headers.push(("x-envoy-upstream-rq-timeout-ms", left_ms.max(1).to_string()));
    }
    headers.extend(exchange.request_id.clone().map(|id| ("x-request-id", id)));
    headers.extend(exchange.affinity.clone().map(|key| (affinity::HEADER, key)));
    headers
}
