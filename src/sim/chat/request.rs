//! Reading a chat request, as each server does it.

use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;

use super::{
    super::{
        answers,
        shape::{Kind, Refused, openai_error, vllm_error},
    },
    Model,
};

const MAX_CHOICES: u32 = 128;

/// The fields that change the answer; all others are ignored, as vLLM does with `guided_*`.
#[derive(Deserialize)]
pub(in super::super) struct ChatRequest {
    model: Option<String>,
    pub(in super::super) messages: Vec<Message>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    pub(super) n: Option<u32>,
    stop: Option<Stop>,
    tools: Option<Vec<Value>>,
    pub(in super::super) logprobs: Option<bool>,
    pub(in super::super) top_logprobs: Option<usize>,
}

#[derive(Deserialize)]
pub(in super::super) struct Message {
    pub(in super::super) role: String,
    #[serde(default)]
    pub(in super::super) content: Value,
}

#[derive(Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
    pub(super) continuous_usage_stats: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

impl ChatRequest {
    /// # Errors
    /// The server's own answer to a request it does not take.
    pub(in super::super) fn read(model: &Model, headers: &HeaderMap, body: &[u8]) -> Result<Self, Refused> {
        let bad = StatusCode::BAD_REQUEST;
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        if model.kind == Kind::Vllm && !media_type.eq_ignore_ascii_case("application/json") {
            let message = "Unsupported Media Type: Only 'application/json' is allowed";
            return Err(vllm_error(bad, message, "Bad Request", None));
        }
        let request: Self = serde_json::from_slice(body).map_err(|error| match model.kind {
            Kind::OpenAi => {
                let message = format!("We could not parse the JSON body of your request: {error}");
                openai_error(bad, &message, "invalid_request_error", None, None)
            }
            _ => vllm_error(bad, &error.to_string(), "Bad Request", None),
        })?;
        request.check(model)?;
        Ok(request)
    }

    fn check(&self, model: &Model) -> Result<(), Refused> {
        let refuse = |message: &str, param: &str| match model.kind {
            Kind::OpenAi => openai_error(StatusCode::BAD_REQUEST, message, "invalid_request_error", Some(param), None),
            _ => vllm_error(StatusCode::BAD_REQUEST, message, "BadRequestError", Some(param)),
        };
        model.knows(self.model.as_deref())?;
        if self.messages.is_empty() {
            return Err(refuse("messages: list should have at least 1 item", "messages"));
        }
        if self.token_limit().is_some_and(|limit| limit < 1) {
            return Err(refuse("max_tokens must be at least 1", "max_tokens"));
        }
        if self.top_logprobs.is_some_and(|top| top > 20) {
            return Err(refuse("top_logprobs must be at most 20", "top_logprobs"));
        }
        if self.stream_options.is_some() && self.stream != Some(true) {
            return Err(refuse("Stream options can only be defined when `stream=True`.", "stream_options"));
        }
        if !(1..=MAX_CHOICES).contains(&self.n.unwrap_or(1)) {
            return Err(refuse("n must be between 1 and 128", "n"));
        }
        model.fits(self.prompt_tokens())
    }

    fn token_limit(&self) -> Option<i64> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    pub(in super::super) fn max_tokens(&self) -> Option<usize> {
        self.token_limit().and_then(|limit| usize::try_from(limit).ok())
    }

    pub(super) fn prompt_tokens(&self) -> usize {
        answers::prompt_tokens(self.messages.iter().map(|message| &message.content))
    }

    pub(super) fn user_text(&self) -> String {
        let last = self.messages.iter().rev().find(|message| message.role == "user");
        last.map_or_else(String::new, |message| answers::content_text(&message.content))
    }

    /// The tool the user asked for, if the request offers it.
    pub(super) fn tool(&self, user_text: &str) -> Option<String> {
        let wanted = answers::wanted_tool(user_text)?;
        let offered = self
            .tools
            .iter()
            .flatten()
            .any(|tool| tool.pointer("/function/name").and_then(Value::as_str) == Some(wanted));
        offered.then(|| wanted.to_owned())
    }

    pub(super) fn stops(&self) -> &[String] {
        match &self.stop {
            None => &[],
            Some(Stop::One(stop)) => std::slice::from_ref(stop),
            Some(Stop::Many(stops)) => stops,
        }
    }
}
