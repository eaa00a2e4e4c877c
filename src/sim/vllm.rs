//! vLLM's OpenAI-compatible server, 0.32, as observed on the wire.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub use super::chat::Options;
use super::{
    answers,
    chat::{Model, completions},
    server::{self, Call, Shared, Simulator},
    shape::{Kind, Refused, now, vllm_error},
};

pub const DEFAULT_MODEL: &str = "meta-llama/Meta-Llama-3-8B-Instruct";
const VERSION: &str = "0.32.0";
/// Answers at once that fill the simulated KV cache.
const KV_CACHE_ANSWERS: f64 = 256.0;

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
    let model = Arc::new(Model::from_options(Kind::Vllm, &options, DEFAULT_MODEL));
    let routes =
        Router::new().route("/v1/chat/completions", post(completions)).merge(common_routes()).with_state(model);
    server::serve(Shared::new(Kind::Vllm, options.key.resolve()?, Duration::ZERO), routes, listener)
}

/// What any vLLM serves beside its model's own routes, `/tokenize` excepted for who brings another.
pub(super) fn operations() -> Router<Arc<Model>> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/health", get(|| async {}))
        .route("/version", get(|| async { Json(json!({"version": VERSION})) }))
        .route("/metrics", get(metrics))
}

fn common_routes() -> Router<Arc<Model>> {
    operations().route("/tokenize", post(tokenize))
}

async fn models(State(model): State<Arc<Model>>) -> Json<Value> {
    let name = &model.name;
    Json(json!({"object": "list", "data": [{
        "id": name, "object": "model", "created": now(), "owned_by": "vllm", "root": name, "parent": null,
        "max_model_len": model.max_model_len, "permission": [],
    }]}))
}

async fn metrics(State(model): State<Arc<Model>>, Extension(call): Extension<Call>) -> Response {
    let running = model.running();
    let (waiting, kv_cache) = call.load;
    let waiting = waiting.unwrap_or(0) as f64;
    let kv_cache = kv_cache.unwrap_or_else(|| (running as f64 / KV_CACHE_ANSWERS).min(1.0));
    let labels = format!("{{engine=\"0\",model_name=\"{}\"}}", model.name);
    let gauges = [
        ("num_requests_running", running as f64),
        ("num_requests_waiting", waiting),
        ("kv_cache_usage_perc", kv_cache),
    ];
    let text: String = gauges
        .iter()
        .map(|(name, value)| format!("# TYPE vllm:{name} gauge\nvllm:{name}{labels} {value:?}\n"))
        .collect();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Simple: the simulator's own tokens, with ids that only tell them apart.
async fn tokenize(State(model): State<Arc<Model>>, body: Bytes) -> Response {
    let text = match tokenizable(&body) {
        Ok(text) => text,
        Err(refused) => return refused.into_response(),
    };
    tokenized(&model, answers::tokens(&text).into_iter().map(|token| (token_id(token), token)))
}

fn tokenizable(body: &[u8]) -> Result<String, Refused> {
    let bad = |message: &str| vllm_error(StatusCode::BAD_REQUEST, message, "Bad Request", None);
    let body: Value = serde_json::from_slice(body).map_err(|error| bad(&error.to_string()))?;
    match (body.get("prompt"), body.get("messages")) {
        (Some(Value::String(prompt)), _) => Ok(prompt.clone()),
        (_, Some(Value::Array(messages))) => {
            let contents = messages.iter().filter_map(|message| message.get("content"));
            Ok(contents.map(answers::content_text).collect::<Vec<_>>().join("\n"))
        }
        _ => Err(bad("give `prompt` or `messages`")),
    }
}

pub(super) fn tokenized<'a>(model: &Model, tokens: impl Iterator<Item = (u32, &'a str)>) -> Response {
    let (ids, texts): (Vec<u32>, Vec<&str>) = tokens.unzip();
    let body = json!({
        "count": ids.len(), "max_model_len": model.max_model_len, "tokens": ids, "token_strs": texts,
    });
    Json(body).into_response()
}

/// FNV-1a, folded below the ids of Llama 3's special tokens.
pub(super) fn token_id(token: &str) -> u32 {
    let hash = token.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash % 128_000
}

#[cfg(test)]
mod tests;
