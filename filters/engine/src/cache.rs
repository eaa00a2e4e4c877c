//! The exact cache: what an entry holds, how its key is made, and when an answer may be served and stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::answer::Answer;
use crate::config;
use crate::conversation::{Conversation, TurnsDigest};
use crate::digest::{Parts, hex};
use crate::identity::Principal;
use crate::record::{Answered, Usage};

/// A stored answer in the common form: it can be replayed as JSON or SSE, by any wire form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Seconds since the Unix epoch at which the answer was made.
    pub created_s: u64,
    /// Seconds since the Unix epoch from which the entry must not be served.
    pub expires_s: u64,
    /// The provider that made it.
    pub provider: String,
    pub answers: Vec<Answered>,
    pub usage: Usage,
}

impl Entry {
    /// What the entry takes in memory, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let answer = |answer: &Answered| {
            let calls = answer.tool_calls.iter().map(|call| call.name.len().saturating_add(call.arguments.len()));
            calls.fold(
                answer.content.len().saturating_add(answer.reasoning.len()).saturating_add(answer.refusal.len()),
                usize::saturating_add,
            )
        };
        self.answers.iter().map(answer).fold(256, usize::saturating_add)
    }
}

/// BLAKE2b-256 over everything the answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Nothing is shared between tenants, nor between policies (whose guards passed the answer). Streaming or not is no
    /// part: one entry replays as either. Parameters count in any order.
    #[must_use]
    pub fn of(principal: &Principal, model: &str, conversation: &Conversation<'_>, turns: &TurnsDigest) -> Self {
        let mut hash = Parts::default();
        for text in [&*principal.tenant, &*principal.policy, model] {
            hash.add(text.as_bytes());
        }
        hash.add(&turns.0);
        // Inserted one by one: collecting would bring a whole sort into the module.
        let mut params: BTreeMap<&str, &RawValue> = BTreeMap::new();
        for (key, value) in conversation.params.iter().filter(|(key, _)| !IRRELEVANT.contains(&&**key)) {
            params.insert(key, value);
        }
        for (key, value) in params {
            hash.add(key.as_bytes());
            hash.add(value.get().as_bytes());
        }
        Self(hash.finish())
    }
}

impl core::fmt::Display for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Parameters that change nothing in the answer.
const IRRELEVANT: [&str; 7] =
    ["user", "safety_identifier", "metadata", "prompt_cache_key", "service_tier", "store", "priority"];

/// The request's `Cache-Control` (RFC 9111 §5.2.1), as far as it makes sense here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Directives {
    /// Do not serve from the cache; the fresh answer replaces the entry.
    pub no_cache: bool,
    /// Neither serve from it nor store.
    pub no_store: bool,
    pub only_if_cached: bool,
    /// Seconds that an entry may be old.
    pub max_age_s: Option<u64>,
}

impl Directives {
    /// Unknown and unreadable directives are ignored, as the RFC asks.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        let mut directives = Self::default();
        let text = String::from_utf8_lossy(value).to_ascii_lowercase();
        for directive in text.split(',').map(str::trim) {
            match directive.split_once('=').map_or((directive, ""), |(name, value)| (name.trim(), value.trim())) {
                ("no-cache", _) => directives.no_cache = true,
                ("no-store", _) => directives.no_store = true,
                ("only-if-cached", _) => directives.only_if_cached = true,
                ("max-age", seconds) => directives.max_age_s = seconds.trim_matches('"').parse().ok(),
                _ => {}
            }
        }
        directives
    }

    #[must_use]
    pub const fn may_read(&self) -> bool {
        !(self.no_cache || self.no_store)
    }
}

/// Whether a request's answer may come from the cache and go into it at all.
#[must_use]
pub fn is_cacheable(policy: &config::Cache, conversation: &Conversation<'_>) -> bool {
    conversation.choices == 1
        && !conversation.acts
        && conversation.temperature.is_none_or(|temperature| temperature <= policy.max_temperature)
}

/// Whether an entry may be served now.
#[must_use]
pub fn is_fresh(entry: &Entry, directives: &Directives, now_s: u64) -> bool {
    let age = now_s.saturating_sub(entry.created_s);
    now_s < entry.expires_s && directives.max_age_s.is_none_or(|max| age <= max)
}

