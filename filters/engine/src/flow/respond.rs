//! The heads and bodies that the gateway itself writes, and what it notes of requests.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::exchange::Exchange;
use super::{Effect, Head, Reply};
use crate::config::Config;
use crate::conversation::Conversation;
use crate::identity::Principal;
use crate::quota::{Decision, Window, go_duration};
use crate::reason::Refusal;
use crate::record::{CacheRecord, Record};

type Headers = Vec<(&'static str, String)>;

const JSON: (&str, &str) = ("content-type", "application/json");

fn json_headers(trace_id: &str) -> Headers {
    vec![(JSON.0, JSON.1.to_owned()), ("x-parapet-trace-id", trace_id.to_owned())]
}

pub(super) fn refusal_headers(refusal: &Refusal, trace_id: &str) -> Headers {
    let mut headers = json_headers(trace_id);
    if let Some(seconds) = refusal.retry_after_s {
        headers.push(("retry-after", seconds.to_string()));
    }
    headers.extend(refusal.allow.map(|method| ("allow", method.to_owned())));
    if refusal.is_lasting || refusal.reason.retry_is_pointless() {
        headers.push(("x-should-retry", "false".to_owned()));
    }
    headers
}

pub(super) fn health(trace_id: &str) -> Reply {
    Reply { status: 200, headers: json_headers(trace_id), body: br#"{"status":"ok"}"#.to_vec() }
}

#[derive(Serialize)]
struct ModelEntry<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

const fn entry(id: &str) -> ModelEntry<'_> {
    // When a model was made is not known here; the field is required by OpenAI's clients.
    ModelEntry { id, object: "model", created: 0, owned_by: "parapet" }
}

pub(super) fn models(names: &[&str], trace_id: &str) -> Reply {
    #[derive(Serialize)]
    struct List<'a> {
        object: &'static str,
        data: Vec<ModelEntry<'a>>,
    }
    let list = List { object: "list", data: names.iter().map(|name| entry(name)).collect() };
    Reply { status: 200, headers: json_headers(trace_id), body: serde_json::to_vec(&list).unwrap_or_default() }
}

pub(super) fn model(name: &str, trace_id: &str) -> Reply {
    Reply { status: 200, headers: json_headers(trace_id), body: serde_json::to_vec(&entry(name)).unwrap_or_default() }
}

/// The head of the request to the sidecar: who the caller is, and nothing else of what the client sent.
pub(super) fn feedback_head(head: &Head<'_>, principal: &Principal) -> Headers {
    let text = |name: &str| head.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let mut headers = vec![
        (JSON.0, JSON.1.to_owned()),
        ("x-parapet-tenant", principal.tenant.clone()),
        ("x-parapet-user", principal.user.clone()),
    ];
    headers.extend(text("content-length").map(|length| ("content-length", length)));
    headers
}

/// OpenAI's rate limit headers, where a limit is set.
pub(super) fn rate_headers(decision: &Decision) -> Headers {
    let mut headers = Vec::new();
    let mut window = |window: Option<Window>, names: [&'static str; 3]| {
        if let Some(window) = window {
            let values = [window.limit.to_string(), window.remaining.to_string(), go_duration(window.reset_us)];
            headers.extend(names.into_iter().zip(values));
        }
    };
    window(
        decision.requests,
        ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
    );
    window(decision.tokens, ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"]);
    headers
}

/// Adds them to the reply that was just decided.
pub(super) fn add_rate_headers(effects: &mut [Effect], decision: &Decision) {
    if let Some(Effect::Reply(reply)) = effects.last_mut() {
        reply.headers.extend(rate_headers(decision));
    }
}

/// The request's content, for the record.
pub(super) fn note_conversation(record: &mut Record, conversation: &Conversation<'_>) {
    record.messages = Some(conversation.messages.clone().into_owned());
    if conversation.params.is_empty() {
        return;
    }
    // Inserted one by one: collecting would bring a whole sort into the module.
    let mut params: BTreeMap<&str, &RawValue> = BTreeMap::new();
    for (key, value) in &conversation.params {
        params.insert(key, value);
    }
    record.params = serde_json::value::to_raw_value(&params).ok();
}

/// What the cache is asked for this request.
pub(super) fn note_cache(record: &mut Record, exchange: &Exchange, config: &Config) {
    let policy = config.policy(&exchange.principal).and_then(|policy| policy.cache.as_ref());
    if policy.is_none() {
        return;
    }
    record.cache = Some(CacheRecord {
        outcome: if exchange.key.is_some() && exchange.directives.may_read() { "miss" } else { "bypass" }.to_owned(),
        key: exchange.key.map(|key| key.to_string()),
        store_s: None,
        age_s: None,
    });
}

/// The gateway's own headers on an answer that did not come from the cache.
pub(super) fn answer_headers(record: &Record, exchange: &Exchange) -> Headers {
    let mut headers = vec![("x-parapet-trace-id", record.id.clone())];
    headers.extend(cache_status(record, exchange).map(|status| ("cache-status", status.to_owned())));
    headers.extend(exchange.quota.iter().flat_map(rate_headers));
    headers
}

/// `Cache-Status` (RFC 9211) for an answer that was not in the cache.
fn cache_status(record: &Record, exchange: &Exchange) -> Option<&'static str> {
    match record.cache.as_ref()?.outcome.as_str() {
        "miss" => Some("parapet; fwd=miss"),
        _ if exchange.key.is_some() => Some("parapet; fwd=request"),
        _ => Some("parapet; fwd=bypass"),
    }
}
