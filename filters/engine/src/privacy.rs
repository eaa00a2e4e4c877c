//! What of a request may be written down. The record is the only thing that leaves Envoy, so this is applied to it before
//! it is written, and nothing behind it ever sees more.

use serde_json::value::RawValue;

use crate::config::Trace;
use crate::digest::{Parts, hex};
use crate::record::{Content, Record};
use crate::redact::{Rules, redact_json};

/// Applies a policy's rules to the record of a request that is over.
pub(crate) fn apply(policy: &Trace, record: &mut Record) {
    record.unsampled = !is_sampled(&record.id, policy.sampling);
    if policy.content != Content::Full {
        withhold(policy.content, record);
    }
    if !policy.redact.is_empty() {
        redact(&policy.redact, record);
    }
    // An answer that is not whole in here is none that may be given to others.
    if let Some(cache) = record.cache.as_mut().filter(|_| policy.content != Content::Full || record.redacted) {
        cache.store_s = None;
    }
}

/// Whether the trace is one of the `share` (0 to 1) that are kept; the id's random end decides, so that everyone who asks
/// of the same trace decides alike.
fn is_sampled(id: &str, share: f64) -> bool {
    let random = id.get(id.len().saturating_sub(12)..).and_then(|tail| u64::from_str_radix(tail, 16).ok());
    random.is_none_or(|random| (random as f64) < share * SPACE)
}

/// Twelve hexadecimal digits.
const SPACE: f64 = 281_474_976_710_656.0;

fn withhold(content: Content, record: &mut Record) {
    record.content = content;
    if content == Content::Hash {
        record.prompt_digest = record.messages.as_deref().map(prompt_digest);
        if !record.answers.is_empty() {
            let mut answer = Parts::default();
            for choice in &record.answers {
                for text in [&choice.content, &choice.reasoning, &choice.refusal] {
                    answer.add(text.as_bytes());
                }
                for call in &choice.tool_calls {
                    answer.add(call.name.as_bytes());
                    answer.add(call.arguments.as_bytes());
                }
            }
            record.answer_digest = Some(hex(&answer.finish()));
        }
    }
    record.messages = None;
    record.params = record.params.as_deref().and_then(numbers_only);
    for choice in &mut record.answers {
        choice.content.clear();
        choice.reasoning.clear();
        choice.refusal.clear();
        choice.tool_calls.clear();
    }
}

/// [`Record::prompt_digest`] of messages.
#[must_use]
pub fn prompt_digest(messages: &RawValue) -> String {
    let mut prompt = Parts::default();
    prompt.add(messages.get().as_bytes());
    hex(&prompt.finish())
}

/// The parameters without those that can hold text (`tools`, `metadata`, `prediction`, ...).
fn numbers_only(params: &RawValue) -> Option<Box<RawValue>> {
    let all: std::collections::BTreeMap<&str, &RawValue> = serde_json::from_slice(params.get().as_bytes()).ok()?;
    let mut kept = std::collections::BTreeMap::new();
    for (key, value) in all {
        if !value.get().starts_with(['"', '{', '[']) {
            kept.insert(key, value);
        }
    }
    if kept.is_empty() { None } else { serde_json::value::to_raw_value(&kept).ok() }
}

