//! A guard as vLLM serves it: raw prompts on `/v1/completions`, and for Llama Guard 3 conversations on
//! `/v1/chat/completions`. It reads its prompt as the model does, special tokens inside user text included.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::{
    judge::Generated,
    prefix::PrefixCache,
    template::{GuardPrompt, Turn},
    tokens::guard_tokens,
};
use super::{
    answers,
    chat::{self, ChatRequest, Model, Pace, completion_id, envelope},
    completion::{Completion, Finish, Usage},
    key::KeyOptions,
    server::{self, Call, Shared, Simulator},
    shape::{Kind, Refused, now, vllm_error},
    sse, vllm,
};

mod family;
mod judge;
mod prefix;
mod template;
#[cfg(test)]
mod tests;
mod tokens;

pub use family::Family;

pub const DEFAULT_MODEL: &str = "meta-llama/Llama-Guard-3-8B";
const MAX_PROMPTS: usize = 64;
/// vLLM's default on `/v1/completions`.
const DEFAULT_MAX_TOKENS: usize = 16;

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Name of the served model
    #[arg(long, default_value = DEFAULT_MODEL)]
    pub model: String,
    /// Whose prompts it reads and whose verdicts it gives
    #[arg(long, value_enum, default_value_t)]
    pub family: Family,
    #[command(flatten)]
    pub key: KeyOptions,
    /// Until a verdict is answered, in milliseconds
    #[arg(long, default_value_t = 10)]
    pub latency_ms: u64,
    /// Longest prompt accepted, in tokens
    #[arg(long, default_value_t = 131_072)]
    pub max_model_len: usize,
}

impl Default for Options {
    fn default() -> Self {
        let (model, key) = (DEFAULT_MODEL.to_owned(), KeyOptions::default());
        Self { port: 0, model, family: Family::default(), key, latency_ms: 10, max_model_len: 131_072 }
    }
}

/// Starts on `options.port`.
///
/// # Errors
/// When the port is taken or the key's variable is not set.
pub async fn start(options: Options) -> io::Result<Simulator> {
    let listener = server::bind(options.port).await?;
    serve(options, listener)
}

/// Starts on a listener, which must be on a loopback address; `options.port` is ignored. Needs a running Tokio runtime.
///
/// # Errors
/// When the key's variable is not set or the listener is broken.
pub fn serve(options: Options, listener: TcpListener) -> io::Result<Simulator> {
    let pace = Pace { first_token: Duration::ZERO, token: Duration::ZERO };
    let model = Arc::new(Model::new(Kind::Vllm, options.model, pace, options.max_model_len));
    let guard = Arc::new(Guard { model: Arc::clone(&model), family: options.family, prefixes: PrefixCache::default() });
    let routes = Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/tokenize", post(tokenize))
        .with_state(guard)
        .merge(vllm::operations().with_state(model));
    let shared = Shared::new(Kind::Vllm, options.key.resolve()?, Duration::from_millis(options.latency_ms));
    server::serve(shared, routes, listener)
}

struct Guard {
    model: Arc<Model>,
    family: Family,
    prefixes: PrefixCache,
}

#[derive(Deserialize)]
struct CompletionRequest {
    model: Option<String>,
    prompt: Prompts,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
    #[serde(default)]
    stream: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    One(String),
    Many(Vec<String>),
}

fn bad_request(message: &str, param: Option<&str>) -> Refused {
    vllm_error(StatusCode::BAD_REQUEST, message, "BadRequestError", param)
}

async fn completions(
    State(guard): State<Arc<Guard>>,
    Extension(call): Extension<Call>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match complete(&guard, &call, &headers, &body) {
        Ok(body) => sse::respond_json(&call, StatusCode::OK, &body),
        Err(refused) => refused.into_response(),
    }
}

fn complete(guard: &Guard, call: &Call, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refused> {
    let request: CompletionRequest = serde_json::from_slice(body)
        .map_err(|error| vllm_error(StatusCode::BAD_REQUEST, &error.to_string(), "Bad Request", None))?;
    guard.model.knows(request.model.as_deref())?;
    if request.stream {
        return Err(bad_request("this simulator does not stream /v1/completions", Some("stream")));
    }
    if request.logprobs.is_some_and(|top| top > 20) {
        return Err(bad_request("logprobs must be at most 20", Some("logprobs")));
    }
    let max_tokens = request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    if max_tokens == 0 {
        return Err(bad_request("max_tokens must be at least 1", Some("max_tokens")));
    }
    let prompts = match request.prompt {
        Prompts::One(prompt) => vec![prompt],
        Prompts::Many(prompts) if (1..=MAX_PROMPTS).contains(&prompts.len()) => prompts,
        Prompts::Many(_) => return Err(bad_request("give 1 to 64 prompts", Some("prompt"))),
    };
    let mut usage = Usage { cached: Some(0), ..Usage::default() };
    let mut choices = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let verdict = guard.judge(prompt, call, Some(max_tokens))?;
        usage = added(usage, verdict.usage);
        let text: String = verdict.tokens.iter().map(|token| token.text.as_str()).collect();
        let logprobs = request.logprobs.map(|top| judge::completion_logprobs(&verdict.tokens, top));
        choices.push(json!({
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": verdict.finish.name(),
            "stop_reason": null, "token_ids": null, "prompt_logprobs": null, "prompt_token_ids": null,
        }));
    }
    Ok(json!({
        "id": completion_id(Kind::Vllm, headers, "cmpl-"), "object": "text_completion", "created": now(),
        "model": guard.model.name, "choices": choices, "usage": usage.json(Kind::Vllm), "service_tier": null,
        "system_fingerprint": null, "kv_transfer_params": null,
    }))
}

