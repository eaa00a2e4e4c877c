//! The sidecar's HTTP interface.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::accesslog::line;
use crate::admission::Watches;
use crate::cache::{self, Store};
use crate::dashboard::{self, hosts};
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
    pub(super) load: Arc<Watches>,
    pub(super) spool: Arc<Spool>,
    pub(super) cache: Arc<Store>,
    pub(super) feedback: Arc<Feedback>,
    pub(super) config: Arc<Config>,
    pub(super) pages: dashboard::Shared,
    pub(super) hosts: hosts::Hosts,
}

pub(super) fn router(shared: Shared) -> Router {
    let feedback = Router::new()
        .route("/feedback", post(feedback::handle))
        .layer(DefaultBodyLimit::max(MAX_FEEDBACK_BODY))
        .with_state(Arc::clone(&shared.feedback));
    // Envoy comes under one of our names as well: its configuration rewrites what the client called it.
    Router::new()
        .route("/metrics", get(metrics))
        .route("/runs", get(runs))
        .route("/internal/cache/{key}", get(cached))
        .route(parapet_engine::admission::PATH, get(async |State(shared): State<Shared>| shared.load.report()))
        .with_state(shared.clone())
        .merge(dashboard::routes(shared.pages.clone()))
        .merge(feedback)
        .layer(middleware::from_fn_with_state(shared.hosts.clone(), hosts::check))
        .route("/healthz", get(async || "ok\n"))
}

async fn cached(State(shared): State<Shared>, Path(key): Path<String>) -> Response {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let found = if cache::is_key(&key) { shared.cache.get(&key, now_s).await } else { None };
    shared.metrics.cache_lookup(found.is_some());
    match found {
        Some(entry) => ([(header::CONTENT_TYPE, "application/json")], entry).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    shared.metrics.spool(shared.spool.stats());
    let spool = Arc::clone(&shared.spool);
    if let Ok(age) = tokio::task::spawn_blocking(move || dashboard::oldest_age_s(&spool)).await {
        shared.metrics.spool_age(age);
    }
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
