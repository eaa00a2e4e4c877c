//! One OTLP/HTTP request, and what its answer means (OTLP specification 1.x, "OTLP/HTTP Response").

use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message as _;
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};

use super::config::Config;
use super::proto::ExportTraceServiceResponse;
use crate::langsmith::client::install_crypto;
use crate::langsmith::retry;

/// An answer is not read beyond this.
const MAX_RESPONSE: usize = 64 << 10;
/// So much of it is kept, in the dead-letter file.
const MAX_MESSAGE: usize = 1024;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With how many spans the collector said it refused, and why.
    Accepted { rejected: u64, message: String },
    /// 413.
    TooLarge,
    /// Something in the body is wrong, and will be wrong again.
    Rejected { status: u16, response: String },
    /// 401, 403, 404, 405, 407 or a redirect: an operator has to put a key or an address right.
    Misconfigured { status: u16 },
    /// 429, 502, 503, 504 or no answer: as often as it takes.
    Unavailable { why: String, after: Option<Duration> },
    /// 408, 500 and the like, which the specification would not repeat: some collectors mean by it that they are
    /// unwell, others that the body broke them.
    Failed { status: u16 },
}

impl Outcome {
    /// For metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Accepted { rejected: 0, .. } => "accepted",
            Self::Accepted { .. } => "partial",
            Self::TooLarge => "too_large",
            Self::Rejected { .. } => "rejected",
            Self::Misconfigured { .. } => "misconfigured",
            Self::Unavailable { .. } => "unavailable",
            Self::Failed { .. } => "failed",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the certificates in {path} (OTEL_EXPORTER_OTLP_CERTIFICATE) cannot be read: {why}")]
    Certificate { path: String, why: String },
    #[error(transparent)]
    Http(#[from] reqwest::Error),
}

#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    config: Config,
}

impl Client {
    pub fn new(config: Config) -> Result<Self, ClientError> {
        install_crypto();
        let mut headers = config.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if config.gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("OTel-OTLP-Exporter-Parapet/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A redirect would turn the POST into a GET, or carry the key elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .timeout(config.timeout);
        if let Some(path) = &config.certificate {
            let unreadable = |why: String| ClientError::Certificate { path: path.clone(), why };
            let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unreadable(error.to_string()))?;
            builder = builder.tls_certs_merge(certificates);
        }
        Ok(Self { http: builder.build()?, config })
    }

    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The body of a request: compressed where that is configured.
    pub fn encode(&self, request: &impl prost::Message) -> std::io::Result<Vec<u8>> {
        let plain = request.encode_to_vec();
        if !self.config.gzip {
            return Ok(plain);
        }
        let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
        encoder.write_all(&plain)?;
        encoder.finish()
    }

    pub async fn post(&self, body: bytes::Bytes) -> Outcome {
        let request = self.http.post(self.config.endpoint.clone()).body(body);
        match request.send().await {
            Ok(response) => classify(response).await,
            Err(error) => Outcome::Unavailable { why: plain(&error), after: None },
        }
    }
}

async fn classify(response: Response) -> Outcome {
    let status = response.status().as_u16();
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(retry::retry_after);
    match status {
        200..=299 => accepted(&start_of(response).await),
        413 => Outcome::TooLarge,
        401 | 403 | 404 | 405 | 407 | 300..=399 => Outcome::Misconfigured { status },
        429 | 502 | 503 | 504 => Outcome::Unavailable { why: format!("status {status}"), after },
        408 | 500 | 505..=599 => Outcome::Failed { status },
        _ => Outcome::Rejected { status, response: text(&start_of(response).await) },
    }
}

/// An answer that is no OTLP message (a plain `OK`, an empty body) accepts everything.
fn accepted(body: &[u8]) -> Outcome {
    let partial = ExportTraceServiceResponse::decode(body).ok().and_then(|answer| answer.partial_success);
    let partial = partial.unwrap_or_default();
    Outcome::Accepted {
        rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
        message: text(partial.error_message.as_bytes()),
    }
}

async fn start_of(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < MAX_RESPONSE {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            // What matters is the status, which is there.
            Ok(None) | Err(_) => break,
        }
    }
    body.truncate(MAX_RESPONSE);
    body
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body.get(..MAX_MESSAGE).unwrap_or(body)).into_owned()
}

/// The error's innermost cause: reqwest's own text repeats the address and says little.
fn plain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
