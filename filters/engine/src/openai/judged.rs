//! What of an answer may leave where its texts are judged: these texts, and beside them nothing that could hold another.
//!
//! A provider may send members that are not known here, a text in a member that holds none, a token's rivals. No guard
//! reads those, so an answer is written anew from what is known.

use serde_json::value::RawValue;

use super::request::{Member, items, json_string, members, text};

/// The words that members without a text say, as they stand in JSON.
const WORDS: [&str; 14] = [
    r#""assistant""#,
    r#""function""#,
    r#""custom""#,
    r#""chat.completion""#,
    r#""chat.completion.chunk""#,
    r#""stop""#,
    r#""length""#,
    r#""tool_calls""#,
    r#""function_call""#,
    r#""content_filter""#,
    r#""default""#,
    r#""flex""#,
    r#""priority""#,
    r#""fast""#,
];

/// Which object of an answer is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Answer,
    Usage,
    Choice,
    /// A delta, or a whole message.
    Delta,
    Call,
    Function,
}

/// What a member holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// What the guard reads.
    Text,
    /// A number, a truth value, null, or one of [`WORDS`].
    Scalar,
    /// The same; what else a provider says is `stop`.
    Finish,
    Fingerprint,
    Id,
    Model,
    Logprobs,
    /// An object, or an array of such.
    Objects(Place),
}

const MEMBERS: [(Place, &str, Holds); 29] = [
    (Place::Answer, "id", Holds::Id),
    (Place::Answer, "object", Holds::Scalar),
    (Place::Answer, "created", Holds::Scalar),
    (Place::Answer, "model", Holds::Model),
    (Place::Answer, "choices", Holds::Objects(Place::Choice)),
    (Place::Answer, "usage", Holds::Objects(Place::Usage)),
    (Place::Answer, "system_fingerprint", Holds::Fingerprint),
    (Place::Answer, "service_tier", Holds::Scalar),
    (Place::Choice, "index", Holds::Scalar),
    (Place::Choice, "delta", Holds::Objects(Place::Delta)),
    (Place::Choice, "message", Holds::Objects(Place::Delta)),
    (Place::Choice, "finish_reason", Holds::Finish),
    (Place::Choice, "logprobs", Holds::Logprobs),
    (Place::Delta, "role", Holds::Scalar),
    (Place::Delta, "content", Holds::Text),
    (Place::Delta, "reasoning_content", Holds::Text),
    (Place::Delta, "reasoning", Holds::Text),
    (Place::Delta, "refusal", Holds::Text),
    (Place::Delta, "tool_calls", Holds::Objects(Place::Call)),
    (Place::Delta, "function_call", Holds::Objects(Place::Function)),
    (Place::Call, "index", Holds::Scalar),
    (Place::Call, "id", Holds::Text),
    (Place::Call, "type", Holds::Scalar),
    (Place::Call, "function", Holds::Objects(Place::Function)),
    (Place::Call, "custom", Holds::Objects(Place::Function)),
    (Place::Function, "name", Holds::Text),
    (Place::Function, "arguments", Holds::Text),
    (Place::Function, "input", Holds::Text),
    (Place::Usage, "", Holds::Objects(Place::Usage)),
];

fn holds(place: Place, key: &str) -> Option<Holds> {
    // Usage grows by new counts with every model.
    let key = if place == Place::Usage && (key.ends_with("_tokens") || key.ends_with("_details")) { "" } else { key };
    MEMBERS.iter().find(|known| known.0 == place && known.1 == key).map(|known| known.2)
}

/// A chunk or a whole answer with the gateway's own `id` and `model`; `None` for what is neither.
#[must_use]
pub fn judged_only(json: &[u8], id: &str, model: &str) -> Option<Vec<u8>> {
    let mut writer = Writer { id, model, out: Vec::with_capacity(json.len()) };
    writer.object(Place::Answer, json)?;
    Some(writer.out)
}

struct Writer<'a> {
    id: &'a str,
    model: &'a str,
    out: Vec<u8>,
}

