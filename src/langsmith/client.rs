//! One request to LangSmith, and what its answer means for the caller.

mod body;
mod outcome;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::config::{Config, Destination};
use super::info::{Compression, Info, Limits, Negotiated};
use super::multipart;
use super::run::Run;
use body::Body;
pub use outcome::Outcome;
use outcome::{classify, plain};

/// A content type, and the runs in it.
type Encode = fn(&[Run]) -> Result<(String, Vec<u8>), serde_json::Error>;

#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    endpoint: String,
    project: String,
    batch_size: Option<usize>,
    compress: bool,
    negotiated: Mutex<Option<Negotiated>>,
    /// The project's UUID, once it is known.
    project_id: Mutex<Option<String>>,
}

/// What is known about the project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Project {
    Known(String),
    /// Its first run makes it.
    NotThere,
    /// The server does not say, and will not say a moment later.
    Unsaid,
    Failed(Outcome),
}

impl Client {
    pub fn new(config: &Config, destination: &Destination) -> reqwest::Result<Self> {
        const CONNECT: Duration = Duration::from_secs(5);
        const WHOLE: Duration = Duration::from_secs(60);
        install_crypto();
        let mut headers = HeaderMap::new();
        if let Some(key) = &destination.api_key
            && let Ok(mut value) = HeaderValue::from_str(key.expose())
        {
            value.set_sensitive(true);
            headers.insert("x-api-key", value);
        }
        if let Some(value) = destination.workspace_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert("x-tenant-id", value);
        }
        headers.insert("accept", HeaderValue::from_static("application/json"));
        let http = reqwest::Client::builder()
            .user_agent(concat!("parapet/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A redirect would turn the POST into a GET, or carry the key elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            .build()?;
        Ok(Self {
            http,
            endpoint: destination.endpoint.clone(),
            project: destination.project.clone(),
            batch_size: config.batch_size,
            compress: config.compress,
            negotiated: Mutex::new(None),
            project_id: Mutex::new(None),
        })
    }

    /// How much a request may hold: what the server said, of late.
    pub async fn limits(&self) -> Limits {
        let mut limits = self.negotiate().await.limits;
        limits.runs = self.batch_size.unwrap_or(limits.runs);
        limits
    }

    async fn negotiate(&self) -> Negotiated {
        let known = *lock(&self.negotiated);
        if let Some(known) = known.filter(|known| !known.is_stale()) {
            return known;
        }
        let answer = self.http.get(format!("{}/info", self.endpoint)).timeout(Duration::from_secs(5)).send().await;
        let info = match answer.and_then(Response::error_for_status) {
            Ok(answer) => answer.json::<Info>().await,
            Err(error) => Err(error),
        };
        let learnt = match info {
            Ok(info) => Negotiated::learnt(info),
            Err(error) => {
                if known.is_none() {
                    tracing::warn!(
                        "LangSmith's /info gave no answer ({}); its usual limits are assumed",
                        plain(&error)
                    );
                }
                let assumed = Negotiated::assumed();
                // What it said last is a better guess than what is usual; no compression is safe with all.
                let limits = known.map_or(assumed.limits, |known| known.limits);
                Negotiated { limits, batch_only: known.is_some_and(|known| known.batch_only), ..assumed }
            }
        };
        *lock(&self.negotiated) = Some(learnt);
        learnt
    }

    fn correct(&self, correct: impl FnOnce(&mut Negotiated)) {
        if let Some(negotiated) = lock(&self.negotiated).as_mut() {
            correct(negotiated);
        }
    }

    /// Uploads finished runs.
    pub async fn post_runs(&self, runs: &Arc<[Run]>) -> Outcome {
        let negotiated = self.negotiate().await;
        if !negotiated.batch_only {
            let outcome = self.post_encoded("/runs/multipart", negotiated, runs, |runs| {
                multipart::encode(runs).map(|form| (form.content_type, form.body))
            });
            match outcome.await {
                Outcome::NotFound => {
                    tracing::warn!("this LangSmith has no /runs/multipart; /runs/batch is used");
                    self.correct(|negotiated| negotiated.batch_only = true);
                }
                outcome => return outcome,
            }
        }
        let outcome = self.post_encoded("/runs/batch", negotiated, runs, |runs| {
            multipart::encode_batch(runs).map(|body| ("application/json".to_owned(), body))
        });
        match outcome.await {
            Outcome::NotFound => {
                // The address is wrong, or its server is being replaced: neither says anything about multipart.
                self.correct(|negotiated| negotiated.batch_only = false);
                Outcome::Misconfigured { status: 404 }
            }
            outcome => outcome,
        }
    }

    async fn post_encoded(&self, path: &str, negotiated: Negotiated, runs: &Arc<[Run]>, encode: Encode) -> Outcome {
        let mut compression = if self.compress { negotiated.compression } else { Compression::None };
        loop {
            let runs = Arc::clone(runs);
            // Megabytes may have to be written and compressed: not on a thread that serves requests.
            let body = tokio::task::spawn_blocking(move || {
                let (content_type, body) = encode(&runs)?;
                Body::new(content_type, body, compression).map_err(serde_json::Error::io)
            });
            let outcome = match body.await {
                Ok(Ok(body)) => self.post(path, body).await,
                Ok(Err(error)) => {
                    Outcome::Rejected { status: 0, response: format!("the body cannot be made: {error}") }
                }
                Err(_) => Outcome::Retry { why: "the process ends".to_owned(), after: None },
            };
            // Its /info promised more than it holds, or it was replaced by another meanwhile.
            if matches!(outcome, Outcome::Rejected { status: 415, .. }) && compression != Compression::None {
                tracing::warn!("LangSmith does not take {compression:?} after all; bodies go uncompressed");
                compression = Compression::None;
                self.correct(|negotiated| negotiated.compression = compression);
                continue;
            }
            return outcome;
        }
    }

    /// Sends one feedback.
    pub async fn post_feedback(&self, body: Vec<u8>) -> Outcome {
        self.post("/feedback", Body::plain("application/json".to_owned(), body)).await
    }

    /// The UUID of the project that the runs are in. Asked until it is known, then remembered.
    pub async fn project(&self) -> Project {
        #[derive(Deserialize)]
        struct Session {
            id: String,
            name: String,
        }
        const QUICK: Duration = Duration::from_secs(10);
        if let Some(id) = lock(&self.project_id).clone() {
            return Project::Known(id);
        }
        let query = [("name", self.project.as_str()), ("limit", "1")];
        let Ok(url) = Url::parse_with_params(&format!("{}/sessions", self.endpoint), query) else {
            return Project::Unsaid;
        };
        let response = match self.http.get(url).timeout(QUICK).send().await {
            Ok(response) => response,
            Err(error) => return Project::Failed(Outcome::Retry { why: plain(&error), after: None }),
        };
        match classify(response).await {
            Ok(response) => match response.json::<Vec<Session>>().await {
                Ok(sessions) => match sessions.into_iter().find(|session| session.name == self.project) {
                    Some(session) => {
                        *lock(&self.project_id) = Some(session.id.clone());
                        Project::Known(session.id)
                    }
                    None => Project::NotThere,
                },
                Err(_) => Project::Unsaid,
            },
            Err(outcome @ Outcome::Retry { .. }) => Project::Failed(outcome),
            // A key that may write but not read, or a server without this path.
            Err(_) => Project::Unsaid,
        }
    }

    async fn post(&self, path: &str, body: Body) -> Outcome {
        let request = self.http.post(format!("{}{path}", self.endpoint)).header(CONTENT_TYPE, body.content_type);
        match request.headers(body.headers).body(body.bytes).send().await {
            Ok(response) => match classify(response).await {
                // Whoever dies within its answer may not have kept what it was given; a repeated run is known by its id.
                Ok(response) => match drain(response).await {
                    Ok(()) => Outcome::Accepted,
                    Err(error) => Outcome::Retry { why: plain(&error), after: None },
                },
                Err(outcome) => outcome,
            },
            Err(error) => Outcome::Retry { why: plain(&error), after: None },
        }
    }
}

/// Reads the answer to its end and keeps nothing of it; the client's own limit bounds the time.
async fn drain(mut response: Response) -> reqwest::Result<()> {
    while response.chunk().await?.is_some() {}
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// reqwest is built without a TLS provider of its own; `ring` is the process's.
pub fn install_crypto() {
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