/// The entry to store for an answer that ended well: whole, by its own end, with text.
#[must_use]
pub fn entry(policy: &config::Cache, answer: &Answer, provider: &str, now_s: u64) -> Option<Entry> {
    let well = |choice: &Answered| choice.finish_reason.as_deref() == Some("stop") && !choice.content.is_empty();
    if answer.choices.is_empty() || !answer.choices.iter().all(well) {
        return None;
    }
    Some(Entry {
        created_s: now_s,
        expires_s: now_s.saturating_add(policy.ttl_s),
        provider: provider.to_owned(),
        answers: answer.choices.clone(),
        usage: answer.usage.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai;

    fn principal(tenant: &str) -> Principal {
        Principal { tenant: tenant.into(), user: "u".into(), policy: "p".into() }
    }

    fn key(tenant: &str, model: &str, body: &str) -> Key {
        {
            let conversation = openai::read(body.as_bytes()).unwrap();
            Key::of(&principal(tenant), model, &conversation, &conversation.digest())
        }
    }

    #[test]
    fn the_same_question_has_one_key_however_it_is_written() {
        let one = key("t", "m", r#"{"messages":[{"role":"user","content":"hi"}],"seed":1,"temperature":0}"#);
        for body in [
            r#"{ "temperature":0, "seed":1, "messages": [ {"content":"h\u0069", "role":"user"} ] }"#,
            r#"{"messages":[{"role":"user","content":"hi"}],"seed":1,"temperature":0,"stream":true}"#,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"seed":1,"temperature":0,"user":"x"}"#,
        ] {
            assert_eq!(key("t", "m", body), one, "{body}");
        }
    }

    #[test]
    fn what_changes_the_answer_or_whose_it_is_changes_the_key() {
        let body = r#"{"messages":[{"role":"user","content":"hi"}],"seed":1}"#;
        let one = key("t", "m", body);
        assert_ne!(key("other", "m", body), one);
        assert_ne!(key("t", "other", body), one);
        for body in [
            r#"{"messages":[{"role":"user","content":"hi"}],"seed":2}"#,
            r#"{"messages":[{"role":"user","content":"hi "}],"seed":1}"#,
            r#"{"messages":[{"role":"system","content":"hi"}],"seed":1}"#,
            r#"{"messages":[{"role":"user","content":"hi"},{"role":"user","content":"hi"}],"seed":1}"#,
            r#"{"messages":[{"role":"user","content":"hi"}],"seed":1,"assistant":7}"#,
            r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"7"}],"seed":1}"#,
            r#"{"messages":[{"role":"user","content":"hi","name":"x"}],"seed":1}"#,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{}}]}],"seed":1}"#,
        ] {
            assert_ne!(key("t", "m", body), one, "{body}");
        }
    }

    #[test]
    fn messages_that_only_look_alike_have_keys_of_their_own() {
        let with =
            |message: &str| key("t", "m", &format!(r#"{{"messages":[{{"role":"user","content":"x"}},{message}]}}"#));
        let alike = [
            r#"{"role":"assistant","content":"f({})"}"#,
            r#"{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}"#,
            r#"{"role":"tool","tool_call_id":"1","content":"f({})"}"#,
            r#"{"role":"tool","tool_call_id":"2","content":"f({})"}"#,
            r#"{"role":"user","content":[{"type":"image_url","text":"f({})","image_url":{"url":"a"}}]}"#,
            r#"{"role":"user","content":[{"type":"image_url","text":"f({})","image_url":{"url":"b"}}]}"#,
            r#"{"role":"user","content":"f({})"}"#,
            r#"{"role":"developer","content":"f({})"}"#,
            r#"{"role":"system","content":"f({})"}"#,
        ];
        let mut keys: Vec<String> = alike.iter().map(|message| with(message).to_string()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), alike.len());
    }

    #[test]
    fn cache_control_is_rfc_9111s() {
        let all = Directives { no_cache: true, no_store: true, only_if_cached: true, max_age_s: Some(60) };
        assert_eq!(Directives::parse(b"No-Cache, no-store,only-if-cached , max-age=60, foo=bar"), all);
        assert_eq!(Directives::parse(b"max-age=soon"), Directives::default());
        assert_eq!(Directives::parse(b"\xff"), Directives::default());
    }

    #[test]
    fn only_whole_answers_are_stored_and_only_fresh_ones_served() {
        let policy = config::Cache { ttl_s: 60, max_temperature: 1.0 };
        let mut answer = Answer::default();
        assert_eq!(entry(&policy, &answer, "p", 100), None);
        answer.choices =
            vec![Answered { content: "x".into(), finish_reason: Some("length".into()), ..Answered::default() }];
        assert_eq!(entry(&policy, &answer, "p", 100), None);
        answer.choices[0].finish_reason = Some("stop".into());
        let entry = entry(&policy, &answer, "p", 100).unwrap();
        let directives = |max_age_s| Directives { max_age_s, ..Directives::default() };
        for (max_age, now, fresh) in
            [(None, 100, true), (None, 159, true), (None, 160, false), (Some(10), 110, true), (Some(10), 111, false)]
        {
            assert_eq!(is_fresh(&entry, &directives(max_age), now), fresh);
        }
    }
}
