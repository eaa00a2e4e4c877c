//! A chat completions request.

use core::ops::Range;
use std::borrow::Cow;

use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use crate::conversation::{Conversation, Role, Turn};
use crate::reason::{Reason, Refusal};

/// More top-level members or messages than any client sends.
const MAX_MEMBERS: usize = 128;
const MAX_MESSAGES: usize = 4096;

/// The members of a JSON object in order, each value as it stands. A key that stands twice is refused: two parsers
/// would disagree on which one counts, and one of them is the guard's.
struct Members<'a>(Vec<Member<'a>>);

pub(super) type Member<'a> = (Cow<'a, str>, &'a RawValue);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(8);
                while let Some((Text(key), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    if members.iter().any(|(known, _)| *known == key) {
                        let key = String::from_utf8_lossy(&json_string(&key)).into_owned();
                        return Err(de::Error::custom(format_args!("the key {key} stands twice")));
                    }
                    if members.len() >= MAX_MEMBERS {
                        return Err(de::Error::custom(format_args!("more than {MAX_MEMBERS} keys")));
                    }
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// A string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

// Each of these readers is in the module once: inlined, they would take some KB at every call.

#[inline(never)]
pub(super) fn members(json: &[u8]) -> serde_json::Result<Vec<Member<'_>>> {
    serde_json::from_slice(json).map(|Members(members)| members)
}

#[inline(never)]
pub(super) fn items(json: &RawValue) -> serde_json::Result<Vec<&RawValue>> {
    serde_json::from_slice(json.get().as_bytes())
}

#[inline(never)]
pub(super) fn text(json: &RawValue) -> serde_json::Result<Cow<'_, str>> {
    serde_json::from_slice(json.get().as_bytes()).map(|Text(text)| text)
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<Call<'a>>>,
    #[serde(borrow, default)]
    function_call: Option<Function<'a>>,
    #[serde(borrow, default)]
    tool_call_id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow, default, alias = "custom")]
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default, alias = "input")]
    arguments: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
}

fn invalid(param: impl Into<String>, message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::InvalidRequest, message).at(param)
}

/// What is wrong, without the reader's own place (which counts from the start of the part, not of the body).
fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// Reads a request's body.
///
/// # Errors
/// The refusal to answer with: `invalid_json` with line and column, `invalid_request` with the field.
pub fn read(body: &[u8]) -> Result<Conversation<'_>, Refusal> {
    let members = members(body).map_err(|error| {
        let reason = if error.is_data() { Reason::InvalidRequest } else { Reason::InvalidJson };
        Refusal::new(reason, format!("The body is not a JSON object: {error}."))
    })?;
    let mut conversation = Conversation {
        model: None,
        turns: Vec::new(),
        messages: Cow::Borrowed(RawValue::NULL),
        params: Vec::with_capacity(members.len()),
        stream: false,
        include_usage: false,
        max_tokens: None,
        choices: 1,
        temperature: None,
        unseen: None,
        acts: false,
    };
    let mut has_messages = false;
    for (key, value) in members {
        match &*key {
            "model" => {
                conversation.model = typed::<Option<Text<'_>>>(&key, value, "a string")?.map(|Text(model)| model);
            }
            "messages" => {
                has_messages = true;
                conversation.messages = Cow::Borrowed(value);
                conversation.turns = turns(value, &mut conversation.unseen)?;
            }
            "stream" => conversation.stream = typed::<Option<bool>>(&key, value, "true or false")?.unwrap_or(false),
            "stream_options" => conversation.include_usage = include_usage(value)?,
            _ => {
                parameter(&mut conversation, &key, value)?;
                conversation.params.push((key, value));
            }
        }
    }
    if !has_messages || conversation.turns.is_empty() {
        return Err(invalid("messages", "`messages` must be a non-empty array of messages."));
    }
    Ok(conversation)
}

/// What the gateway itself needs of a parameter that is otherwise the provider's business.
fn parameter<'a>(conversation: &mut Conversation<'a>, key: &str, value: &'a RawValue) -> Result<(), Refusal> {
    match key {
        "max_tokens" | "max_completion_tokens" => {
            let limit = typed::<Option<u64>>(key, value, "a whole number")?;
            conversation.max_tokens = conversation.max_tokens.max(limit);
        }
        "n" => conversation.choices = typed::<Option<u64>>(key, value, "a whole number")?.unwrap_or(1),
        "temperature" => conversation.temperature = typed(key, value, "a number")?,
        "store" => conversation.acts |= typed::<Option<bool>>(key, value, "true or false")?.unwrap_or(false),
        // Searches the web by itself.
        "web_search_options" => conversation.acts |= value.get() != "null",
        "tools" => conversation.acts |= hosted_tool(value)?,
        _ => {}
    }
    if conversation.choices > 128 {
        return Err(invalid("n", "`n` must be at most 128."));
    }
    Ok(())
}

fn typed<'a, T: Deserialize<'a>>(key: &str, value: &'a RawValue, expected: &str) -> Result<T, Refusal> {
    serde_json::from_slice(value.get().as_bytes()).map_err(|_| invalid(key, format!("`{key}` must be {expected}.")))
}

fn include_usage(value: &RawValue) -> Result<bool, Refusal> {
    #[derive(Deserialize)]
    struct Options {
        #[serde(default)]
        include_usage: Option<bool>,
    }
    let options = typed::<Option<Options>>("stream_options", value, "an object")?;
    Ok(options.and_then(|options| options.include_usage).unwrap_or(false))
}

