//! What every simulator does around its routes: remember the request, check the key, apply faults, stop at once when told.

use std::{
    future::{IntoFuture, pending},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::{
    faults::{Behaviour, Fault, FaultError, FaultSet, Faults},
    key::ApiKey,
    requests::{Requests, SeenRequest, Ticket},
    shape::{Kind, answer},
    sse::Streaming,
};

mod listener;

const MAX_BODY_BYTES: usize = 64 << 20;

/// A running simulator. Dropping it stops it: its port closes and its open connections break.
pub struct Simulator {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Simulator {
    /// `http://127.0.0.1:PORT`, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces all faults; `Faults::default()` ends them.
    ///
    /// # Errors
    /// When the faults contradict one another; the former ones then stay.
    pub fn set_faults(&self, faults: Faults) -> Result<(), FaultError> {
        self.shared.faults.set(faults)
    }

    /// The requests seen (the newest 4096, `/sim/…` and `/health` excluded), oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.shared.requests.list()
    }

    /// How often `/health` was asked. Its requests are not among [`Simulator::requests`].
    #[must_use]
    pub fn health_checks(&self) -> u64 {
        self.shared.health_checks.load(Ordering::Acquire)
    }

    pub fn clear_requests(&self) {
        self.shared.requests.clear();
    }

    /// Returns once the port is closed: connecting is refused from then on.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // A task that panicked has closed its port as well.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

pub(super) struct Shared {
    pub(super) kind: Kind,
    pub(super) key: Option<ApiKey>,
    /// Before every answer of a route that works.
    pub(super) latency: Duration,
    pub(super) faults: FaultSet,
    pub(super) requests: Requests,
    health_checks: AtomicU64,
}

impl Shared {
    pub(super) fn new(kind: Kind, key: Option<ApiKey>, latency: Duration) -> Self {
        Self {
            kind,
            key,
            latency,
            faults: FaultSet::default(),
            requests: Requests::default(),
            health_checks: AtomicU64::new(0),
        }
    }
}

/// One exchange, as handlers see it.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) kind: Kind,
    pub(super) ticket: Arc<Ticket>,
    pub(super) fault: Arc<Fault>,
    /// What vLLM's gauges are made to say: requests in the queue, and the part of the KV cache that is taken.
    pub(super) load: (Option<u64>, Option<f64>),
}

/// # Errors
/// When the port is taken.
pub(super) async fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on 127.0.0.1:{port}: {error}")))
}

/// Serves `routes` until the returned handle is stopped or dropped.
pub(super) fn serve(shared: Shared, routes: Router, listener: TcpListener) -> io::Result<Simulator> {
    let address = listener.local_addr()?;
    let shared = Arc::new(shared);
    let kind = shared.kind;
    let control = Router::new()
        .route("/sim/faults", get(show_faults).post(replace_faults))
        .route("/sim/requests", get(show_requests).delete(forget_requests))
        .with_state(Arc::clone(&shared));
    let app = routes
        .merge(control)
        .fallback(move |request: Request| async move { kind.not_found(request.method(), request.uri().path()) })
        .method_not_allowed_fallback(move |request: Request| async move {
            kind.method_not_allowed(request.method(), request.uri().path())
        })
        // `exchange` reads bodies within its own bound; the extractors' usual 2 MB would refuse what the real servers take.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(&shared), exchange));
    let (stop, stopped) = watch::channel(false);
    let server = axum::serve(listener::Stoppable::new(listener, stopped.clone()), app).into_future();
    let task = tokio::spawn(async move {
        let stopped = listener::stopped(stopped);
        tokio::select! { () = stopped => {}, _ = server => {} }
    });
    Ok(Simulator { address, shared, stop, task })
}

async fn exchange(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if request.uri().path().starts_with("/sim/") {
        return next.run(request).await;
    }
    let began = Instant::now();
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return shared.kind.error(StatusCode::PAYLOAD_TOO_LARGE);
    };
    // A balancer asks for ever, and nobody wants to read it.
    let ticket = Arc::new(if parts.uri.path() == "/health" {
        shared.health_checks.fetch_add(1, Ordering::AcqRel);
        Ticket::unseen()
    } else {
        shared.requests.record(parts.clone(), body.clone())
    });
    let mut response = match shared.kind.refuse(&parts, shared.key.as_ref()) {
        Some(refusal) => refusal,
        None => {
            let request = Request::from_parts(parts, Body::from(body));
            faulty(&shared, request, Arc::clone(&ticket), next).await
        }
    };
    shared.kind.decorate(&mut response, began.elapsed());
    if response.extensions().get::<Streaming>().is_none() {
        ticket.finish();
    }
    response
}

/// Applies what needs no knowledge of the route; the rest is the handler's, by [`Call`].
async fn faulty(shared: &Shared, mut request: Request, ticket: Arc<Ticket>, next: Next) -> Response {
    let path = request.uri().path();
    let works = shared.kind.works(request.method(), path);
    let fault = shared.faults.take(path, works);
    if let Some(latency) = fault.latency.or(works.then_some(shared.latency)).filter(|latency| !latency.is_zero()) {
        tokio::time::sleep(latency).await;
    }
    match &fault.behaviour {
        Behaviour::Hang => pending().await,
        Behaviour::Status { code, after_processing: false } => failed(shared.kind, *code, &fault),
        Behaviour::InsufficientQuota => with_retry_after(shared.kind.insufficient_quota(), &fault),
        Behaviour::Body { code, body } => {
            let json = [(header::CONTENT_TYPE, "application/json")];
            with_retry_after((status(*code), json, body.clone()).into_response(), &fault)
        }
        _ => {
            let fault = Arc::new(fault);
            let call = Call { kind: shared.kind, ticket, fault: Arc::clone(&fault), load: shared.faults.load() };
            request.extensions_mut().insert(call);
            let response = next.run(request).await;
            match fault.behaviour {
                Behaviour::Status { code, .. } => failed(shared.kind, code, &fault),
                _ => response,
            }
        }
    }
}

fn failed(kind: Kind, code: u16, fault: &Fault) -> Response {
    with_retry_after(kind.error(status(code)), fault)
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn with_retry_after(mut response: Response, fault: &Fault) -> Response {
    if let Some(seconds) = fault.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

async fn show_faults(State(shared): State<Arc<Shared>>) -> Json<Faults> {
    Json(shared.faults.get())
}

async fn replace_faults(State(shared): State<Arc<Shared>>, body: String) -> Response {
    let replaced = serde_json::from_str::<Faults>(&body)
        .map_err(|error| error.to_string())
        .and_then(|faults| shared.faults.set(faults).map_err(|error| error.to_string()));
    match replaced {
        Ok(()) => Json(shared.faults.get()).into_response(),
        Err(message) => answer(StatusCode::BAD_REQUEST, json!({"error": format!("faults unchanged: {message}")})),
    }
}

async fn show_requests(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!(shared.requests.list()))
}

async fn forget_requests(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.requests.clear();
    StatusCode::NO_CONTENT
}
