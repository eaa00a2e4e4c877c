//! The common form of a request: one conversation. Wire forms read into it; guards, quota, cache and record see only it.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::digest::Parts;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn<'a> {
    pub role: Role,
    /// Every text of the message that the model will see, in order: content, names, tool calls' arguments.
    pub texts: Vec<Cow<'a, str>>,
    /// It is its role and its one text, and nothing else about it matters.
    pub is_plain: bool,
}

impl Turn<'_> {
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self.texts.as_slice() {
            [one] => Cow::Borrowed(one),
            texts => Cow::Owned(texts.join("\n")),
        }
    }
}

/// What a client asks, whatever API it asked through.
#[derive(Debug, Clone)]
pub struct Conversation<'a> {
    /// As the client wrote it; `None` is the default model.
    pub model: Option<Cow<'a, str>>,
    pub turns: Vec<Turn<'a>>,
    /// The turns as OpenAI messages, for the record and for the provider.
    pub messages: Cow<'a, RawValue>,
    /// Every other parameter, with its JSON, in the request's order.
    pub params: Vec<(Cow<'a, str>, &'a RawValue)>,
    pub stream: bool,
    /// The client wants the usage chunk at the end of its stream.
    pub include_usage: bool,
    pub max_tokens: Option<u64>,
    /// `n`
    pub choices: u64,
    pub temperature: Option<f64>,
    /// The first part of a message that holds something else than text, which no guard is shown: where, and its type.
    pub unseen: Option<(String, String)>,
    /// Something happens outside while the model thinks (`store: true`, hosted tools): the verdict has to come first.
    pub acts: bool,
}

/// BLAKE2b-256 over all turns: made once a request, for the cache's key and the guard's memory alike. (In the module it
/// takes a third of what SHA-256 takes, and hashing was the dearest thing there.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TurnsDigest(pub(crate) [u8; 32]);

impl Conversation<'_> {
    #[must_use]
    pub fn digest(&self) -> TurnsDigest {
        let mut hash = Parts::default();
        if self.turns.iter().all(|turn| turn.is_plain) {
            for turn in &self.turns {
                hash.add(turn.role.name().as_bytes());
                turn.texts.iter().for_each(|text| hash.add(text.as_bytes()));
            }
        } else {
            // Tool calls and their ids, names, media, the order of parts: the messages are taken as they stand.
            hash.add(b"raw");
            hash.add(self.messages.get().as_bytes());
        }
        TurnsDigest(hash.finish())
    }

    /// What the client says now: everything behind the last answer, an unfinished one at the end included. At most so
    /// many bytes of it.
    #[must_use]
    pub fn latest(&self, max_bytes: usize) -> String {
        let answered = self.turns.iter().rev().skip(1).position(|turn| turn.role == Role::Assistant);
        let count = answered.map_or(self.turns.len(), |turns| turns.saturating_add(1));
        let turns = self.turns.iter().skip(self.turns.len().saturating_sub(count));
        let text = turns.map(Turn::text).collect::<Vec<_>>().join("\n");
        let mut end = max_bytes.min(text.len());
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        text.get(..end).unwrap_or_default().to_owned()
    }

    /// Estimated tokens of everything the model reads.
    #[must_use]
    pub fn prompt_tokens(&self) -> u64 {
        crate::quota::estimate_tokens(self.messages.get().len())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_the_client_says_now_is_what_stands_behind_the_last_answer() {
        let body = |roles: &str| {
            let messages = roles.chars().map(|role| {
                let name = match role {
                    's' => "system",
                    'a' => "assistant",
                    't' => "tool",
                    _ => "user",
                };
                format!(r#"{{"role":"{name}","content":"{role}é"}}"#)
            });
            format!(r#"{{"messages":[{}]}}"#, messages.collect::<Vec<_>>().join(","))
        };
        for (roles, latest) in [("u", "ué"), ("su", "sé\nué"), ("uau", "ué"), ("uatu", "té\nué"), ("uaua", "ué\naé")]
        {
            let body = body(roles);
            assert_eq!(crate::openai::read(body.as_bytes()).unwrap().latest(1000), latest, "{roles}");
        }
        assert_eq!(crate::openai::read(body("su").as_bytes()).unwrap().latest(2), "s");
    }
}
