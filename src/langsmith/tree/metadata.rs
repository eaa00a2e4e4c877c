//! What of a record can be selected by: tags and flat metadata. Their names are stable.

use parapet_engine::privacy::prompt_digest;
use parapet_engine::record::{Attempt, Record};
use serde_json::{Map, Value};

use super::{Builder, blocked, failed_over, labelled, usd};
use crate::audit::key::Key;

impl Builder<'_> {
    /// What every run of the tree carries: the thread, and whose it is.
    pub(super) fn metadata(&self) -> Map<String, Value> {
        let record = self.record;
        let mut metadata = Map::new();
        metadata.extend(record.session.clone().map(|session| ("session_id".to_owned(), session.into())));
        for (key, value) in [
            ("tenant", &record.tenant),
            ("user", &record.user),
            ("policy", &record.policy),
            // LangSmith's own name for which version of an application made a run.
            ("revision_id", &record.revision),
        ] {
            if !value.is_empty() {
                metadata.insert(key.into(), value.clone().into());
            }
        }
        for (key, value) in [("feature", &record.feature), ("end_user", &record.end_user)] {
            metadata.extend(value.clone().map(|value| (key.to_owned(), value.into())));
        }
        metadata
    }

    pub(super) fn root_metadata(&self) -> Map<String, Value> {
        let record = self.record;
        let mut metadata = self.metadata();
        let mut put = |key: &str, value: Value| {
            metadata.insert(key.to_owned(), value);
        };
        put("api", record.api.clone().into());
        let route = match record.api.as_str() {
            "chat_completions" => Some("/v1/chat/completions"),
            "chat" => Some("/chat"),
            _ => None,
        };
        if let Some(route) = route {
            put("route", route.into());
        }
        put("model", record.model.clone().into());
        put("stream", record.stream.into());
        put("status", record.status.into());
        put("attempts", record.attempts.len().into());
        put("client_aborted", record.client_aborted.into());
        if record.truncated {
            put("truncated", true.into());
        }
        if record.redacted {
            put("redacted", true.into());
        }
        for (key, value) in [
            ("reason", record.reason.as_ref()),
            ("request_id", record.request_id.as_ref()),
            ("traceparent", record.traceparent.as_ref()),
            ("finish_reason", record.answers.first().and_then(|answer| answer.finish_reason.as_ref())),
        ] {
            if let Some(value) = value {
                put(key, value.clone().into());
            }
        }
        if let Some(attempt) = decisive(record) {
            put("provider", attempt.provider.clone().into());
        }
        if let Some(first) = record.first_token_us {
            put("first_token_ms", milliseconds(first.saturating_sub(record.start_us)).into());
        }
        for (side, guard) in [("input", &record.input_guard), ("output", &record.output_guard)] {
            let Some(guard) = guard else { continue };
            put(&format!("{side}_guard_verdict"), guard.verdict.clone().into());
            put(&format!("{side}_guard_action"), guard.action.clone().into());
            put(&format!("{side}_guard_model"), guard.model.clone().into());
            put(&format!("{side}_guard_categories"), guard.categories.clone().into());
            if let Some(score) = guard.score {
                put(&format!("{side}_guard_score"), score.into());
            }
        }
        // Whatever the side: a rule about them need not know it.
        let guards = || [&record.input_guard, &record.output_guard].into_iter().flatten();
        let mut categories: Vec<&str> = guards().flat_map(|guard| &guard.categories).map(String::as_str).collect();
        categories.sort_unstable();
        categories.dedup();
        if !categories.is_empty() {
            put("categories", categories.into());
        }
        if let Some(score) = guards().filter_map(|guard| guard.score).reduce(f64::max) {
            put("guard_score", score.into());
        }
        if let Some(guard) = guards().next() {
            put("guard_model", guard.model.clone().into());
        }
        for (side, guard) in [("input", &record.input_guard), ("output", &record.output_guard)] {
            if blocked(guard.as_ref()) {
                put("blocked", side.into());
            }
        }
        if let Some(cache) = &record.cache {
            put("cache", cache.outcome.clone().into());
            if let Some(age) = cache.age_s {
                put("cache_age_s", age.into());
            }
        }
        if let Some(usage) = record.usage {
            put("input_tokens", usage.prompt.into());
            put("output_tokens", usage.completion.into());
        }
        if record.cost_nanousd > 0 {
            put("cost_usd", usd(record.cost_nanousd).into());
        }
        if !matches!(self.line.flags.as_str(), "" | "-") {
            put("envoy_response_flags", self.line.flags.clone().into());
        }
        self.digests(&mut metadata);
        metadata
    }

    /// By which equal texts are known again; a prompt's also where its text is there, for rules that group by it.
    pub(super) fn digests(&self, metadata: &mut Map<String, Value>) {
        metadata.extend(self.digests.iter().map(|(name, digest)| ((*name).to_owned(), digest.clone().into())));
    }

    pub(super) fn tags(&self) -> Vec<String> {
        let record = self.record;
        let mut tags = Vec::new();
        for (side, guard) in [("input", &record.input_guard), ("output", &record.output_guard)] {
            if blocked(guard.as_ref()) {
                tags.push(format!("blocked:{side}"));
            } else if guard.as_ref().is_some_and(|guard| guard.action == "flag") {
                tags.push(format!("flagged:{side}"));
            }
        }
        if let Some(cache) = &record.cache {
            tags.extend(labelled("cache:", &cache.outcome));
        }
        if let Some(attempt) = decisive(record) {
            tags.extend(labelled("provider:", &attempt.provider));
        }
        if failed_over(record) {
            tags.push("failover".to_owned());
        }
        // An attempt that another was faster than: both were asked at a time.
        if record.attempts.iter().any(|attempt| attempt.outcome == "lost") {
            tags.push("hedged".to_owned());
        }
        tags
    }
}

/// Keyed: a digest itself could be checked against guesses.
pub(super) fn digests(record: &Record, key: Option<&Key>) -> Vec<(&'static str, String)> {
    let Some(key) = key else { return Vec::new() };
    let prompt = record.prompt_digest.clone().or_else(|| record.messages.as_deref().map(prompt_digest));
    let digests = [("prompt_hash", prompt.as_ref()), ("answer_hash", record.answer_digest.as_ref())];
    digests.into_iter().filter_map(|(name, digest)| Some((name, key.hmac(digest?.as_bytes())))).collect()
}

/// The attempt that gave the answer, else the last one.
fn decisive(record: &Record) -> Option<&Attempt> {
    record.attempts.iter().rfind(|attempt| attempt.outcome == "ok").or(record.attempts.last())
}

fn milliseconds(us: u64) -> f64 {
    us as f64 / 1e3
}
