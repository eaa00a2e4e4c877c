//! One attempt at a provider: what its request must look like, and whether its answer counts.

use serde::{Deserialize, Serialize};

use crate::answer::Delta;
use crate::config::{Config, Link, Provider};
use crate::openai::{self, Chunk};
use crate::sse::Decoder;

/// What the gateway filter tells the provider filter of a request, in filter state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Index in the configuration's models.
    pub model: usize,
    /// Length of the body as the gateway filter wrote it.
    pub body_bytes: usize,
}

impl Ask {
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        serde_json::to_vec(&(self.model, self.body_bytes)).unwrap_or_default()
    }

    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (model, body_bytes) = serde_json::from_slice(bytes).ok()?;
        Some(Self { model, body_bytes })
    }
}

/// Where an attempt goes.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub provider: &'a Provider,
    pub link: &'a Link,
    /// The gateway filter wrote the body for the first of the chain.
    pub body_fits: bool,
    /// No provider follows: a slow answer beats none.
    pub is_last: bool,
}

/// The target of an attempt at a host of `provider`; `None` if the model's chain does not have it.
#[must_use]
pub fn target<'a>(config: &'a Config, ask: Ask, provider: &str) -> Option<Target<'a>> {
    let model = config.models.get(ask.model)?;
    let position = model.chain.iter().position(|link| link.provider == provider)?;
    let link = model.chain.get(position)?;
    let first = model.chain.first()?;
    Some(Target {
        provider: config.provider(provider)?,
        link,
        body_fits: first.model == link.model,
        is_last: position.saturating_add(1) == model.chain.len(),
    })
}

impl Target<'_> {
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/chat/completions", self.provider.base_path)
    }
}

/// The body with the model's name at this provider.
#[must_use]
pub fn body_for(body: &[u8], model: &str) -> Option<Vec<u8>> {
    openai::with_model_in(body, model)
}

/// What is to be done with an answer's head or body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Not decided: hold it.
    Hold,
    /// It counts: let it go.
    Open,
    /// It does not: its status becomes `status`, so that Envoy's retry policy sees the truth.
    Fail { status: u16, outcome: &'static str },
}

/// The first-token gate of one attempt.
#[derive(Debug)]
pub struct FirstToken {
    kind: Kind,
    is_last: bool,
}

#[derive(Debug)]
enum Kind {
    Unknown,
    Events(Decoder),
    /// A JSON answer, read when it is whole.
    Whole,
    Decided,
}

impl FirstToken {
    #[must_use]
    pub const fn new(is_last: bool) -> Self {
        Self { kind: Kind::Unknown, is_last }
    }

    /// The head came.
    pub fn on_head(&mut self, status: u16, is_event_stream: bool, ends: bool) -> Gate {
        let gate = match status {
            200 if ends => Gate::Fail { status: 502, outcome: "empty" },
            200 if is_event_stream && self.is_last => Gate::Open,
            200 => Gate::Hold,
            // The provider refuses our key: the client's request is not at fault.
            401 | 403 | 407 => Gate::Fail { status: 502, outcome: "status" },
            // Redirects and other oddities are no answers.
            100..=399 => Gate::Fail { status: 502, outcome: "status" },
            _ => Gate::Open,
        };
        self.kind = match gate {
            Gate::Hold if is_event_stream => Kind::Events(Decoder::default()),
            Gate::Hold => Kind::Whole,
            _ => Kind::Decided,
        };
        gate
    }

    /// A JSON answer is wanted in one piece.
    #[must_use]
    pub const fn wants_whole(&self) -> bool {
        matches!(self.kind, Kind::Whole)
    }

    #[must_use]
    pub const fn is_decided(&self) -> bool {
        matches!(self.kind, Kind::Decided)
    }

    /// Bytes of the body that were not seen before.
    pub fn on_body(&mut self, bytes: &[u8], ends: bool) -> Gate {
        let gate = match &mut self.kind {
            Kind::Events(decoder) => events(decoder, bytes, ends),
            Kind::Whole if !ends => Gate::Hold,
            Kind::Whole => whole(bytes),
            Kind::Unknown | Kind::Decided => Gate::Open,
        };
        if gate != Gate::Hold {
            self.kind = Kind::Decided;
        }
        gate
    }
}

fn events(decoder: &mut Decoder, bytes: &[u8], ends: bool) -> Gate {
    let mut gate = Gate::Hold;
    let mut judge = |event: crate::sse::Event| {
        if gate == Gate::Hold
            && let Some(data) = event.data()
        {
            gate = first_event(data);
        }
    };
    let fed = decoder.feed(bytes, &mut judge);
    if ends && let Some(event) = decoder.finish() {
        judge(event);
    }
    match gate {
        Gate::Hold if fed.is_err() => Gate::Fail { status: 502, outcome: "error_event" },
        Gate::Hold if ends => Gate::Fail { status: 502, outcome: "empty" },
        gate => gate,
    }
}

