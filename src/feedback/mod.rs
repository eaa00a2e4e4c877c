//! `POST /feedback`: votes on one's own traces, kept until LangSmith has them.

mod block;
pub mod queue;
mod redact;
pub mod send;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use crate::langsmith::deliver::now_us;
use crate::metrics::Metrics;
use crate::spool::index::Index;
pub use block::Block;
use queue::{Item, Queue};

const MAX_KEY: usize = 64;
const MAX_COMMENT: usize = 8 * 1024;
const MAX_VALUE: usize = 4 * 1024;
/// Feedback that may wait; past it callers are asked to come back.
const MAX_PENDING: usize = 10_000;
/// Of one tenant: what waits may speak of traces that never were, and must leave room for the others.
const MAX_TENANT: usize = MAX_PENDING / 4;

/// What the handler and the sender share.
#[derive(Debug)]
pub struct Feedback {
    queue: Mutex<Queue>,
    index: Arc<Mutex<Index>>,
    metrics: Arc<Metrics>,
    /// Whether what a caller writes freely is kept out: it may say again what runs are told to hide.
    hide: bool,
    /// When something came last.
    arrived: watch::Sender<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    trace_id: String,
    key: Option<String>,
    score: Option<Value>,
    value: Option<Value>,
    comment: Option<String>,
}

/// A refusal in OpenAI's error shape.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    param: Option<&'static str>,
    message: String,
}

impl Feedback {
    pub fn new(queue: Queue, index: Arc<Mutex<Index>>, metrics: Arc<Metrics>, hide: bool) -> Self {
        Self { queue: Mutex::new(queue), index, metrics, hide, arrived: watch::Sender::new(0) }
    }

    pub fn pending(&self) -> usize {
        lock(&self.queue).pending().len()
    }

    /// Whose the trace is; none while it is unknown.
    fn owner(&self, trace: Uuid) -> Option<Arc<str>> {
        lock(&self.index).get(trace).map(|known| Arc::clone(&known.tenant))
    }

    fn accept(&self, headers: &HeaderMap, body: &[u8]) -> Result<Uuid, Refusal> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let tenant = header("x-parapet-tenant");
        if tenant.is_empty() {
            return Err(Refusal {
                status: StatusCode::UNAUTHORIZED,
                code: "invalid_api_key",
                param: None,
                message: "Feedback is taken through the gateway, from a caller it knows.".to_owned(),
            });
        }
        let mut item = read(body)?;
        if self.owner(item.trace_id).is_some_and(|owner| *owner != *tenant) {
            return Err(Refusal {
                status: StatusCode::NOT_FOUND,
                code: "not_found",
                param: Some("trace_id"),
                message: "There is no such trace.".to_owned(),
            });
        }
        redact::apply(&mut item, self.hide);
        item.tenant = tenant.to_owned();
        item.user = header("x-parapet-user").to_owned();
        let unavailable = |message: &str| Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "feedback_unavailable",
            param: None,
            message: message.to_owned(),
        };
        let id = item.id;
        let mut queue = lock(&self.queue);
        let own = || queue.pending().values().filter(|pending| *pending.item.tenant == *tenant).count();
        if queue.pending().len() >= MAX_PENDING || (queue.pending().len() >= MAX_TENANT && own() >= MAX_TENANT) {
            return Err(unavailable("Too much feedback is waiting; try again later."));
        }
        queue.accept(item).map_err(|error| {
            tracing::error!("feedback cannot be stored: {error}");
            unavailable("The feedback could not be stored; try again later.")
        })?;
        Ok(id)
    }
}

/// The route's handler. 202 means that the feedback is on the disk.
pub async fn handle(
    State(feedback): State<Arc<Feedback>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => {
            let message = "The body is too long for a feedback, or was cut off.".to_owned();
            let status = rejection.status();
            return Refusal { status, code: "request_too_large", param: None, message }.response();
        }
    };
    let shared = Arc::clone(&feedback);
    let done = tokio::task::spawn_blocking(move || shared.accept(&headers, &body)).await;
    match done {
        Ok(Ok(id)) => {
            feedback.metrics.feedback("accepted");
            feedback.arrived.send_replace(now_us());
            (StatusCode::ACCEPTED, Json(json!({ "status": "accepted", "id": id.to_string() }))).into_response()
        }
        Ok(Err(refusal)) => {
            feedback.metrics.feedback("refused");
            refusal.response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl Refusal {
    fn invalid(param: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "invalid_request", param, message: message.into() }
    }

    fn response(self) -> Response {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::SERVICE_UNAVAILABLE => "server_error",
            _ => "invalid_request_error",
        };
        let error = json!({ "message": self.message, "type": kind, "param": self.param, "code": self.code });
        (self.status, Json(json!({ "error": error }))).into_response()
    }
}

fn read(body: &[u8]) -> Result<Item, Refusal> {
    let body: Body = serde_json::from_slice(body)
        .map_err(|error| Refusal::invalid(None, format!("The body is not a feedback: {error}.")))?;
    let trace_id = Uuid::try_parse(&body.trace_id)
        .map_err(|_| Refusal::invalid(Some("trace_id"), "`trace_id` must be the UUID from x-parapet-trace-id."))?;
    let key = body.key.unwrap_or_else(|| "user_score".to_owned());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.: ".contains(&byte);
    if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(plain) {
        let message = format!("`key` must be 1 to {MAX_KEY} letters, digits, spaces or any of _-.:");
        return Err(Refusal::invalid(Some("key"), message));
    }
    if body.score.as_ref().is_some_and(|score| !score.is_number() && !score.is_boolean()) {
        return Err(Refusal::invalid(Some("score"), "`score` must be a number or a boolean."));
    }
    if let Some(value) = &body.value {
        let kind = value.is_string() || value.is_number() || value.is_boolean() || value.is_object();
        if !kind || value.to_string().len() > MAX_VALUE {
            let message =
                format!("`value` must be a string, a number, a boolean or an object of up to {MAX_VALUE} bytes.");
            return Err(Refusal::invalid(Some("value"), message));
        }
    }
    if body.comment.as_ref().is_some_and(|comment| comment.len() > MAX_COMMENT) {
        return Err(Refusal::invalid(Some("comment"), format!("`comment` may have up to {MAX_COMMENT} bytes.")));
    }
    if body.score.is_none() && body.value.is_none() && body.comment.is_none() {
        return Err(Refusal::invalid(None, "Give a `score`, a `value` or a `comment`."));
    }
    Ok(Item {
        id: Uuid::now_v7(),
        trace_id,
        tenant: String::new(),
        user: String::new(),
        key,
        score: body.score,
        value: body.value,
        comment: body.comment,
        received_us: now_us(),
        verdict: None,
        to: None,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
