//! The request's head and body: who is asking, through which endpoint, and what for.

use super::{Context, Effect, Flow, Head, State, plan, respond};
use crate::cache::Directives;
use crate::config::Config;
use crate::identity::{self, Principal};
use crate::reason::{Reason, Refusal};
use crate::{chat, deadline, openai, trace};

/// A dotted order has 60 bytes for each ancestor; deeper traces are not joined.
const MAX_DOTTED_ORDER_BYTES: usize = 4_096;

/// What the head told.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) principal: Principal,
    pub(super) wire: WireName,
    pub(super) accepts_stream: bool,
    pub(super) directives: Directives,
    /// The client's own limit, in milliseconds.
    pub(super) timeout_ms: Option<u64>,
    /// Goes on to the provider, so that its logs can be joined.
    pub(super) request_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireName {
    OpenAi,
    Chat,
}

impl Flow {
    pub(super) fn on_head(
        &mut self,
        head: &Head<'_>,
        ends: bool,
        entropy: [u8; 10],
        context: &mut Context<'_>,
    ) -> State {
        self.record.id = trace::uuid_v7(context.now_us, entropy);
        self.record.start_us = context.now_us;
        self.request = entropy.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        self.record.request_id = head.tag("x-request-id");
        let method = head.get(":method").unwrap_or_default();
        let (api, allowed) = match head.path() {
            b"/v1/chat/completions" => ("chat_completions", Some("POST")),
            b"/chat" => ("chat", Some("POST")),
            b"/feedback" => ("feedback", Some("POST")),
            b"/healthz" => ("health", Some("GET")),
            path if path == b"/v1/models" || path.starts_with(b"/v1/models/") => ("models", Some("GET")),
            _ => ("unknown", None),
        };
        self.record.api = api.to_owned();
        let Some(allowed) = allowed else {
            return self.refuse(Refusal::new(Reason::NotFound, "There is nothing at this path."), context);
        };
        if method != allowed.as_bytes() {
            let mut refusal = Refusal::new(Reason::MethodNotAllowed, format!("This path takes {allowed} only."));
            refusal.allow = Some(allowed);
            return self.refuse(refusal, context);
        }
        if api == "health" {
            return self.reply(respond::health(&self.record.id), context);
        }
        let key = identity::presented(head.get("authorization"), head.get("x-api-key"));
        let Some(principal) = key.and_then(|key| identity::identify(context.config, key)) else {
            let message = if key.is_some() {
                "The API key is not known here."
            } else {
                "An API key is needed: Authorization: Bearer KEY, or x-api-key: KEY."
            };
            return self.refuse(Refusal::new(Reason::InvalidApiKey, message), context);
        };
        self.note_caller(head, &principal);
        match api {
            "models" => self.on_models(head.path(), &principal, context),
            "feedback" => {
                context.effects.push(Effect::SetRequestHead(respond::feedback_head(head, &principal)));
                State::Settled
            }
            _ => {
                let timeout_ms = match deadline::asked(head.get(deadline::HEADER)) {
                    Ok(timeout_ms) => timeout_ms,
                    Err(refusal) => return self.refuse(refusal, context),
                };
                let caller = Caller {
                    principal,
                    timeout_ms,
                    wire: if api == "chat" { WireName::Chat } else { WireName::OpenAi },
                    accepts_stream: head.accepts_event_stream(),
                    directives: Directives::parse(head.get("cache-control").unwrap_or_default()),
                    request_id: head.tag("x-request-id"),
                };
                let length = head.number("content-length");
                if length.is_some_and(|length: u64| length > context.config.max_request_bytes as u64) {
                    self.refuse(too_large(context.config), context)
                } else if ends {
                    self.on_body(caller, b"", context)
                } else {
                    State::Reading(Box::new(caller))
                }
            }
        }
    }

    fn note_caller(&mut self, head: &Head<'_>, principal: &Principal) {
        self.record.tenant.clone_from(&principal.tenant);
        self.record.user.clone_from(&principal.user);
        self.record.policy.clone_from(&principal.policy);
        self.record.session = head.tag("x-session-id");
        self.record.feature = head.tag("x-feature");
        self.record.end_user = head.tag("x-user-id");
        self.record.traceparent = head.tag("traceparent");
        self.record.langsmith_parent = head.text("langsmith-trace", MAX_DOTTED_ORDER_BYTES);
    }

    fn reply(&mut self, reply: super::Reply, context: &mut Context<'_>) -> State {
        self.record.status = reply.status;
        context.effects.push(Effect::Reply(reply));
        State::Settled
    }

    fn on_models(&mut self, path: &[u8], principal: &Principal, context: &mut Context<'_>) -> State {
        let config = context.config;
        let allowed =
            |model: &&crate::config::Model| config.policy(principal).is_some_and(|policy| policy.allows(model));
        let models: Vec<&str> = config.models.iter().filter(allowed).map(|model| &*model.name).collect();
        let one = path.strip_prefix(b"/v1/models/").map(percent_decoded);
        match one {
            None => self.reply(respond::models(&models, &self.record.id), context),
            Some(name) => match models.iter().find(|known| **known == name) {
                Some(model) => self.reply(respond::model(model, &self.record.id), context),
                None => self.refuse(plan::model_not_found(&name), context),
            },
        }
    }

    pub(super) fn on_body(&mut self, caller: Caller, body: &[u8], context: &mut Context<'_>) -> State {
        if body.len() > context.config.max_request_bytes {
            return self.refuse(too_large(context.config), context);
        }
        let read = match caller.wire {
            WireName::OpenAi => openai::read(body).map(|conversation| (conversation, None)),
            WireName::Chat => chat::read(body, caller.accepts_stream),
        };
        match read.and_then(|(conversation, session)| self.plan(caller, &conversation, session, context)) {
            Ok(state) => state,
            Err(refusal) => self.refuse(refusal, context),
        }
    }
}

/// A path's segment as it was meant (RFC 3986 §2.1): clients encode the slash in a model's name.
fn percent_decoded(segment: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment;
    while let Some((&byte, after)) = rest.split_first() {
        let decoded = (byte == b'%').then(|| after.split_at_checked(2)).flatten().and_then(|(digits, after)| {
            let digits = core::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 16).ok()?, after))
        });
        let (byte, after) = decoded.unwrap_or((byte, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn too_large(config: &Config) -> Refusal {
    Refusal::new(Reason::RequestTooLarge, format!("The request is larger than {} bytes.", config.max_request_bytes))
}