/// A token opens the gate, a failure shuts it; roles, comments and usage are neither.
fn first_event(data: &[u8]) -> Gate {
    match openai::parse_chunk(data) {
        Chunk::Deltas { deltas, .. } => {
            // An answer may rightly be empty of text where its length was the limit or a filter cut it.
            let explained = |delta: &Delta| matches!(delta.finish_reason.as_deref(), Some("length" | "content_filter"));
            if deltas.iter().any(|delta| delta.has_text() || explained(delta)) { Gate::Open } else { Gate::Hold }
        }
        Chunk::Done => Gate::Fail { status: 502, outcome: "empty" },
        Chunk::Error { .. } => Gate::Fail { status: 503, outcome: "error_event" },
        Chunk::Unreadable => Gate::Fail { status: 502, outcome: "error_event" },
    }
}

fn whole(body: &[u8]) -> Gate {
    match openai::parse_answer(body) {
        Ok((answer, _)) => {
            let explained = |reason: &str| matches!(reason, "length" | "content_filter");
            let counts = answer.choices.iter().any(|choice| {
                !choice.content.is_empty()
                    || !choice.reasoning.is_empty()
                    || !choice.refusal.is_empty()
                    || !choice.tool_calls.is_empty()
                    || choice.finish_reason.as_deref().is_some_and(explained)
            });
            if counts { Gate::Open } else { Gate::Fail { status: 502, outcome: "empty" } }
        }
        Err(Chunk::Error { .. }) => Gate::Fail { status: 503, outcome: "error_event" },
        Err(_) => Gate::Fail { status: 502, outcome: "error_event" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(content: &str) -> String {
        format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{content}\"}}}}]}}\n\n")
    }

    const ROLE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    const ERROR: &str = "data: {\"error\":{\"message\":\"x\",\"code\":500}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    fn gates(stream: &str) -> Vec<Gate> {
        [stream.len().max(1), 1, 7]
            .into_iter()
            .map(|size| {
                let mut gate = FirstToken::new(false);
                assert_eq!(gate.on_head(200, true, false), Gate::Hold);
                stream
                    .as_bytes()
                    .chunks(size)
                    .map(|bytes| gate.on_body(bytes, false))
                    .find(|gate| *gate != Gate::Hold)
                    .unwrap_or_else(|| gate.on_body(b"", true))
            })
            .collect()
    }

    #[test]
    fn only_a_token_opens_the_gate_in_any_chunking() {
        let fail = |status, outcome| Gate::Fail { status, outcome };
        for (stream, expected) in [
            (format!("{ROLE}{}", chunk("hi")), Gate::Open),
            (format!(": keep-alive\n\n{ROLE}: keep-alive\n\n"), fail(502, "empty")),
            (format!("{ROLE}{ERROR}{DONE}"), fail(503, "error_event")),
            (format!("{ROLE}{DONE}"), fail(502, "empty")),
            ("<html>\n\ndata: <html>\n\n".to_owned(), fail(502, "error_event")),
            (
                ROLE.to_owned() + "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
                Gate::Open,
            ),
            (String::new(), fail(502, "empty")),
        ] {
            assert!(gates(&stream).iter().all(|gate| *gate == expected), "{stream} {:?}", gates(&stream));
        }
    }

    #[test]
    fn the_head_decides_where_there_is_no_200() {
        for (status, expected) in [
            (500, Gate::Open),
            (429, Gate::Open),
            (400, Gate::Open),
            (401, Gate::Fail { status: 502, outcome: "status" }),
            (302, Gate::Fail { status: 502, outcome: "status" }),
        ] {
            assert_eq!(FirstToken::new(false).on_head(status, false, false), expected, "{status}");
        }
        assert_eq!(FirstToken::new(true).on_head(200, true, false), Gate::Open, "the last provider has no limit");
    }

    #[test]
    fn a_json_answer_counts_when_it_says_something() {
        for (body, open) in [
            (r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}"#, true),
            (r#"{"choices":[{"message":{"content":""},"finish_reason":"stop"}]}"#, false),
            (r#"{"choices":[{"message":{"content":""},"finish_reason":"length"}]}"#, true),
            (r#"{"choices":[]}"#, false),
            (r#"{"choices":[{"mess"#, false),
            (r#"{"error":{"message":"x"}}"#, false),
        ] {
            let mut gate = FirstToken::new(false);
            assert_eq!(gate.on_head(200, false, false), Gate::Hold);
            assert_eq!(gate.on_body(b"", false), Gate::Hold);
            assert_eq!(gate.on_body(body.as_bytes(), true) == Gate::Open, open, "{body}");
        }
    }
}
