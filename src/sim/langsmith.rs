//! LangSmith's ingestion: runs by multipart, batch and one by one, feedback. It refuses what the real one refuses and says why.

use std::{
    io,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::Response,
    routing::{get, patch, post},
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::{
    batch::Batch,
    encoding::Encodings,
    run::Refusal,
    store::{Store, Stored},
};
use super::{
    key::KeyOptions,
    server::{self, Call, Shared, Simulator},
    shape::Kind,
    sse,
};

mod batch;
mod encoding;
mod multipart;
mod run;
mod store;
#[cfg(test)]
mod tests;

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    #[command(flatten)]
    pub key: KeyOptions,
    /// Before every answer to an ingestion, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub latency_ms: u64,
    /// `version` of GET /info
    #[arg(long, default_value = "0.12.0")]
    pub server_version: String,
    /// `batch_ingest_config.size_limit` of GET /info, in runs
    #[arg(long, default_value_t = 100)]
    pub size_limit: usize,
    /// `batch_ingest_config.size_limit_bytes` of GET /info; longer bodies get 413
    #[arg(long, default_value_t = 20_971_520)]
    pub size_limit_bytes: usize,
    /// `instance_flags.zstd_compression_enabled` of GET /info
    #[arg(long)]
    pub zstd: bool,
    /// `instance_flags.gzip_body_enabled` of GET /info
    #[arg(long)]
    pub gzip: bool,
    /// An old server: /runs/multipart is 404 and GET /info says so
    #[arg(long)]
    pub no_multipart: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            key: KeyOptions::default(),
            latency_ms: 0,
            server_version: "0.12.0".into(),
            size_limit: 100,
            size_limit_bytes: 20_971_520,
            zstd: false,
            gzip: false,
            no_multipart: false,
        }
    }
}

/// A running LangSmith; also a [`Simulator`].
pub struct LangSmith {
    server: Simulator,
    ingestion: Arc<Ingestion>,
}

impl LangSmith {
    /// Which compressed bodies are taken from now on, and what `GET /info` says.
    pub fn set_compression(&self, zstd: bool, gzip: bool) {
        *lock(&self.ingestion.takes) = Encodings { zstd, gzip };
    }

    /// All runs kept (the newest 200,000), oldest first, patches applied.
    #[must_use]
    pub fn runs(&self) -> Vec<Value> {
        self.ingestion.store.runs(None)
    }

    /// All feedback kept, oldest first.
    #[must_use]
    pub fn feedback(&self) -> Vec<Value> {
        self.ingestion.store.feedback(None)
    }

    #[must_use]
    pub fn into_server(self) -> Simulator {
        self.server
    }
}

impl Deref for LangSmith {
    type Target = Simulator;

    fn deref(&self) -> &Simulator {
        &self.server
    }
}

/// Starts on `options.port`.
///
/// # Errors
/// When the port is taken or the key's variable is not set.
pub async fn start(options: Options) -> io::Result<LangSmith> {
    let listener = server::bind(options.port).await?;
    serve(options, listener)
}

/// Starts on a listener, which must be on a loopback address; `options.port` is ignored. Needs a running Tokio runtime.
///
/// # Errors
/// When the key's variable is not set or the listener is broken.
pub fn serve(options: Options, listener: TcpListener) -> io::Result<LangSmith> {
    let shared =
        Shared::new(Kind::LangSmith, options.key.clone().resolve()?, Duration::from_millis(options.latency_ms));
    let ingestion = Arc::new(Ingestion {
        store: Store::default(),
        takes: Mutex::new(Encodings { zstd: options.zstd, gzip: options.gzip }),
        options,
    });
    let routes = Router::new()
        .route("/info", get(info))
        .route("/runs/multipart", post(multipart_runs))
        .route("/runs/batch", post(batch))
        .route("/runs", post(one_run))
        .route("/runs/{id}", patch(patch_run))
        .route("/feedback", post(feedback))
        .route("/sessions", get(sessions))
        .route("/sim/runs", get(show_runs).delete(forget))
        .route("/sim/feedback", get(show_feedback));
    let server = server::serve(shared, routes.with_state(Arc::clone(&ingestion)), listener)?;
    Ok(LangSmith { server, ingestion })
}

async fn info(State(ingestion): State<Arc<Ingestion>>) -> Json<Value> {
    let Ingestion { options, .. } = &*ingestion;
    let takes = *lock(&ingestion.takes);
    Json(json!({
        "version": options.server_version,
        "license_expiration_time": null,
        "instance_flags": {"zstd_compression_enabled": takes.zstd, "gzip_body_enabled": takes.gzip},
        "batch_ingest_config": {
            "use_multipart_endpoint": !options.no_multipart,
            "scale_up_qsize_trigger": 1000, "scale_up_nthreads_limit": 16, "scale_down_nempty_trigger": 4,
            "size_limit": options.size_limit, "size_limit_bytes": options.size_limit_bytes,
        },
    }))
}

struct Ingestion {
    store: Store,
    takes: Mutex<Encodings>,
    options: Options,
}

