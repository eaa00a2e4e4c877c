//! What an answer means. Whether to try again is decided here alone.

use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Response, StatusCode};

use super::super::retry;

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

/// The answer where it is a success.
pub(super) async fn classify(response: Response) -> Result<Response, Outcome> {
    let status = response.status();
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(retry::retry_after);
    Err(match status.as_u16() {
        200..=299 => return Ok(response),
        409 => Outcome::Duplicate,
        413 => Outcome::TooLarge,
        404 => Outcome::NotFound,
        408 | 425 | 429 | 500..=599 => Outcome::Retry { why: format!("status {}", status.as_u16()), after },
        401 | 403 | 405 | 407 | 300..=399 => Outcome::Misconfigured { status: status.as_u16() },
        _ => Outcome::Rejected { status: status.as_u16(), response: start_of(response, status).await },
    })
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

/// The error's innermost cause: reqwest's own text repeats the address and says little.
pub(super) fn plain(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
