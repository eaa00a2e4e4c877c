//! The record as a line of the log, written by hand: its keys need no escaping, and through serde, which escapes them all
//! the same, each line took twice the instructions and the module 8 KB more. What it writes is what serde would write
//! (tested on records with every field), so readers need to know of serde's form only.

use serde_json::value::RawValue;

use super::{Answered, Attempt, CacheRecord, Content, GuardRecord, QuotaRecord, Record, ToolCall, Usage};

/// What the fields take beside the texts, roughly.
const FIELDS_BYTES: usize = 1536;

impl Record {
    /// The record as JSON, without a line end.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        // Most of a line is its texts: growing to their size step by step would copy them several times.
        let texts = self.answers.iter().map(|answer| answer.content.len()).fold(0, usize::saturating_add);
        let messages = self.messages.as_ref().map_or(0, |messages| messages.get().len());
        let mut line = Line(Vec::with_capacity(texts.saturating_add(messages).saturating_add(FIELDS_BYTES)));
        line.object(|line| self.write(line));
        line.0
    }

    fn write(&self, line: &mut Line) {
        line.number("v", self.v.into());
        line.text("id", &self.id);
        line.number("start_us", self.start_us);
        line.number("end_us", self.end_us);
        line.text("api", &self.api);
        line.number("status", self.status.into());
        line.optional_text("reason", self.reason.as_ref());
        line.filled_text("tenant", &self.tenant);
        line.filled_text("user", &self.user);
        line.filled_text("policy", &self.policy);
        line.filled_text("revision", &self.revision);
        line.optional_text("session", self.session.as_ref());
        line.optional_text("feature", self.feature.as_ref());
        line.optional_text("end_user", self.end_user.as_ref());
        line.optional_text("request_id", self.request_id.as_ref());
        line.optional_text("traceparent", self.traceparent.as_ref());
        line.optional_text("langsmith_parent", self.langsmith_parent.as_ref());
        line.filled_text("model", &self.model);
        line.truth("stream", self.stream);
        line.optional_raw("messages", self.messages.as_deref());
        line.optional_raw("params", self.params.as_deref());
        line.filled_list("answers", &self.answers, Answered::write);
        line.optional_number("first_token_us", self.first_token_us);
        line.optional_object("usage", self.usage.as_ref(), Usage::write);
        line.number("cost_nanousd", self.cost_nanousd);
        line.optional_object("input_guard", self.input_guard.as_ref(), GuardRecord::write);
        line.optional_object("output_guard", self.output_guard.as_ref(), GuardRecord::write);
        line.optional_object("cache", self.cache.as_ref(), CacheRecord::write);
        line.optional_object("quota", self.quota.as_ref(), QuotaRecord::write);
        line.filled_list("attempts", &self.attempts, Attempt::write);
        line.flag("spilled", self.spilled);
        match self.content {
            Content::Full => {}
            Content::Hash => line.text("content", "hash"),
            Content::None => line.text("content", "none"),
        }
        line.optional_text("prompt_digest", self.prompt_digest.as_ref());
        line.optional_text("answer_digest", self.answer_digest.as_ref());
        line.flag("redacted", self.redacted);
        line.flag("unsampled", self.unsampled);
        line.flag("client_aborted", self.client_aborted);
        line.flag("truncated", self.truncated);
    }
}

impl Answered {
    fn write(&self, line: &mut Line) {
        line.text("content", &self.content);
        line.filled_text("reasoning", &self.reasoning);
        line.filled_text("refusal", &self.refusal);
        line.filled_list("tool_calls", &self.tool_calls, ToolCall::write);
        line.optional_text("finish_reason", self.finish_reason.as_ref());
    }
}

impl ToolCall {
    fn write(&self, line: &mut Line) {
        line.text("id", &self.id);
        line.text("name", &self.name);
        line.text("arguments", &self.arguments);
    }
}

impl Usage {
    fn write(&self, line: &mut Line) {
        line.number("prompt", self.prompt);
        line.number("completion", self.completion);
        line.optional_number("cached", (self.cached > 0).then_some(self.cached));
        line.optional_number("reasoning", (self.reasoning > 0).then_some(self.reasoning));
        line.flag("estimated", self.estimated);
    }
}

impl GuardRecord {
    fn write(&self, line: &mut Line) {
        line.text("mode", &self.mode);
        line.text("verdict", &self.verdict);
        line.text("action", &self.action);
        if let Some(score) = self.score {
            line.key("score");
            line.json(&score);
        }
        if !self.categories.is_empty() {
            line.key("categories");
            line.json(&self.categories);
        }
        line.text("model", &self.model);
        line.number("calls", self.calls.into());
        line.optional_number("start_us", self.start_us);
        line.optional_number("end_us", self.end_us);
        line.optional_text("text_digest", self.text_digest.as_ref());
        line.optional_text("text", self.text.as_ref());
    }
}

impl CacheRecord {
    fn write(&self, line: &mut Line) {
        line.text("outcome", &self.outcome);
        line.optional_text("key", self.key.as_ref());
        line.optional_number("store_s", self.store_s);
        line.optional_number("age_s", self.age_s);
    }
}

impl QuotaRecord {
    fn write(&self, line: &mut Line) {
        line.number("reserved_tokens", self.reserved_tokens);
        line.number("settled_tokens", self.settled_tokens);
    }
}

impl Attempt {
    fn write(&self, line: &mut Line) {
        line.text("provider", &self.provider);
        line.text("model", &self.model);
        line.number("start_us", self.start_us);
        line.optional_number("first_token_us", self.first_token_us);
        line.optional_number("end_us", self.end_us);
        line.number("status", self.status.into());
        line.text("outcome", &self.outcome);
        line.optional_object("usage", self.usage.as_ref(), Usage::write);
        line.optional_number("cost_nanousd", self.cost_nanousd);
        line.optional_number("output_nanousd", self.output_nanousd);
    }
}