impl Writer<'_> {
    fn object(&mut self, place: Place, json: &[u8]) -> Option<()> {
        let members = members(json).ok()?;
        self.add(b"{");
        for (key, value) in &members {
            let Some(holds) = holds(place, key) else { continue };
            let start = self.out.len();
            self.key(key);
            if !self.value(holds, value, &members)? {
                self.out.truncate(start);
            }
        }
        self.add(b"}");
        Some(())
    }

    /// Writes a value that may leave; whether it may.
    fn value(&mut self, holds: Holds, value: &RawValue, beside: &[Member<'_>]) -> Option<bool> {
        let json = value.get().as_bytes();
        match holds {
            Holds::Text => self.add(json),
            Holds::Id => self.add(&json_string(self.id)),
            Holds::Model => self.add(&json_string(self.model)),
            Holds::Fingerprint if is_fingerprint(json) => self.add(json),
            Holds::Finish if !is_scalar(value) => self.add(b"\"stop\""),
            Holds::Logprobs => {
                let start = self.out.len();
                if self.logprobs(json, beside).is_none() {
                    self.out.truncate(start);
                    self.add(b"null");
                }
            }
            Holds::Objects(place) if json.starts_with(b"{") => self.object(place, json)?,
            Holds::Objects(place) if json.starts_with(b"[") => {
                self.add(b"[");
                for item in items(value).ok()? {
                    self.separate(b'[');
                    self.object(place, item.get().as_bytes())?;
                }
                self.add(b"]");
            }
            _ if is_scalar(value) => self.add(json),
            _ => return Some(false),
        }
        Some(true)
    }

    // Not inlined, for the module's size.
    #[inline(never)]
    fn add(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    #[inline(never)]
    fn key(&mut self, key: &str) {
        self.separate(b'{');
        self.add(&json_string(key));
        self.add(b":");
    }

    fn separate(&mut self, opening: u8) {
        if self.out.last() != Some(&opening) {
            self.add(b",");
        }
    }

    /// Of the tokens those that are the choice's text, in its order, without their rivals.
    fn logprobs(&mut self, json: &[u8], choice: &[Member<'_>]) -> Option<()> {
        let delta = find(choice, "delta").or_else(|| find(choice, "message"))?;
        let delta = members(delta.get().as_bytes()).ok()?;
        self.add(b"{");
        for (channel, tokens) in members(json).ok()? {
            let Some(Ok(whole)) = find(&delta, &channel).map(text) else { continue };
            let Ok(tokens) = items(tokens) else { continue };
            let mut rest = &*whole;
            self.key(&channel);
            self.add(b"[");
            for token in tokens {
                let members = members(token.get().as_bytes()).ok()?;
                let said = find(&members, "token")?;
                let logprob = find(&members, "logprob").filter(|value| is_scalar(value))?;
                let Some(after) = rest.strip_prefix(&*text(said).ok()?) else { continue };
                rest = after;
                self.separate(b'[');
                self.add(b"{\"token\":");
                self.add(said.get().as_bytes());
                self.add(b",\"logprob\":");
                self.add(logprob.get().as_bytes());
                self.add(b",\"bytes\":null,\"top_logprobs\":[]}");
            }
            self.add(b"]");
        }
        self.add(b"}");
        Some(())
    }
}

#[inline(never)]
fn find<'a>(members: &[Member<'a>], key: &str) -> Option<&'a RawValue> {
    members.iter().find(|(known, _)| known == key).map(|(_, value)| *value)
}

fn is_scalar(value: &RawValue) -> bool {
    match value.get().as_bytes().first() {
        Some(b'{' | b'[') => false,
        Some(b'"') => WORDS.contains(&value.get()),
        _ => true,
    }
}

