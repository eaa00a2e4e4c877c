//! Answers as OpenAI's messages.

use parapet_engine::record::{Answered, ToolCall};
use serde_json::{Map, Value, json};

pub(super) fn choices(answers: &[Answered]) -> Value {
    let choice = |(index, answer): (usize, &Answered)| json!({ "index": index, "message": message(answer), "finish_reason": answer.finish_reason });
    answers.iter().enumerate().map(choice).collect()
}

/// An OpenAI assistant message.
pub(super) fn message(answer: &Answered) -> Value {
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    let content = if answer.content.is_empty() && (!answer.tool_calls.is_empty() || !answer.refusal.is_empty()) {
        Value::Null
    } else {
        answer.content.clone().into()
    };
    message.insert("content".into(), content);
    for (key, text) in [("reasoning_content", &answer.reasoning), ("refusal", &answer.refusal)] {
        if !text.is_empty() {
            message.insert(key.into(), text.clone().into());
        }
    }
    if !answer.tool_calls.is_empty() {
        let call = |call: &ToolCall| {
            json!({
                "id": call.id, "type": "function",
                "function": { "name": call.name, "arguments": call.arguments },
            })
        };
        message.insert("tool_calls".into(), answer.tool_calls.iter().map(call).collect());
    }
    Value::Object(message)
}
