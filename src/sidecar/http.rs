//! The sidecar's HTTP interface.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::accesslog::line;
use crate::admission::Watch;
use crate::cache::{self, Store};
use crate::feedback::{self, Feedback};
use crate::langsmith::config::Config;
use crate::langsmith::tree;
use crate::metrics::Metrics;
use crate::spool::Spool;

const MAX_FEEDBACK_BODY: usize = 64 * 1024;
const MAX_RUNS: usize = 1000;
/// How much of the spool's end is read for `/runs`: so much for each run asked for, within bounds. Long requests may
/// make it fewer runs than were asked for.
const RUN_BYTES: u64 = 64 << 10;
const MIN_RUNS_BYTES: u64 = 1 << 20;
const MAX_RUNS_BYTES: u64 = 32 << 20;

#[derive(Clone)]
pub(super) struct Shared {
    pub(super) metrics: Arc<Metrics>,
    pub(super) load: Arc<Watch>,
    pub(super) spool: Arc<Spool>,
    pub(super) cache: Arc<Store>,
    pub(super) feedback: Arc<Feedback>,
    pub(super) config: Arc<Config>,
}

pub(super) fn router(shared: Shared) -> Router {
    let feedback = Router::new()
        .route("/feedback", post(feedback::handle))
        .layer(DefaultBodyLimit::max(MAX_FEEDBACK_BODY))
        .with_state(Arc::clone(&shared.feedback));
    Router::new()
        .route("/internal/cache/{key}", get(cached))
        .route(parapet_engine::admission::PATH, get(async |State(shared): State<Shared>| shared.load.report()))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/runs", get(runs))
        .route("/", get(page))
        .with_state(shared)
        .merge(feedback)
}

async fn cached(State(shared): State<Shared>, Path(key): Path<String>) -> Response {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let found = cache::is_key(&key).then(|| shared.cache.get(&key, now_s)).flatten();
    shared.metrics.cache_lookup(found.is_some());
    match found {
        Some(entry) => ([(header::CONTENT_TYPE, "application/json")], entry).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    shared.metrics.spool(shared.spool.stats());
    let (entries, bytes) = shared.cache.size();
    shared.metrics.cache_size(entries, bytes);
    shared.metrics.feedback_pending(shared.feedback.pending());
    match shared.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<usize>,
}

/// The newest local runs in LangSmith's form, the newest first, each root with its `child_runs`.
async fn runs(State(shared): State<Shared>, Query(query): Query<Limit>) -> Response {
    let limit = query.limit.unwrap_or(50).clamp(1, MAX_RUNS);
    let read = tokio::task::spawn_blocking(move || {
        let lines = shared.spool.newest(limit, (limit as u64 * RUN_BYTES).clamp(MIN_RUNS_BYTES, MAX_RUNS_BYTES))?;
        let nested = lines.iter().filter_map(|bytes| {
            let (line, _) = line::parse(bytes).ok()?;
            let mut runs = tree::tree(&line, &shared.config.shape)
                .into_iter()
                .filter_map(|run| serde_json::from_slice::<Value>(&run.whole().ok()?).ok());
            let mut root = runs.next()?;
            root["child_runs"] = runs.collect();
            Some(root)
        });
        Ok::<_, std::io::Error>(nested.collect::<Vec<Value>>())
    });
    match read.await {
        Ok(Ok(runs)) => Json(json!({ "runs": runs })).into_response(),
        Ok(Err(error)) => {
            tracing::error!("the spool cannot be read: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn page(State(shared): State<Shared>) -> Html<String> {
    let stats = shared.spool.stats();
    let (entries, bytes) = shared.cache.size();
    let upload = if shared.config.uploads() { "on" } else { "off: runs stay local" };
    let rows = [
        ("Requests since the start", shared.metrics.requests_seen().to_string()),
        ("Upload to LangSmith", upload.to_owned()),
        ("Requests that wait for upload", stats.waiting.to_string()),
        ("Requests kept", format!("{} in {} segments, {} KiB", stats.lines, stats.segments, stats.bytes / 1024)),
        ("Cached answers", format!("{entries}, {} KiB", bytes / 1024)),
        ("Feedback that waits", shared.feedback.pending().to_string()),
    ];
    let rows: String = rows.iter().map(|(name, value)| format!("<tr><th>{name}<td>{value}")).collect();
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>Parapet</title><style>body{{font:16px system-ui;margin:2em}}th{{text-align:left;padding-right:2em}}\
         </style><h1>Parapet</h1><table>{rows}</table><p><a href=/metrics>metrics</a> · <a href=/runs>newest runs</a>"
    ))
}
