//! Chat completion chunks: one `data` of a stream.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::answer::{WireToolCall, WireUsage};
use super::request::{json_string, model_span};
use crate::answer::{Delta, REFUSAL, ToolCallDelta};
use crate::record::{Answered, Usage};

/// What one event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    Deltas {
        deltas: Vec<Delta>,
        usage: Option<Usage>,
        /// The `model` it names.
        model: Option<String>,
    },
    /// A top-level `error`: the stream has failed, whatever follows (vLLM sends `[DONE]` after it).
    Error {
        message: String,
        code: Option<u16>,
    },
    Done,
    /// No JSON object: a provider that speaks something else.
    Unreadable,
}

/// A chunk, or a whole answer: they differ in one name.
#[derive(Deserialize)]
pub(super) struct Wire<'a> {
    #[serde(borrow, default)]
    pub(super) model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) choices: Vec<WireChoice<'a>>,
    #[serde(default)]
    pub(super) usage: Option<WireUsage>,
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct WireChoice<'a> {
    #[serde(default)]
    index: usize,
    #[serde(borrow, default, alias = "message")]
    pub(super) delta: Option<WireDelta<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
pub(super) struct WireDelta<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<WireToolCall<'a>>>,
    #[serde(borrow, default)]
    function_call: Option<super::answer::WireFunction<'a>>,
}

#[must_use]
#[inline(never)]
pub fn parse_chunk(data: &[u8]) -> Chunk {
    if data.trim_ascii() == b"[DONE]" {
        return Chunk::Done;
    }
    let Ok(chunk) = serde_json::from_slice::<Wire<'_>>(data) else { return Chunk::Unreadable };
    if let Some(error) = chunk.error.filter(|error| error.get() != "null") {
        return error_of(error);
    }
    Chunk::Deltas {
        deltas: chunk.choices.into_iter().map(delta).collect(),
        usage: chunk.usage.map(Usage::from),
        model: chunk.model.map(Cow::into_owned),
    }
}

pub(super) fn delta(choice: WireChoice<'_>) -> Delta {
    let mut delta =
        Delta { choice: choice.index, finish_reason: choice.finish_reason.map(Cow::into_owned), ..Delta::default() };
    if let Some(wire) = choice.delta {
        delta.content = wire.content.map(Cow::into_owned).unwrap_or_default();
        // Newer servers say `reasoning`, older `reasoning_content`, some both with the same text.
        delta.reasoning = wire.reasoning_content.map(Cow::into_owned).unwrap_or_default();
        delta.reasoning.push_str(&wire.reasoning.filter(|other| *other != delta.reasoning).unwrap_or_default());
        delta.refusal = wire.refusal.map(Cow::into_owned).unwrap_or_default();
        delta.tool_calls = wire.tool_calls.into_iter().flatten().map(ToolCallDelta::from).collect();
        delta.tool_calls.extend(wire.function_call.map(|function| ToolCallDelta {
            name: function.name.unwrap_or_default().into_owned(),
            arguments: function.arguments.unwrap_or_default().into_owned(),
            ..ToolCallDelta::default()
        }));
    }
    delta
}

/// vLLM: an object with a numeric code, or only a string; OpenAI: an object with a textual code.
pub(super) fn error_of(error: &RawValue) -> Chunk {
    #[derive(Deserialize)]
    struct WireError<'a> {
        #[serde(borrow, default)]
        message: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        code: Option<&'a RawValue>,
    }
    let (message, code) = match serde_json::from_slice::<WireError<'_>>(error.get().as_bytes()) {
        Ok(wire) => (wire.message.map(Cow::into_owned), wire.code.and_then(|code| code.get().parse().ok())),
        Err(_) => (serde_json::from_slice(error.get().as_bytes()).ok(), None),
    };
    Chunk::Error { message: message.unwrap_or_default(), code }
}

/// A JSON object with its top-level `model` replaced and nothing else touched.
#[must_use]
#[inline(never)]
pub fn with_model_in(json: &[u8], model: &str) -> Option<Vec<u8>> {
    let span = model_span(json)?;
    let mut out = Vec::with_capacity(json.len().saturating_add(model.len()));
    out.extend_from_slice(json.get(..span.start)?);
    out.extend_from_slice(&json_string(model));
    out.extend_from_slice(json.get(span.end..)?);
    Some(out)
}

/// What every chunk of one answer repeats.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub id: &'a str,
    pub created_s: u64,
    pub model: &'a str,
}

#[derive(Serialize)]
struct OutChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<OutChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<super::answer::OutUsage>,
}

#[derive(Serialize)]
struct OutChoice<'a> {
    index: usize,
    delta: OutDelta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'a str>,
}

#[derive(Serialize, Default)]
struct OutDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<super::answer::OutToolCall<'a>>,
}

fn event(frame: Frame<'_>, choices: Vec<OutChoice<'_>>, usage: Option<Usage>, out: &mut Vec<u8>) {
    let chunk = OutChunk {
        id: frame.id,
        object: "chat.completion.chunk",
        created: frame.created_s,
        model: frame.model,
        choices,
        usage: usage.map(Into::into),
    };
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(&serde_json::to_vec(&chunk).unwrap_or_default());
    out.extend_from_slice(b"\n\n");
}

pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// The end of a blocked stream: for each choice that has not finished a chunk with the refusal and
/// `finish_reason: "content_filter"`, then `[DONE]`.
#[must_use]
pub fn refusal_chunk(frame: Frame<'_>, choices: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    for &index in choices {
        let delta = OutDelta { content: Some(REFUSAL), ..OutDelta::default() };
        event(
            frame,
            vec![OutChoice { index, delta, logprobs: None, finish_reason: Some("content_filter") }],
            None,
            &mut out,
        );
    }
    out.extend_from_slice(DONE);
    out
}