/// Functions and custom tools run at the client; any other type runs at the provider.
fn hosted_tool(value: &RawValue) -> Result<bool, Refusal> {
    #[derive(Deserialize)]
    struct Tool<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
    }
    let tools = typed::<Option<Vec<Tool<'_>>>>("tools", value, "an array of tools, each with a `type`")?;
    Ok(tools.into_iter().flatten().any(|tool| !matches!(&*tool.r#type, "function" | "custom")))
}

fn turns<'a>(value: &'a RawValue, unseen: &mut Option<(String, String)>) -> Result<Vec<Turn<'a>>, Refusal> {
    let messages =
        items(value).map_err(|_| invalid("messages", "`messages` must be a non-empty array of messages."))?;
    if messages.len() > MAX_MESSAGES {
        return Err(invalid("messages", format!("`messages` must hold at most {MAX_MESSAGES} messages.")));
    }
    messages.into_iter().enumerate().map(|(i, message)| turn(i, message, unseen)).collect()
}

fn turn<'a>(index: usize, value: &'a RawValue, unseen: &mut Option<(String, String)>) -> Result<Turn<'a>, Refusal> {
    let at = format_args!("messages[{index}]").to_string();
    let message: Message<'_> = serde_json::from_slice(value.get().as_bytes())
        .map_err(|error| invalid(&at, format!("`{at}` is no message: {}.", what(&error))))?;
    let role = match &*message.role {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => Role::Tool,
        _ => {
            return Err(invalid(
                format!("{at}.role"),
                format!("`{at}.role` must be system, developer, user, assistant, tool or function."),
            ));
        }
    };
    let extras = message.name.is_some()
        || message.reasoning_content.is_some()
        || message.reasoning.is_some()
        || message.refusal.is_some()
        || message.tool_calls.is_some()
        || message.function_call.is_some()
        || message.tool_call_id.is_some();
    let mut turn = Turn { role, texts: Vec::with_capacity(1), is_plain: !extras && message.role == role.name() };
    turn.texts.extend(message.name);
    turn.texts.extend(message.reasoning_content);
    turn.texts.extend(message.reasoning);
    if let Some(content) = message.content {
        read_content(&at, content, &mut turn, unseen)?;
    }
    turn.texts.extend(message.refusal);
    let calls = message.tool_calls.into_iter().flatten();
    for call in calls {
        turn.texts.extend(call.function.map(function_text));
    }
    turn.texts.extend(message.function_call.map(function_text));
    turn.is_plain &= turn.texts.len() == 1;
    Ok(turn)
}

fn function_text(function: Function<'_>) -> Cow<'_, str> {
    Cow::Owned(format!("{}({})", function.name, function.arguments))
}

fn read_content<'a>(
    at: &str,
    content: &'a RawValue,
    turn: &mut Turn<'a>,
    unseen: &mut Option<(String, String)>,
) -> Result<(), Refusal> {
    let at = format!("{at}.content");
    match content.get().as_bytes().first() {
        Some(b'"') => {
            turn.texts.push(text(content).map_err(|_| invalid(&at, format!("`{at}` must be a string.")))?);
        }
        Some(b'[') => {
            let parts = items(content).map_err(|_| invalid(&at, format!("`{at}` must be an array of parts.")))?;
            for (i, raw) in parts.into_iter().enumerate() {
                let part: Part<'_> = serde_json::from_slice(raw.get().as_bytes()).map_err(|error| {
                    invalid(format!("{at}[{i}]"), format!("`{at}[{i}]` is no part: {}.", what(&error)))
                })?;
                let is_text = matches!(&*part.r#type, "text" | "input_text" | "output_text" | "refusal");
                if !is_text && unseen.is_none() {
                    *unseen = Some((format!("{at}[{i}]"), part.r#type.chars().take(40).collect()));
                }
                match (&*part.r#type, part.text, part.refusal) {
                    (_, None, None) if is_text => {
                        return Err(invalid(format!("{at}[{i}].text"), format!("`{at}[{i}]` has no text.")));
                    }
                    (kind, text, refusal) => {
                        turn.is_plain &= kind == "text";
                        turn.texts.extend([text, refusal].into_iter().flatten());
                    }
                }
            }
        }
        Some(b'n') => {}
        _ => return Err(invalid(&at, format!("`{at}` must be a string or an array of parts."))),
    }
    Ok(())
}

/// What the gateway changes in a body on its way to a provider.
#[derive(Debug, Clone, Copy)]
pub struct Edits<'a> {
    /// The model's name at the provider.
    pub model: &'a str,
}

/// Writes the conversation for a provider: the model's name there, and usage asked for at the end of a stream so that
/// no token goes uncounted.
#[must_use]
pub fn write_for_provider(conversation: &Conversation<'_>, edits: Edits<'_>) -> Vec<u8> {
    let mut body = Vec::with_capacity(conversation.messages.get().len().saturating_add(256));
    body.extend_from_slice(b"{\"model\":");
    body.extend_from_slice(&json_string(edits.model));
    body.extend_from_slice(b",\"messages\":");
    body.extend_from_slice(conversation.messages.get().as_bytes());
    for (key, value) in &conversation.params {
        body.push(b',');
        body.extend_from_slice(&json_string(key));
        body.push(b':');
        body.extend_from_slice(value.get().as_bytes());
    }
    if conversation.stream {
        body.extend_from_slice(b",\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    }
    body.push(b'}');
    body
}

pub(crate) fn json_string(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).unwrap_or_default()
}

/// Where the value of the top-level `model` stands in a body, quotes included: what a later attempt replaces.
#[must_use]
pub fn model_span(body: &[u8]) -> Option<Range<usize>> {
    let members = members(body).ok()?;
    let (_, value) = members.iter().find(|(key, _)| key == "model")?;
    let start = (value.get().as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    Some(start..start.checked_add(value.get().len())?)
}

#[cfg(test)]
mod tests;
