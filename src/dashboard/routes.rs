//! The pages' routes, and the headers that keep them harmless.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use parapet_engine::record::Record;
use serde::Deserialize;
use uuid::Uuid;

use super::live::Envoy;
use super::page::overview::{Overview, Store};
use super::page::{self, ICON, STYLE};
use super::recent::KEPT;
use super::{Board, LimitsSource, now_s};
use crate::accesslog::line;
use crate::cache;
use crate::feedback::Feedback;
use crate::metrics::Metrics;
use crate::spool::Spool;

/// Nothing is loaded but our own style, nothing runs, nobody frames it.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the pages read.
#[derive(Clone)]
pub struct Shared {
    pub board: Arc<Board>,
    pub limits: Arc<LimitsSource>,
    pub envoy: Arc<Envoy>,
    pub metrics: Arc<Metrics>,
    pub spool: Arc<Spool>,
    pub cache: Arc<cache::Store>,
    pub feedback: Arc<Feedback>,
    /// Where runs are uploaded to.
    pub upload: Option<String>,
}

pub fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/", get(overview))
        .route("/requests/{id}", get(request))
        .route("/style.css", get(async || asset("text/css; charset=utf-8", STYLE)))
        .route("/icon.svg", get(async || asset("image/svg+xml", ICON)))
        .with_state(shared)
}

fn asset(content_type: &'static str, content: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "no-cache"), NO_SNIFF], content).into_response()
}

const NO_SNIFF: (header::HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

fn page(status: StatusCode, html: String) -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-store"),
        NO_SNIFF,
    ];
    (status, headers, Html(html)).into_response()
}

#[derive(Deserialize)]
struct Wish {
    refresh: Option<String>,
}

async fn overview(State(shared): State<Shared>, Query(wish): Query<Wish>) -> Response {
    let in_flight = shared.envoy.in_flight().await.map_err(|error| error.to_string());
    let read = tokio::task::spawn_blocking(move || {
        let now_s = now_s();
        let stats = shared.spool.stats();
        let (cache_entries, cache_bytes) = shared.cache.size();
        let (oldest_s, limits) = (oldest_age_s(&shared.spool), shared.limits.get());
        let seen = shared.board.lock();
        Overview {
            now_s,
            started_s: shared.board.started_s,
            minutes: seen.history.hour(now_s / 60),
            in_flight,
            finished: seen.recent.finished(20),
            judged: seen.recent.judged(KEPT),
            usage: seen.usage.rows(now_s),
            limits,
            store: Store {
                upload: shared.upload,
                waiting: stats.waiting,
                oldest_s,
                lines: stats.lines,
                bytes: stats.bytes,
                segments: stats.segments,
                backlog: shared.metrics.backlog_bytes(),
                feedback: shared.feedback.pending(),
                dead_letters: shared.metrics.parked(),
                cache_entries,
                cache_bytes,
            },
            refresh: wish.refresh.as_deref() != Some("off"),
        }
    });
    match read.await {
        Ok(view) => page(StatusCode::OK, page::overview::page(&view)),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn request(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    let missing = || {
        let text = "No trace of that id is kept here: it is too old, it was no chat, or it never was.";
        page(StatusCode::NOT_FOUND, page::message("No such request", text))
    };
    let Ok(id) = Uuid::try_parse(&id) else { return missing() };
    match tokio::task::spawn_blocking(move || find(&shared.spool, id)).await {
        Ok(Ok(Some(record))) => page(StatusCode::OK, page::request::page(&record)),
        Ok(Ok(None)) => missing(),
        Ok(Err(error)) => {
            tracing::error!("the spool cannot be read: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn find(spool: &Spool, id: Uuid) -> std::io::Result<Option<Record>> {
    /// The id stands at the record's beginning; what a client wrote comes later.
    const BEGINNING: usize = 512;
    let wanted = id.to_string();
    let mut found = None;
    spool.find(|bytes| {
        let beginning = bytes.get(..BEGINNING.min(bytes.len())).unwrap_or_default();
        if !beginning.windows(wanted.len()).any(|text| text == wanted.as_bytes()) {
            return false;
        }
        found = line::parse(bytes).ok().map(|(line, _)| line).filter(|line| line.id == id).map(|line| line.record);
        found.is_some()
    })?;
    Ok(found)
}

/// Seconds since the end of the oldest request that waits for upload; 0 when none does or it cannot be read.
pub fn oldest_age_s(spool: &Spool) -> f64 {
    let oldest = spool.oldest_waiting().unwrap_or_else(|error| {
        tracing::warn!("the spool's oldest line cannot be read: {error}");
        None
    });
    let Some((line, _)) = oldest.and_then(|bytes| line::parse(&bytes).ok()) else { return 0.0 };
    let now_us = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_micros();
    u64::try_from(now_us).unwrap_or(u64::MAX).saturating_sub(line.record.end_us) as f64 / 1e6
}