/// A stored answer as a stream.
#[must_use]
pub fn write_replay(frame: Frame<'_>, answers: &[Answered], usage: Option<Usage>) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, answer) in answers.iter().enumerate() {
        let role = OutDelta { role: Some("assistant"), content: Some(""), ..OutDelta::default() };
        let body = OutDelta {
            role: None,
            content: (!answer.content.is_empty()).then_some(&answer.content),
            reasoning_content: (!answer.reasoning.is_empty()).then_some(&answer.reasoning),
            refusal: (!answer.refusal.is_empty()).then_some(&answer.refusal),
            tool_calls: super::answer::out_tool_calls(&answer.tool_calls),
        };
        let finish = answer.finish_reason.as_deref().unwrap_or("stop");
        for (delta, finish_reason) in [(role, None), (body, None), (OutDelta::default(), Some(finish))] {
            event(frame, vec![OutChoice { index, delta, logprobs: None, finish_reason }], None, &mut out);
        }
    }
    if usage.is_some() {
        event(frame, Vec::new(), usage, &mut out);
    }
    out.extend_from_slice(DONE);
    out
}

/// A failure after the first token: an error event, and no `[DONE]`, so that official clients raise it.
#[must_use]
pub fn error_event(refusal: &crate::reason::Refusal) -> Vec<u8> {
    let mut out = b"data: ".to_vec();
    out.extend_from_slice(&refusal.body());
    out.extend_from_slice(b"\n\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_of_a_chunk_is_read() {
        let data = br#"{"id":"1","model":"m","choices":[{"index":1,"delta":{"content":"a\nb","reasoning_content":"r","tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{"}}]},"finish_reason":null}],"usage":null,"obfuscation":"xx"}"#;
        let Chunk::Deltas { deltas, usage, model } = parse_chunk(data) else { panic!("not deltas") };
        assert_eq!((usage, model.as_deref()), (None, Some("m")));
        assert_eq!((deltas[0].choice, &*deltas[0].content, &*deltas[0].reasoning), (1, "a\nb", "r"));
        assert_eq!(deltas[0].tool_calls[0].name, "f");
        assert!(deltas[0].has_text());
    }

    #[test]
    fn a_text_that_comes_twice_is_read_once_and_two_are_both_read() {
        for (delta, reasoning) in [
            (r#"{"reasoning_content":"a","reasoning":"a"}"#, "a"),
            (r#"{"reasoning_content":"","reasoning":"b"}"#, "b"),
            (r#"{"reasoning_content":"a","reasoning":"b"}"#, "ab"),
        ] {
            let data = format!(r#"{{"choices":[{{"delta":{delta}}}]}}"#);
            let Chunk::Deltas { deltas, .. } = parse_chunk(data.as_bytes()) else { panic!("not deltas") };
            assert_eq!(deltas[0].reasoning, reasoning, "{delta}");
        }
    }

    #[test]
    fn a_custom_tools_input_is_a_text() {
        let data =
            br#"{"choices":[{"delta":{"tool_calls":[{"id":"c","type":"custom","custom":{"name":"f","input":"x"}}]}}]}"#;
        let Chunk::Deltas { deltas, .. } = parse_chunk(data) else { panic!("not deltas") };
        let call = &deltas[0].tool_calls[0];
        assert_eq!((&*call.id, &*call.name, &*call.arguments), ("c", "f", "x"));
        assert!(deltas[0].has_text());
    }

    #[test]
    fn errors_come_in_three_forms() {
        for (data, message, code) in [
            (
                r#"{"error":{"message":"EngineCore","type":"InternalServerError","param":null,"code":500}}"#,
                "EngineCore",
                Some(500),
            ),
            (r#"{"error":"Unauthorized"}"#, "Unauthorized", None),
            (r#"{"error":{"message":"slow down","code":"rate_limit_exceeded"}}"#, "slow down", None),
        ] {
            assert_eq!(parse_chunk(data.as_bytes()), Chunk::Error { message: message.into(), code });
        }
        assert!(matches!(parse_chunk(br#"{"choices":[],"error":null}"#), Chunk::Deltas { .. }));
    }

    #[test]
    fn the_role_chunk_is_no_progress_and_done_is_done() {
        let Chunk::Deltas { deltas, .. } =
            parse_chunk(br#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#)
        else {
            panic!("not deltas")
        };
        assert!(!deltas[0].has_text());
        assert_eq!(parse_chunk(b" [DONE]"), Chunk::Done);
        assert_eq!(parse_chunk(b"<html>"), Chunk::Unreadable);
    }

    #[test]
    fn the_model_is_replaced_and_nothing_else() {
        let json = br#"{"id":"1","model":"its","choices":[{"delta":{"content":"\"model\":\"its\""}}]}"#;
        assert_eq!(
            String::from_utf8(with_model_in(json, "ours").unwrap()).unwrap(),
            r#"{"id":"1","model":"ours","choices":[{"delta":{"content":"\"model\":\"its\""}}]}"#
        );
    }

    #[test]
    fn a_blocked_stream_ends_with_content_filter_and_done() {
        let frame = Frame { id: "chatcmpl-1", created_s: 7, model: "m" };
        let text = String::from_utf8(refusal_chunk(frame, &[0])).unwrap();
        assert!(text.contains(r#""finish_reason":"content_filter""#) && text.ends_with("data: [DONE]\n\n"), "{text}");
    }
}
