//! OpenAI's chat completions. The answers are vLLM's, the model's name is not: a test sees who answered.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub use super::chat::Options;
use super::{
    chat::{Model, completions},
    server::{self, Shared, Simulator},
    shape::Kind,
};

pub const DEFAULT_MODEL: &str = "gpt-4o-mini";

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
    let model = Arc::new(Model::from_options(Kind::OpenAi, &options, DEFAULT_MODEL));
    let routes = Router::new()
        .route("/v1/chat/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(one_model))
        .with_state(model);
    server::serve(Shared::new(Kind::OpenAi, options.key.resolve()?, Duration::ZERO), routes, listener)
}

fn entry(model: &Model) -> Value {
    json!({"id": model.name, "object": "model", "created": 1_721_172_741, "owned_by": "system"})
}

async fn models(State(model): State<Arc<Model>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [entry(&model)]}))
}

async fn one_model(State(model): State<Arc<Model>>, Path(id): Path<String>) -> Response {
    match model.knows(Some(&id)) {
        Ok(()) => Json(entry(&model)).into_response(),
        Err(refused) => refused.into_response(),
    }
}

#[cfg(test)]
mod tests;
