//! One request to LangSmith, and what its answer means for the caller.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::config::Config;
use super::multipart;
use super::retry;
use super::run::Run;

/// What became of a request. Whether to try again is decided here alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    /// 409: at least one of the runs is there already.
    Duplicate,
    /// 413.
    TooLarge,
    /// 400, 422 and the like: something in the body is wrong, and will be wrong again.
    Rejected {
        status: u16,
        response: String,
    },
    /// 404 for a single item: what it speaks of is not there, perhaps not yet.
    NotFound,
    /// 401, 403, a redirect or an unknown path: an operator has to put a key or an address right.
    Misconfigured {
        status: u16,
    },
    /// No answer, 408, 425, 429 or 5xx.
    Retry {
        why: String,
        after: Option<Duration>,
    },
}

/// How much one upload may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub runs: usize,
    pub bytes: usize,
}

impl Default for Limits {
    /// What LangSmith's SDK falls back to.
    fn default() -> Self {
        Self { runs: 200, bytes: 20_971_520 }
    }
}

#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    endpoint: String,
    /// `/runs/multipart` answered 404: this server only has `/runs/batch`.
    batch_only: AtomicBool,
}

impl Client {
    pub fn new(config: &Config) -> reqwest::Result<Self> {
        const CONNECT: Duration = Duration::from_secs(5);
        const WHOLE: Duration = Duration::from_secs(60);
        install_crypto();
        let mut headers = HeaderMap::new();
        if let Some(key) = &config.api_key
            && let Ok(mut value) = HeaderValue::from_str(key.expose())
        {
            value.set_sensitive(true);
            headers.insert("x-api-key", value);
        }
        if let Some(value) = config.workspace_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
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
        Ok(Self { http, endpoint: config.endpoint.clone(), batch_only: AtomicBool::new(false) })
    }

    /// Asks once what the server takes; the defaults when it does not say.
    pub async fn limits(&self) -> Limits {
        #[derive(Deserialize)]
        struct Info {
            batch_ingest_config: Option<Ingest>,
        }
        #[derive(Deserialize)]
        struct Ingest {
            use_multipart_endpoint: Option<bool>,
            size_limit: Option<usize>,
            size_limit_bytes: Option<usize>,
        }
        let mut limits = Limits::default();
        let answer = self.http.get(format!("{}/info", self.endpoint)).timeout(Duration::from_secs(5)).send().await;
        let info = match answer.and_then(Response::error_for_status) {
            Ok(answer) => answer.json::<Info>().await.ok().and_then(|info| info.batch_ingest_config),
            Err(error) => {
                tracing::warn!("LangSmith's /info gave no answer ({}); its usual limits are assumed", plain(&error));
                None
            }
        };
        if let Some(info) = info {
            limits.runs = info.size_limit.unwrap_or(limits.runs).clamp(1, 10_000);
            limits.bytes = info.size_limit_bytes.unwrap_or(limits.bytes).clamp(64 * 1024, 64 << 20);
            self.batch_only.store(info.use_multipart_endpoint == Some(false), Ordering::Relaxed);
        }
        limits
    }

    /// Uploads finished runs.
    pub async fn post_runs(&self, runs: &[Run]) -> Outcome {
        if !self.batch_only.load(Ordering::Relaxed) {
            let form = match multipart::encode(runs) {
                Ok(form) => form,
                Err(error) => return unencodable(&error),
            };
            match self.post("/runs/multipart", &form.content_type, form.body).await {
                Outcome::NotFound => {
                    tracing::warn!("this LangSmith has no /runs/multipart; /runs/batch is used");
                    self.batch_only.store(true, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
        match multipart::encode_batch(runs) {
            Ok(body) => match self.post("/runs/batch", "application/json", body).await {
                Outcome::NotFound => Outcome::Misconfigured { status: 404 },
                outcome => outcome,
            },
            Err(error) => unencodable(&error),
        }
    }

    /// Sends one feedback.
    pub async fn post_feedback(&self, body: Vec<u8>) -> Outcome {
        self.post("/feedback", "application/json", body).await
    }

    async fn post(&self, path: &str, content_type: &str, body: Vec<u8>) -> Outcome {
        let request = self.http.post(format!("{}{path}", self.endpoint)).header(CONTENT_TYPE, content_type).body(body);
        match request.send().await {
            Ok(response) => classify(response).await,
            Err(error) => Outcome::Retry { why: plain(&error), after: None },
        }
    }
}

async fn classify(response: Response) -> Outcome {
    let status = response.status();
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(retry::retry_after);
    match status.as_u16() {
        200..=299 => Outcome::Accepted,
        409 => Outcome::Duplicate,
        413 => Outcome::TooLarge,
        404 => Outcome::NotFound,
        408 | 425 | 429 | 500..=599 => Outcome::Retry { why: format!("status {}", status.as_u16()), after },
        401 | 403 | 405 | 407 | 300..=399 => Outcome::Misconfigured { status: status.as_u16() },
        _ => Outcome::Rejected { status: status.as_u16(), response: start_of(response, status).await },
    }
}

/// The start of an error's body, for the dead-letter file; it may echo content, so no log ever shows it.
async fn start_of(mut response: Response, status: StatusCode) -> String {
    const MAX: usize = 1024;
    let mut body = Vec::new();
    while body.len() < MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(_) => return status.to_string(),
        }
    }
    body.truncate(MAX);
    String::from_utf8_lossy(&body).into_owned()
}

fn unencodable(error: &serde_json::Error) -> Outcome {
    Outcome::Rejected { status: 0, response: format!("the run cannot be written as JSON: {error}") }
}

/// The error's innermost cause: reqwest's own text repeats the address and says little.
fn plain(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// reqwest is built without a TLS provider of its own; `ring` is the process's.
pub fn install_crypto() {
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