/// OpenAI's are hexadecimal.
fn is_fingerprint(json: &[u8]) -> bool {
    json.strip_prefix(b"\"fp_").is_some_and(|rest| rest.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(json: &str) -> String {
        String::from_utf8(judged_only(json.as_bytes(), "ours", "public").unwrap()).unwrap()
    }

    fn choice(members: &str) -> String {
        judged(&format!(r#"{{"choices":[{{"index":0,{members}}}]}}"#))
    }

    #[test]
    fn what_the_guard_reads_and_what_holds_no_text_stays_as_it_was() {
        for json in [
            r#"{"id":"ours","object":"chat.completion.chunk","created":1,"model":"public","service_tier":"default","system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"role":"assistant","content":"a\nb","refusal":null,"reasoning":"r"},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[{"index":1,"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"index":1,"type":"custom","custom":{"name":"g","input":"x"}}],"function_call":{"name":"h","arguments":""}},"finish_reason":"tool_calls"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1},"completion_tokens_details":null}}"#,
            r#"{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"x","tool_calls":[]},"finish_reason":"stop"}]}"#,
        ] {
            assert_eq!(judged(json), json);
        }
    }

    #[test]
    fn what_no_guard_reads_does_not_leave() {
        for (members, expected) in [
            (
                r#""delta":{"content":"x","thinking":"bomb","audio":{"transcript":"bomb"},"annotations":[{"t":"bomb"}]}"#,
                r#""delta":{"content":"x"}"#,
            ),
            (r#""delta":{"role":"bomb"},"text":"bomb","token_ids":[7],"stop_reason":"bomb""#, r#""delta":{}"#),
            (r#""delta":{},"finish_reason":"bomb""#, r#""delta":{},"finish_reason":"stop""#),
            (
                r#""delta":{"tool_calls":[{"index":0,"type":"bomb","note":"bomb","function":{"name":"f","bomb":1}}]}"#,
                r#""delta":{"tool_calls":[{"index":0,"function":{"name":"f"}}]}"#,
            ),
        ] {
            assert_eq!(choice(members), format!(r#"{{"choices":[{{"index":0,{expected}}}]}}"#));
        }
        assert_eq!(
            judged(
                r#"{"id":"bomb","object":"bomb","created":"bomb","model":"bomb","system_fingerprint":"fp_bomb","note":"bomb","obfuscation":"bomb","choices":[],"usage":{"prompt_tokens":1,"x_tokens":"bomb","bomb":2}}"#
            ),
            r#"{"id":"ours","model":"public","choices":[],"usage":{"prompt_tokens":1}}"#
        );
    }

    #[test]
    fn log_probabilities_are_those_of_the_text_and_nothing_else() {
        let of = |content: &str, tokens: &[&str]| {
            let tokens: Vec<String> = tokens
                .iter()
                .map(|token| {
                    format!(r#"{{"token":"{token}","logprob":-0.5,"bytes":[98],"top_logprobs":[{{"token":"bomb","logprob":-1}}]}}"#)
                })
                .collect();
            let logprobs = format!(r#"{{"content":[{}],"refusal":null}}"#, tokens.join(","));
            let chunk = choice(&format!(r#""delta":{{"content":"{content}"}},"logprobs":{logprobs}"#));
            chunk.split_once(r#""logprobs":"#).unwrap().1.strip_suffix("}]}").unwrap().to_owned()
        };
        let token = |token| format!(r#"{{"token":"{token}","logprob":-0.5,"bytes":null,"top_logprobs":[]}}"#);
        assert_eq!(
            of("one two", &["one", " two", "<eot>"]),
            format!(r#"{{"content":[{},{}]}}"#, token("one"), token(" two"))
        );
        assert_eq!(of("one", &["bomb"]), r#"{"content":[]}"#);
        assert_eq!(of("", &["bomb"]), r#"{"content":[]}"#);
        assert!(choice(r#""delta":{"content":"x"},"logprobs":"bomb""#).ends_with(r#""logprobs":null}]}"#));
        assert!(choice(r#""logprobs":{"content":[{"token":"bomb"}]}"#).ends_with(r#""logprobs":null}]}"#));
    }

    #[test]
    fn a_form_that_is_read_otherwise_does_not_leave() {
        for json in ["", "[]", r#"{"choices":[["x"]]}"#, r#"{"choices":[{"delta":{"content":"a","content":"b"}}]}"#] {
            assert_eq!(judged_only(json.as_bytes(), "", ""), None, "{json}");
        }
    }
}