/// A JSON text that grows.
struct Line(Vec<u8>);

impl Line {
    fn object(&mut self, members: impl FnOnce(&mut Self)) {
        self.0.push(b'{');
        members(self);
        self.0.push(b'}');
    }

    /// What follows is a value.
    fn key(&mut self, key: &'static str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn json<T: serde::Serialize + ?Sized>(&mut self, value: &T) {
        // Writing into memory does not fail, and none of the values is a map with keys that are no texts.
        let _ = serde_json::to_writer(&mut self.0, value);
    }

    fn text(&mut self, key: &'static str, text: &str) {
        self.key(key);
        self.json(text);
    }

    fn filled_text(&mut self, key: &'static str, text: &str) {
        if !text.is_empty() {
            self.text(key, text);
        }
    }

    fn optional_text(&mut self, key: &'static str, text: Option<&String>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn number(&mut self, key: &'static str, number: u64) {
        self.key(key);
        self.json(&number);
    }

    fn optional_number(&mut self, key: &'static str, number: Option<u64>) {
        if let Some(number) = number {
            self.number(key, number);
        }
    }

    fn truth(&mut self, key: &'static str, truth: bool) {
        self.key(key);
        self.0.extend_from_slice(if truth { b"true" } else { b"false" });
    }

    fn flag(&mut self, key: &'static str, flag: bool) {
        if flag {
            self.truth(key, true);
        }
    }

    fn optional_raw(&mut self, key: &'static str, json: Option<&RawValue>) {
        if let Some(json) = json {
            self.key(key);
            self.0.extend_from_slice(json.get().as_bytes());
        }
    }

    fn optional_object<T>(&mut self, key: &'static str, object: Option<&T>, write: fn(&T, &mut Self)) {
        if let Some(object) = object {
            self.key(key);
            self.object(|line| write(object, line));
        }
    }

    fn filled_list<T>(&mut self, key: &'static str, items: &[T], write: fn(&T, &mut Self)) {
        let Some((first, rest)) = items.split_first() else { return };
        self.key(key);
        self.0.push(b'[');
        self.object(|line| write(first, line));
        for item in rest {
            self.0.push(b',');
            self.object(|line| write(item, line));
        }
        self.0.push(b']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    /// Every field there is, none at its default: a field that the writer does not know fails here.
    fn full() -> Value {
        let usage = json!({"prompt": 1, "completion": 2, "cached": 3, "reasoning": 4, "estimated": true});
        let guard = json!({
            "mode": "parallel", "verdict": "unsafe", "action": "block", "score": 0.25, "categories": ["S1", "S9"],
            "model": "guard", "calls": 2, "start_us": 10, "end_us": 11, "text_digest": "ab", "text": "\u{1}\"é\u{1f600}"
        });
        let attempts = json!([
            {"provider": "p", "model": "m", "start_us": 1, "first_token_us": 2, "end_us": 3, "status": 200,
             "outcome": "ok", "usage": usage, "cost_nanousd": 4, "output_nanousd": 3},
            {"provider": "", "model": "", "start_us": 0, "status": 0, "outcome": ""}
        ]);
        json!({
            "v": 1, "id": "id", "start_us": 5, "end_us": u64::MAX, "api": "chat", "status": 200, "reason": "content_blocked",
            "tenant": "acme", "user": "alice", "policy": "standard", "revision": "r", "session": "s", "feature": "f", "end_user": "e",
            "request_id": "r", "traceparent": "t", "langsmith_parent": "l", "model": "m", "stream": true,
            "messages": [{"role": "user", "content": "x\ny"}], "params": {"temperature": 0.5},
            "answers": [
                {"content": "a\t", "reasoning": "b", "refusal": "c", "finish_reason": "stop",
                 "tool_calls": [{"id": "1", "name": "f", "arguments": "{}"}, {"id": "2", "name": "g", "arguments": "[]"}]},
                {"content": ""}
            ],
            "first_token_us": 7, "usage": usage, "cost_nanousd": 9, "input_guard": guard, "output_guard": guard,
            "cache": {"outcome": "miss", "key": "k", "store_s": 3600, "age_s": 1},
            "quota": {"reserved_tokens": 10, "settled_tokens": 20},
            "attempts": attempts,
            "spilled": true, "content": "hash", "prompt_digest": "pd", "answer_digest": "ad", "redacted": true,
            "unsampled": true, "client_aborted": true, "truncated": true
        })
    }

    fn read<T: DeserializeOwned>(value: &Value) -> T {
        serde_json::from_str(&value.to_string()).unwrap()
    }

    #[test]
    fn a_line_is_what_serde_writes() {
        let record: Record = read(&full());
        let line = String::from_utf8(record.to_line()).unwrap();
        assert_eq!(line, serde_json::to_string(&record).unwrap());
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), full());
        let bare = Record::default();
        assert_eq!(String::from_utf8(bare.to_line()).unwrap(), serde_json::to_string(&bare).unwrap());
    }

    proptest! {
        #[test]
        fn whatever_is_missing_and_whatever_the_texts_are(left_out in proptest::collection::vec(any::<bool>(), 40), text: String) {
            let full = full().as_object().unwrap().clone();
            let mut some: Value = full.into_iter().zip(left_out).filter(|(_, out)| !out).map(|(member, _)| member).collect();
            some["user"] = text.clone().into();
            some["answers"] = json!([{"content": text}]);
            let record: Record = read(&some);
            prop_assert_eq!(String::from_utf8(record.to_line()).unwrap(), serde_json::to_string(&record).unwrap());
        }
    }
}
