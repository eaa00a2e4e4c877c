//! Messages as `gen_ai.input.messages` and `gen_ai.output.messages` have them: JSON, each message a role and parts
//! (semantic conventions v1.41, `gen-ai-input-messages.json` and `gen-ai-output-messages.json`).

use parapet_engine::record::Answered;
use serde_json::{Value, json};

/// OpenAI chat messages as input messages. What is no such message is left out.
pub(super) fn input(openai: &str) -> Option<String> {
    let messages: Vec<Value> = serde_json::from_str(openai).ok()?;
    let converted: Vec<Value> = messages.iter().filter_map(message).collect();
    Some(Value::from(converted).to_string())
}

fn message(message: &Value) -> Option<Value> {
    let role = message.get("role")?.as_str()?;
    let content = message.get("content");
    let mut parts = Vec::new();
    if role == "tool" {
        parts.push(json!({
            "type": "tool_call_response", "id": message.get("tool_call_id"), "response": content,
        }));
    } else {
        match content {
            Some(Value::String(text)) => parts.push(text_part(text)),
            Some(Value::Array(openai)) => parts.extend(openai.iter().filter_map(part)),
            _ => {}
        }
    }
    for call in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
        let function = call.get("function");
        let field = |name| function.and_then(|function| function.get(name));
        let arguments = field("arguments").and_then(Value::as_str).unwrap_or_default();
        parts.push(tool_call(call.get("id"), field("name"), arguments));
    }
    let mut converted = json!({ "role": role, "parts": parts });
    if let Some(name) = message.get("name") {
        converted["name"] = name.clone();
    }
    Some(converted)
}

fn part(part: &Value) -> Option<Value> {
    let kind = part.get("type")?.as_str()?;
    if let Some(text) = part.get("text").and_then(Value::as_str) {
        return Some(text_part(text));
    }
    let url = part.get("image_url").and_then(|image| image.get("url")).and_then(Value::as_str);
    let Some(url) = url else {
        // A form that the conventions leave open, whole.
        return Some(part.clone());
    };
    let inline = url.strip_prefix("data:").and_then(|data| data.split_once(";base64,"));
    Some(match inline {
        Some((mime, content)) => json!({ "type": "blob", "modality": "image", "mime_type": mime, "content": content }),
        None if kind == "image_url" => json!({ "type": "uri", "modality": "image", "uri": url }),
        None => part.clone(),
    })
}

/// The answers as output messages.
pub(super) fn output(answers: &[Answered]) -> String {
    let message = |answer: &Answered| {
        let mut parts = Vec::new();
        if !answer.reasoning.is_empty() {
            parts.push(json!({ "type": "reasoning", "content": answer.reasoning }));
        }
        for text in [&answer.content, &answer.refusal] {
            if !text.is_empty() {
                parts.push(text_part(text));
            }
        }
        let calls = answer.tool_calls.iter();
        parts.extend(calls.map(|call| tool_call(Some(&json!(call.id)), Some(&json!(call.name)), &call.arguments)));
        json!({ "role": "assistant", "parts": parts, "finish_reason": answer.finish_reason })
    };
    answers.iter().map(message).collect::<Value>().to_string()
}

fn text_part(text: &str) -> Value {
    json!({ "type": "text", "content": text })
}

/// The arguments as the object that they should be, or as the model wrote them.
fn tool_call(id: Option<&Value>, name: Option<&Value>, arguments: &str) -> Value {
    let arguments = serde_json::from_str(arguments).unwrap_or_else(|_| Value::from(arguments));
    json!({ "type": "tool_call", "id": id, "name": name, "arguments": arguments })
}

#[cfg(test)]
mod tests {
    use parapet_engine::record::ToolCall;

    use super::*;

    fn converted(messages: &Value) -> Value {
        serde_json::from_str(&input(&messages.to_string()).unwrap()).unwrap()
    }

    #[test]
    fn messages_become_roles_and_parts() {
        let image = |url: &str| json!({ "type": "image_url", "image_url": { "url": url } });
        let found = converted(&json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "name": "ann", "content": [
                { "type": "text", "text": "What is it?" }, image("https://a.test/x.png"),
                image("data:image/png;base64,AAAA"), { "type": "input_audio", "input_audio": { "data": "BBBB" } },
            ] },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "look", "arguments": "{\"at\":1}" } },
            ] },
            { "role": "tool", "tool_call_id": "c1", "content": "a cat" },
            "no message",
        ]));
        assert_eq!(
            found,
            json!([
                { "role": "system", "parts": [{ "type": "text", "content": "Be brief." }] },
                { "role": "user", "name": "ann", "parts": [
                    { "type": "text", "content": "What is it?" },
                    { "type": "uri", "modality": "image", "uri": "https://a.test/x.png" },
                    { "type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA" },
                    { "type": "input_audio", "input_audio": { "data": "BBBB" } },
                ] },
                { "role": "assistant", "parts": [
                    { "type": "tool_call", "id": "c1", "name": "look", "arguments": { "at": 1 } },
                ] },
                { "role": "tool", "parts": [{ "type": "tool_call_response", "id": "c1", "response": "a cat" }] },
            ])
        );
        assert_eq!(input("{"), None);
    }

    #[test]
    fn answers_become_messages_with_their_finish_reasons() {
        let call = ToolCall { id: "c1".into(), name: "look".into(), arguments: "{broken".into() };
        let answer = Answered {
            content: "Hello".into(),
            reasoning: "They greet.".into(),
            tool_calls: vec![call],
            finish_reason: Some("tool_calls".into()),
            ..Answered::default()
        };
        let found: Value = serde_json::from_str(&output(&[answer])).unwrap();
        assert_eq!(
            found,
            json!([{ "role": "assistant", "finish_reason": "tool_calls", "parts": [
                { "type": "reasoning", "content": "They greet." },
                { "type": "text", "content": "Hello" },
                { "type": "tool_call", "id": "c1", "name": "look", "arguments": "{broken" },
            ] }])
        );
    }
}
