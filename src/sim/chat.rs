//! `POST /v1/chat/completions` as vLLM and OpenAI share it: reading the request, deciding the answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use bytes::Bytes;

pub(super) use self::request::{ChatRequest, Message};
use super::{
    answers,
    completion::{Completion, Finish, Usage},
    faults::Behaviour,
    key::KeyOptions,
    server::Call,
    shape::{Kind, Refused, now, openai_error, unique, vllm_error},
    sse,
};

mod request;

/// Options of a simulated model server.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Name of the served model; the server's usual one when absent
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub key: KeyOptions,
    /// Until the first token, in milliseconds
    #[arg(long, default_value_t = 20)]
    pub first_token_ms: u64,
    /// Between tokens, in milliseconds
    #[arg(long, default_value_t = 5)]
    pub token_ms: u64,
    /// Longest prompt accepted, in tokens
    #[arg(long, default_value_t = 131_072)]
    pub max_model_len: usize,
}

impl Default for Options {
    fn default() -> Self {
        let key = KeyOptions::default();
        Self { port: 0, model: None, key, first_token_ms: 20, token_ms: 5, max_model_len: 131_072 }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) first_token: Duration,
    pub(super) token: Duration,
}

/// A served model and how many answers it is giving.
pub(super) struct Model {
    pub(super) kind: Kind,
    pub(super) name: String,
    pace: Pace,
    pub(super) max_model_len: usize,
    running: AtomicUsize,
}

impl Model {
    pub(super) fn new(kind: Kind, name: String, pace: Pace, max_model_len: usize) -> Self {
        Self { kind, name, pace, max_model_len, running: AtomicUsize::new(0) }
    }

