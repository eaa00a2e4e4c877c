//! A whole chat completion.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::chunk::{Chunk, Frame, Wire, delta, error_of};
use crate::answer::{Answer, Delta, ToolCallDelta};
use crate::record::{Answered, ToolCall, Usage};

#[derive(Deserialize, Default)]
pub(super) struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
    #[serde(default)]
    completion_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

impl From<WireUsage> for Usage {
    fn from(wire: WireUsage) -> Self {
        Self {
            prompt: wire.prompt_tokens,
            completion: wire.completion_tokens,
            cached: wire.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
            reasoning: wire.completion_tokens_details.and_then(|details| details.reasoning_tokens).unwrap_or(0),
            estimated: false,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct WireToolCall<'a> {
    #[serde(default)]
    index: usize,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default, alias = "custom")]
    function: Option<WireFunction<'a>>,
}

#[derive(Deserialize)]
pub(super) struct WireFunction<'a> {
    #[serde(borrow, default)]
    pub(super) name: Option<Cow<'a, str>>,
    #[serde(borrow, default, alias = "input")]
    pub(super) arguments: Option<Cow<'a, str>>,
}

impl From<WireToolCall<'_>> for ToolCallDelta {
    fn from(wire: WireToolCall<'_>) -> Self {
        let (name, arguments) = wire.function.map_or((None, None), |function| (function.name, function.arguments));
        Self {
            index: wire.index,
            id: wire.id.unwrap_or_default().into_owned(),
            name: name.unwrap_or_default().into_owned(),
            arguments: arguments.unwrap_or_default().into_owned(),
        }
    }
}

/// Reads a provider's whole answer: the answer and the `model` it names, or what is wrong with it.
///
/// # Errors
/// [`Chunk::Error`] for an error body, [`Chunk::Unreadable`] for what is no chat completion.
pub fn parse_answer(body: &[u8]) -> Result<(Answer, Option<String>), Chunk> {
    let wire: Wire<'_> = serde_json::from_slice(body).map_err(|_| Chunk::Unreadable)?;
    if let Some(error) = wire.error.filter(|error| error.get() != "null") {
        return Err(error_of(error));
    }
    if wire.choices.is_empty() || wire.choices.iter().any(|choice| choice.delta.is_none()) {
        return Err(Chunk::Unreadable);
    }
    let mut answer = Answer { usage: wire.usage.map(Usage::from), ..Answer::default() };
    for (index, choice) in wire.choices.into_iter().enumerate() {
        let mut delta = Delta { choice: index, ..delta(choice) };
        // In a whole answer the calls' order is their index.
        delta.tool_calls.iter_mut().enumerate().for_each(|(index, call)| call.index = index);
        if !delta.is_within_bounds() {
            return Err(Chunk::Unreadable);
        }
        answer.add(&delta);
    }
    answer.progress = 0;
    Ok((answer, wire.model.map(Cow::into_owned)))
}

#[derive(Serialize)]
pub(super) struct OutUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<OutPromptDetails>,
}

#[derive(Serialize)]
struct OutPromptDetails {
    cached_tokens: u64,
}

impl From<Usage> for OutUsage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            total_tokens: usage.total(),
            prompt_tokens_details: (usage.cached > 0).then_some(OutPromptDetails { cached_tokens: usage.cached }),
        }
    }
}

#[derive(Serialize)]
pub(super) struct OutToolCall<'a> {
    index: usize,
    id: &'a str,
    r#type: &'static str,
    function: OutFunction<'a>,
}

#[derive(Serialize)]
struct OutFunction<'a> {
    name: &'a str,
    arguments: &'a str,
}

pub(super) fn out_tool_calls(calls: &[ToolCall]) -> Vec<OutToolCall<'_>> {
    calls
        .iter()
        .enumerate()
        .map(|(index, call)| OutToolCall {
            index,
            id: &call.id,
            r#type: "function",
            function: OutFunction { name: &call.name, arguments: &call.arguments },
        })
        .collect()
}

/// Writes an answer as one chat completion.
#[must_use]
pub fn write_answer(frame: Frame<'_>, answers: &[Answered], usage: Option<Usage>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Out<'a> {
        id: &'a str,
        object: &'static str,
        created: u64,
        model: &'a str,
        choices: Vec<OutChoice<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        usage: Option<OutUsage>,
    }
    #[derive(Serialize)]
    struct OutChoice<'a> {
        index: usize,
        message: OutMessage<'a>,
        logprobs: Option<()>,
        finish_reason: &'a str,
    }
    #[derive(Serialize)]
    struct OutMessage<'a> {
        role: &'static str,
        content: Option<&'a str>,
        refusal: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reasoning_content: Option<&'a str>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<OutToolCall<'a>>,
    }
    let choices = answers
        .iter()
        .enumerate()
        .map(|(index, answer)| OutChoice {
            index,
            message: OutMessage {
                role: "assistant",
                content: (!answer.content.is_empty() || answer.tool_calls.is_empty()).then_some(&*answer.content),
                refusal: (!answer.refusal.is_empty()).then_some(&*answer.refusal),
                reasoning_content: (!answer.reasoning.is_empty()).then_some(&*answer.reasoning),
                tool_calls: out_tool_calls(&answer.tool_calls),
            },
            logprobs: None,
            finish_reason: answer.finish_reason.as_deref().unwrap_or("stop"),
        })
        .collect();
    let out = Out {
        id: frame.id,
        object: "chat.completion",
        created: frame.created_s,
        model: frame.model,
        choices,
        usage: usage.map(Into::into),
    };
    serde_json::to_vec(&out).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_written_back() {
        let body = br#"{"id":"x","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi \"you\""},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}"#;
        let (answer, model) = parse_answer(body).unwrap();
        assert_eq!((model.as_deref(), &*answer.choices[0].content), (Some("m"), "hi \"you\""));
        let usage = answer.usage.unwrap();
        assert_eq!((usage.prompt, usage.completion, usage.cached), (3, 2, 1));
        let frame = Frame { id: "y", created_s: 1, model: "m" };
        let again = parse_answer(&write_answer(frame, &answer.choices, answer.usage)).unwrap().0;
        assert_eq!(again, answer);
    }

    #[test]
    fn an_error_in_a_200_and_garbage_are_no_answers() {
        assert!(matches!(
            parse_answer(br#"{"error":{"message":"x","code":500}}"#),
            Err(Chunk::Error { code: Some(500), .. })
        ));
        for body in
            [&b"{}"[..], b"", b"{\"choices\":[]}", b"{\"choices\":[{}]}", b"<html>", b"{\"choices\":[{\"message\""]
        {
            assert_eq!(parse_answer(body), Err(Chunk::Unreadable));
        }
    }
}
