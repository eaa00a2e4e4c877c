//! What providers send, piece by piece.

use serde_json::json;

pub(crate) const SSE: &str = "text/event-stream; charset=utf-8";
pub(crate) const JSON: &str = "application/json";
pub(crate) const DONE: &str = "data: [DONE]\n\n";

pub(crate) fn question(stream: bool) -> String {
    json!({"messages": [{"role": "user", "content": "hello"}], "stream": stream}).to_string()
}

/// One event of a provider's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Role,
    Text(String),
    Reasoning(String),
    Tool(String),
    Comment,
    /// Text and the end in one chunk, as vLLM sends it.
    LastText(String),
    Finish(&'static str),
    Usage,
    Error,
    Done,
}

impl Piece {
    /// The event, with its `model` by name.
    pub(crate) fn event(&self, model: &str) -> String {
        let delta = |delta: serde_json::Value, finish: Option<&str>| {
            let chunk =
                json!({"id": "c", "model": model, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
            format!("data: {chunk}\n\n")
        };
        match self {
            Self::Role => delta(json!({"role": "assistant", "content": ""}), None),
            Self::Text(text) => delta(json!({"content": text}), None),
            Self::Reasoning(text) => delta(json!({"reasoning_content": text}), None),
            Self::Tool(text) => delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}), None),
            Self::Comment => ": keep-alive\n\n".to_owned(),
            Self::LastText(text) => delta(json!({"content": text}), Some("stop")),
            Self::Finish(reason) => delta(json!({}), Some(reason)),
            Self::Usage => {
                let usage = json!({"prompt_tokens": 9, "completion_tokens": 5});
                format!("data: {}\n\n", json!({"model": model, "choices": [], "usage": usage}))
            }
            Self::Error => "data: {\"error\":{\"message\":\"engine died\",\"code\":500}}\n\n".to_owned(),
            Self::Done => DONE.to_owned(),
        }
    }

    pub(crate) fn word(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Reasoning(text) | Self::Tool(text) | Self::LastText(text) => Some(text),
            _ => None,
        }
    }
}

pub(crate) fn stream(pieces: &[Piece], model: &str) -> Vec<u8> {
    pieces.iter().map(|piece| piece.event(model)).collect::<String>().into_bytes()
}

/// An answer of `words`, with everything around it that a provider sends.
pub(crate) fn answer(words: &[&str]) -> Vec<Piece> {
    let texts = words.iter().map(|word| Piece::Text((*word).to_owned()));
    let end = [Piece::Finish("stop"), Piece::Usage, Piece::Done];
    core::iter::once(Piece::Role).chain(texts).chain(end).collect()
}

pub(crate) fn whole(model: &str, text: &str) -> String {
    json!({"model": model, "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 5}})
    .to_string()
}