    pub(super) fn from_options(kind: Kind, options: &Options, default_name: &str) -> Self {
        let pace = Pace {
            first_token: Duration::from_millis(options.first_token_ms),
            token: Duration::from_millis(options.token_ms),
        };
        let name = options.model.clone().unwrap_or_else(|| default_name.to_owned());
        Self::new(kind, name, pace, options.max_model_len)
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    fn pace(&self, call: &Call) -> Pace {
        Pace {
            first_token: call.fault.first_token.unwrap_or(self.pace.first_token),
            token: call.fault.token.unwrap_or(self.pace.token),
        }
    }
}

/// Counts one answer as running until dropped, be it done or abandoned.
struct Running(Arc<Model>);

impl Running {
    fn new(model: &Arc<Model>) -> Self {
        model.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(model))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Model {
    /// # Errors
    /// 404 for another model than the served one. vLLM takes a request that names none.
    pub(super) fn knows(&self, asked: Option<&str>) -> Result<(), Refused> {
        match (self.kind, asked) {
            (Kind::OpenAi, None) => {
                let message = "you must provide a model parameter";
                Err(openai_error(StatusCode::BAD_REQUEST, message, "invalid_request_error", None, None))
            }
            (_, None) => Ok(()),
            (_, Some(name)) if name == self.name => Ok(()),
            (Kind::OpenAi, Some(name)) => {
                let message = format!("The model `{name}` does not exist or you do not have access to it.");
                let (kind, code) = ("invalid_request_error", Some("model_not_found"));
                Err(openai_error(StatusCode::NOT_FOUND, &message, kind, None, code))
            }
            (_, Some(name)) => {
                let message = format!("The model `{name}` does not exist.");
                Err(vllm_error(StatusCode::NOT_FOUND, &message, "NotFoundError", Some("model")))
            }
        }
    }

    pub(super) fn fits(&self, prompt_tokens: usize) -> Result<(), Refused> {
        let limit = self.max_model_len;
        if prompt_tokens <= limit {
            return Ok(());
        }
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your prompt contains at least \
             {prompt_tokens} input tokens. Please reduce the length of the input prompt."
        );
        let bad = StatusCode::BAD_REQUEST;
        Err(match self.kind {
            Kind::OpenAi => {
                let code = Some("context_length_exceeded");
                openai_error(bad, &message, "invalid_request_error", Some("messages"), code)
            }
            _ => vllm_error(bad, &message, "BadRequestError", Some("input_tokens")),
        })
    }
}

pub(super) async fn completions(
    State(model): State<Arc<Model>>,
    Extension(call): Extension<Call>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match ChatRequest::read(&model, &headers, &body) {
        Ok(request) => {
            let completion = complete(&model, &request, &headers, &call);
            reply(&model, &request, completion, &call).await
        }
        Err(refused) => refused.into_response(),
    }
}

/// Sends a finished completion as the request wants it: SSE at the model's pace, or JSON after the same time.
pub(super) async fn reply(model: &Arc<Model>, request: &ChatRequest, completion: Completion, call: &Call) -> Response {
    let running = Running::new(model);
    let pace = model.pace(call);
    if request.stream == Some(true) {
        return sse::respond(call, completion.stream(pace, &call.fault.behaviour), running);
    }
    let tokens = u32::try_from(completion.ends.len().saturating_sub(1)).unwrap_or(u32::MAX);
    let whole = pace.first_token + pace.token.saturating_mul(tokens);
    if !whole.is_zero() {
        tokio::time::sleep(whole).await;
    }
    sse::respond_json(call, StatusCode::OK, &completion.json())
}

fn complete(model: &Model, request: &ChatRequest, headers: &HeaderMap, call: &Call) -> Completion {
    let user_text = request.user_text();
    let tool = request.tool(&user_text);
    let mut text = match (&call.fault.behaviour, &tool) {
        (Behaviour::Empty, _) => String::new(),
        (Behaviour::Text(text), _) => text.clone(),
        (_, Some(_)) => serde_json::json!({"input": user_text}).to_string(),
        (_, None) => answers::answer(&user_text),
    };
    let mut finish = if tool.is_some() { Finish::ToolCalls } else { Finish::Stop };
    let mut stop_reason = None;
    if tool.is_none()
        && let Some((at, stop)) = earliest(&text, request.stops())
    {
        stop_reason = Some(stop.to_owned());
        text.truncate(at);
    }
    let mut ends = answers::token_ends(&text);
    if let Some(limit) = request.max_tokens().filter(|limit| *limit < ends.len()) {
        ends.truncate(limit);
        text.truncate(ends.last().copied().unwrap_or_default());
        (finish, stop_reason) = (Finish::Length, None);
    }
    envelope(model, request, headers, Completion { text, ends, finish, stop_reason, tool, ..Completion::default() })
}

/// Fills in what does not depend on the text: id, model, usage, choices.
pub(super) fn envelope(
    model: &Model,
    request: &ChatRequest,
    headers: &HeaderMap,
    completion: Completion,
) -> Completion {
    let n = request.n.unwrap_or(1);
    let usage = Usage { prompt: request.prompt_tokens(), completion: completion.ends.len() * n as usize, cached: None };
    let options = request.stream_options.as_ref();
    let include_usage = options.and_then(|options| options.include_usage) == Some(true);
    Completion {
        kind: model.kind,
        id: completion_id(model.kind, headers, "chatcmpl-"),
        created: now(),
        model: model.name.clone(),
        n,
        usage,
        include_usage,
        continuous_usage: include_usage && options.and_then(|options| options.continuous_usage_stats) == Some(true),
        ..completion
    }
}

/// vLLM takes the id from `X-Request-Id`.
pub(super) fn completion_id(kind: Kind, headers: &HeaderMap, prefix: &str) -> String {
    let given = headers.get("x-request-id").filter(|_| kind == Kind::Vllm).and_then(|value| value.to_str().ok());
    format!("{prefix}{}", given.map_or_else(unique, str::to_owned))
}

fn earliest<'a>(text: &str, stops: &'a [String]) -> Option<(usize, &'a str)> {
    let found = stops
        .iter()
        .filter(|stop| !stop.is_empty())
        .filter_map(|stop| Some((text.find(stop.as_str())?, stop.as_str())));
    found.min_by_key(|(at, _)| *at)
}