impl Ingestion {
    fn decode(&self, headers: &HeaderMap, body: Bytes) -> Result<Bytes, Refusal> {
        let takes = *lock(&self.takes);
        encoding::decode(headers, body, takes, self.options.size_limit_bytes)
    }

    fn accept(&self, batch: Batch) -> Result<Value, Refusal> {
        match self.store.ingest(batch) {
            Stored::All => Ok(json!({"message": "Runs batch ingested"})),
            Stored::ExceptDuplicates(ids) => {
                let message = format!("already received: {}; other items of this request are stored", ids.join(", "));
                Err(Refusal::new(StatusCode::CONFLICT, message))
            }
        }
    }
}

fn respond(call: &Call, status: StatusCode, result: Result<Value, Refusal>) -> Response {
    match result {
        Ok(body) => sse::respond_json(call, status, &body),
        Err(refusal) => super::shape::answer(refusal.status, json!({"detail": refusal.message})),
    }
}

async fn multipart_runs(
    State(ingestion): State<Arc<Ingestion>>,
    Extension(call): Extension<Call>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if ingestion.options.no_multipart {
        return call.kind.not_found(&Method::POST, "/runs/multipart");
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let result = ingestion
        .decode(&headers, body)
        .and_then(|body| {
            let parts = multipart::parse(content_type, &body);
            Batch::from_parts(&parts.map_err(|error| Refusal::unprocessable(error.to_string()))?)
        })
        .and_then(|batch| ingestion.accept(batch));
    respond(&call, StatusCode::ACCEPTED, result)
}

fn json_body(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::unprocessable(format!("body is not JSON: {error}")))
}

async fn batch(
    State(ingestion): State<Arc<Ingestion>>,
    Extension(call): Extension<Call>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let result = ingestion
        .decode(&headers, body)
        .and_then(|body| Batch::from_json(json_body(&body)?))
        .and_then(|batch| ingestion.accept(batch));
    respond(&call, StatusCode::ACCEPTED, result)
}

async fn one_run(
    State(ingestion): State<Arc<Ingestion>>,
    Extension(call): Extension<Call>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let result = ingestion
        .decode(&headers, body)
        .and_then(|body| Batch::from_one_run(json_body(&body)?))
        .and_then(|batch| ingestion.accept(batch));
    respond(&call, StatusCode::ACCEPTED, result)
}

async fn patch_run(
    State(ingestion): State<Arc<Ingestion>>,
    Extension(call): Extension<Call>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let result = ingestion
        .decode(&headers, body)
        .and_then(|body| Batch::from_one_patch(&id, json_body(&body)?))
        .and_then(|batch| ingestion.accept(batch));
    respond(&call, StatusCode::ACCEPTED, result)
}

async fn feedback(
    State(ingestion): State<Arc<Ingestion>>,
    Extension(call): Extension<Call>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let result = ingestion.decode(&headers, body).and_then(|body| {
        let feedback = run::feedback(json_body(&body)?)?;
        let about = feedback.get("run_id").or(feedback.get("trace_id")).and_then(Value::as_str).unwrap_or_default();
        if !ingestion.store.has(about) {
            return Err(Refusal::new(StatusCode::NOT_FOUND, format!("run {about:?} not found")));
        }
        let session = run::text(&feedback, "session_id");
        if session.is_some_and(|session| !ingestion.store.sessions(None).values().any(|known| known == session)) {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "session_id is no project's"));
        }
        let id = run::text(&feedback, "id").unwrap_or_default().to_owned();
        if ingestion.store.has_feedback(&id) {
            return Err(Refusal::new(StatusCode::CONFLICT, format!("feedback {id:?} already received")));
        }
        let feedback = Value::Object(feedback);
        ingestion.store.ingest(Batch { feedback: vec![feedback.clone()], ..Batch::default() });
        Ok(feedback)
    });
    respond(&call, StatusCode::OK, result)
}

#[derive(Deserialize)]
struct Named {
    name: Option<String>,
}

/// The projects; the first run in one made it.
async fn sessions(State(ingestion): State<Arc<Ingestion>>, Query(query): Query<Named>) -> Json<Value> {
    let sessions = ingestion.store.sessions(query.name.as_deref());
    Json(sessions.into_iter().map(|(name, id)| json!({"id": id, "name": name})).collect())
}

#[derive(Deserialize)]
struct Filter {
    trace_id: Option<String>,
}

async fn show_runs(State(ingestion): State<Arc<Ingestion>>, Query(filter): Query<Filter>) -> Json<Value> {
    Json(Value::Array(ingestion.store.runs(filter.trace_id.as_deref())))
}

async fn show_feedback(State(ingestion): State<Arc<Ingestion>>, Query(filter): Query<Filter>) -> Json<Value> {
    Json(Value::Array(ingestion.store.feedback(filter.trace_id.as_deref())))
}

async fn forget(State(ingestion): State<Arc<Ingestion>>) -> StatusCode {
    ingestion.store.clear();
    StatusCode::NO_CONTENT
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