fn added(a: Usage, b: Usage) -> Usage {
    let cached = Some(a.cached.unwrap_or(0) + b.cached.unwrap_or(0));
    Usage { prompt: a.prompt + b.prompt, completion: a.completion + b.completion, cached }
}

struct Verdict {
    tokens: Vec<Generated>,
    finish: Finish,
    usage: Usage,
}

impl Guard {
    /// # Errors
    /// 400 for what the chat template refuses, and for another family than Llama Guard 3.
    fn render(&self, turns: &[Turn<'_>]) -> Result<String, Refused> {
        if self.family != Family::LlamaGuard3 {
            return Err(bad_request("this simulator has Llama Guard 3's chat template only", Some("messages")));
        }
        template::render(turns).map_err(|error| bad_request(&error.to_string(), None))
    }

    /// # Errors
    /// 400 for a prompt that is not the template or too long.
    fn judge(&self, prompt: &str, call: &Call, max_tokens: Option<usize>) -> Result<Verdict, Refused> {
        let parsed =
            GuardPrompt::parse(self.family, prompt).map_err(|error| bad_request(&error.to_string(), Some("prompt")))?;
        let prompt_tokens = guard_tokens(self.family, prompt);
        self.model.fits(prompt_tokens.len())?;
        let cached = self.prefixes.cached_tokens(&prompt_tokens);
        let mut tokens = judge::generate(&parsed, &call.fault.behaviour);
        // The end-of-turn token is generated and counted, though not shown.
        let generated = tokens.len() + 1;
        let limit = max_tokens.unwrap_or(usize::MAX);
        tokens.truncate(limit);
        Ok(Verdict {
            finish: if generated > limit { Finish::Length } else { Finish::Stop },
            usage: Usage { prompt: prompt_tokens.len(), completion: generated.min(limit), cached: Some(cached) },
            tokens,
        })
    }
}

async fn chat_completions(
    State(guard): State<Arc<Guard>>,
    Extension(call): Extension<Call>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let prepared = ChatRequest::read(&guard.model, &headers, &body).and_then(|request| {
        let turns: Vec<Turn<'_>> = request
            .messages
            .iter()
            .map(|message| (message.role.as_str(), answers::content_text(&message.content)))
            .collect();
        let prompt = guard.render(&turns)?;
        let verdict = guard.judge(&prompt, &call, request.max_tokens())?;
        Ok((request, verdict))
    });
    match prepared {
        Ok((request, verdict)) => {
            let completion = chat_completion(&guard, &request, &headers, verdict);
            chat::reply(&guard.model, &request, completion, &call).await
        }
        Err(refused) => refused.into_response(),
    }
}

fn chat_completion(guard: &Guard, request: &ChatRequest, headers: &HeaderMap, verdict: Verdict) -> Completion {
    let (mut text, mut ends) = (String::new(), Vec::new());
    for token in &verdict.tokens {
        text.push_str(&token.text);
        ends.push(text.len());
    }
    let logprobs = match request.logprobs {
        Some(true) => judge::chat_logprobs(&verdict.tokens, request.top_logprobs.unwrap_or(0)),
        _ => Value::Null,
    };
    let completion = Completion { text, ends, finish: verdict.finish, logprobs, ..Completion::default() };
    Completion { usage: verdict.usage, ..envelope(&guard.model, request, headers, completion) }
}

#[derive(Deserialize)]
struct TokenizeRequest {
    prompt: Option<String>,
    messages: Option<Vec<chat::Message>>,
}

async fn tokenize(State(guard): State<Arc<Guard>>, body: Bytes) -> Response {
    let prompt = match serde_json::from_slice(&body) {
        Ok(TokenizeRequest { prompt: Some(prompt), .. }) => prompt,
        Ok(TokenizeRequest { messages: Some(messages), .. }) => {
            let turns: Vec<Turn<'_>> = messages
                .iter()
                .map(|message| (message.role.as_str(), answers::content_text(&message.content)))
                .collect();
            match guard.render(&turns) {
                Ok(prompt) => prompt,
                Err(refused) => return refused.into_response(),
            }
        }
        Ok(_) => return bad_request("give `prompt` or `messages`", None).into_response(),
        Err(error) => {
            return vllm_error(StatusCode::BAD_REQUEST, &error.to_string(), "Bad Request", None).into_response();
        }
    };
    vllm::tokenized(&guard.model, guard_tokens(guard.family, &prompt).into_iter())
}