fn redact(rules: &Rules, record: &mut Record) {
    let mut changed = false;
    for json in [&mut record.messages, &mut record.params].into_iter().flatten() {
        if let Some(redacted) = redact_json(rules, json.get()) {
            // What cannot be read again is not written down at all.
            *json = serde_json::from_slice(redacted.as_bytes()).unwrap_or_else(|_| RawValue::NULL.to_owned());
            changed = true;
        }
    }
    for choice in &mut record.answers {
        for text in [&mut choice.content, &mut choice.reasoning, &mut choice.refusal] {
            changed |= rules.apply(text);
        }
        for call in &mut choice.tool_calls {
            changed |= rules.apply(&mut call.name);
            // A JSON text inside a string: an escape in it hides nothing either.
            match redact_json(rules, &call.arguments) {
                Some(redacted) => (call.arguments, changed) = (redacted, true),
                None => changed |= rules.apply(&mut call.arguments),
            }
        }
    }
    // What an operator wants in the audit log, in spite of what becomes of the content.
    for guard in [&mut record.input_guard, &mut record.output_guard].into_iter().flatten() {
        changed |= guard.text.as_mut().is_some_and(|text| rules.apply(text));
    }
    // What clients say of themselves.
    let tags = [&mut record.session, &mut record.feature, &mut record.end_user, &mut record.request_id];
    for text in tags.into_iter().flatten() {
        changed |= rules.apply(text);
    }
    record.redacted = changed;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Answered, CacheRecord, ToolCall};
    use crate::redact::Kind;

    fn record() -> Record {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).ok();
        Record {
            id: "01912345-6789-7fff-bfff-400000000000".into(),
            messages: raw(r#"[{"role":"user","content":"I am alice@example.com"}]"#),
            params: raw(r#"{"temperature":0.5,"metadata":{"mail":"alice@example.com"},"seed":7,"logprobs":true}"#),
            answers: vec![Answered {
                content: "Hello alice@example.com".into(),
                tool_calls: vec![ToolCall {
                    arguments: r#"{"to":"alice\u0040example.com"}"#.into(),
                    ..ToolCall::default()
                }],
                finish_reason: Some("stop".into()),
                ..Answered::default()
            }],
            end_user: Some("alice@example.com".into()),
            cache: Some(CacheRecord { store_s: Some(60), ..CacheRecord::default() }),
            ..Record::default()
        }
    }

    fn after(policy: &Trace) -> (Record, String) {
        let mut record = record();
        apply(policy, &mut record);
        let json = serde_json::to_string(&record).unwrap();
        (record, json)
    }

    #[test]
    fn with_everything_allowed_nothing_changes() {
        let (_, json) = after(&Trace::default());
        assert_eq!(json, serde_json::to_string(&record()).unwrap());
    }

    #[test]
    fn redaction_reaches_every_text_and_what_is_redacted_is_not_cached() {
        let redact = Rules { kinds: vec![Kind::Email], patterns: Vec::new() };
        let (record, json) = after(&Trace { redact, ..Trace::default() });
        assert!(record.redacted && !json.contains("example.com"), "{json}");
        assert_eq!(json.matches("[email]").count(), 5, "{json}");
        assert_eq!(record.cache.unwrap().store_s, None);
    }

    #[test]
    fn redaction_that_finds_nothing_leaves_the_answer_to_the_cache() {
        let redact = Rules { kinds: vec![Kind::Card], patterns: Vec::new() };
        let (record, _) = after(&Trace { redact, ..Trace::default() });
        assert_eq!((record.redacted, record.cache.unwrap().store_s), (false, Some(60)));
    }

    #[test]
    fn without_content_only_numbers_and_reasons_are_left() {
        for (content, digests) in [(Content::Hash, true), (Content::None, false)] {
            let (record, json) = after(&Trace { content, ..Trace::default() });
            // A tag is no content: redaction is for those.
            assert_eq!(json.matches("alice").count(), 1, "{json}");
            assert_eq!(record.params.unwrap().get(), r#"{"logprobs":true,"seed":7,"temperature":0.5}"#);
            assert_eq!(record.answers[0].finish_reason.as_deref(), Some("stop"));
            assert_eq!(record.prompt_digest.is_some() && record.answer_digest.is_some(), digests);
            assert_eq!(record.cache.unwrap().store_s, None);
        }
    }

    #[test]
    fn equal_texts_have_equal_digests() {
        let hash = Trace { content: Content::Hash, ..Trace::default() };
        let (one, other) = (after(&hash).0, after(&hash).0);
        assert_eq!((&one.prompt_digest, &one.answer_digest), (&other.prompt_digest, &other.answer_digest));
        assert_ne!(one.prompt_digest, one.answer_digest);
    }

    #[test]
    fn a_share_of_the_traces_is_kept() {
        let unsampled = |sampling| after(&Trace { sampling, ..Trace::default() }).0.unsampled;
        // The id's random end stands at a quarter.
        assert_eq!([0.0, 0.2, 0.3, 1.0].map(unsampled), [true, true, false, false]);
    }

    #[test]
    fn the_audited_text_is_redacted_and_outlives_withheld_content() {
        let mut record = record();
        let text = Some("mail alice@example.com".to_owned());
        record.input_guard = Some(crate::record::GuardRecord { text, ..Default::default() });
        let redact = Rules { kinds: vec![Kind::Email], patterns: Vec::new() };
        apply(&Trace { content: Content::None, redact, ..Trace::default() }, &mut record);
        let text = record.input_guard.unwrap().text.unwrap();
        assert!(text.starts_with("mail ") && !text.contains("alice") && record.redacted, "{text}");
    }
}
