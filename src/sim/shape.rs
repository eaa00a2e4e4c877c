//! What tells the servers apart before any work is done: error shapes, keys, usual headers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::{
    Json,
    http::{HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::key::ApiKey;

pub(super) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The server a simulator stands in for; Llama Guard is a vLLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Vllm,
    OpenAi,
    LangSmith,
}

impl Kind {
    /// Whether faults without a `path` hit this route.
    pub(super) fn works(self, method: &Method, path: &str) -> bool {
        match self {
            Self::Vllm | Self::OpenAi => matches!(path, "/v1/chat/completions" | "/v1/completions"),
            Self::LangSmith => method != Method::GET && (path.starts_with("/runs") || path.starts_with("/feedback")),
        }
    }

    /// The answer to a caller without the right key. vLLM guards only some prefixes; LangSmith's `/info` is open.
    pub(super) fn refuse(self, parts: &Parts, key: Option<&ApiKey>) -> Option<Response> {
        let key = key?;
        let path = parts.uri.path();
        let guarded = ["/v1", "/v2", "/inference", "/cohere"].iter().any(|prefix| path.starts_with(prefix));
        match self {
            Self::Vllm if guarded && !key.is_bearer_of(&parts.headers) => {
                Some(answer(StatusCode::UNAUTHORIZED, json!({"error": "Unauthorized"})))
            }
            Self::OpenAi if guarded && !key.is_bearer_of(&parts.headers) => Some(openai_error(
                StatusCode::UNAUTHORIZED,
                "Incorrect API key provided. You can find your API key at https://platform.openai.com/account/api-keys.",
                "invalid_request_error",
                None,
                Some("invalid_api_key"),
            ).into_response()),
            Self::LangSmith if path != "/info" && !key.is_header(&parts.headers, &X_API_KEY) => {
                Some(answer(StatusCode::FORBIDDEN, json!({"error": "Forbidden"})))
            }
            _ => None,
        }
    }

    /// An error of this status in the server's own words.
    pub(super) fn error(self, status: StatusCode) -> Response {
        let reason = status.canonical_reason().unwrap_or("Error");
        match self {
            Self::Vllm => answer(status, vllm_body(status, vllm_message(status), vllm_type(status), None)),
            Self::OpenAi => openai_status(status),
            Self::LangSmith => answer(status, json!({"detail": reason})),
        }
    }

    pub(super) fn insufficient_quota(self) -> Response {
        openai_error(
            StatusCode::TOO_MANY_REQUESTS,
            "You exceeded your current quota, please check your plan and billing details.",
            "insufficient_quota",
            None,
            Some("insufficient_quota"),
        )
        .into_response()
    }

    /// The JSON of an error event inside a stream that began with 200.
    pub(super) fn error_event(self) -> Value {
        match self {
            Self::OpenAi => json!({"error": {
                "message": "The server had an error while processing your request. Sorry about that!",
                "type": "server_error", "param": null, "code": null,
            }}),
            Self::Vllm | Self::LangSmith => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                vllm_body(status, vllm_message(status), "InternalServerError", None)
            }
        }
    }

    pub(super) fn not_found(self, method: &Method, path: &str) -> Response {
        match self {
            Self::OpenAi => {
                let message = format!("Invalid URL ({method} {path})");
                openai_error(StatusCode::NOT_FOUND, &message, "invalid_request_error", None, None).into_response()
            }
            Self::Vllm | Self::LangSmith => answer(StatusCode::NOT_FOUND, json!({"detail": "Not Found"})),
        }
    }

    pub(super) fn method_not_allowed(self, method: &Method, path: &str) -> Response {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        match self {
            Self::OpenAi => {
                let message = format!("Not allowed to {method} on {path}.");
                openai_error(status, &message, "invalid_request_error", None, Some("method_not_supported"))
                    .into_response()
            }
            Self::Vllm | Self::LangSmith => answer(status, json!({"detail": "Method Not Allowed"})),
        }
    }

    /// The headers every answer of this server carries.
    pub(super) fn decorate(self, response: &mut Response, took: Duration) {
        let headers = response.headers_mut();
        match self {
            Self::Vllm => {
                headers.insert(header::SERVER, HeaderValue::from_static("uvicorn"));
            }
            Self::OpenAi => {
                const FIXED: [(&str, &str); 9] = [
                    ("openai-organization", "org-simulated"),
                    ("openai-version", "2020-10-01"),
                    ("x-ratelimit-limit-requests", "10000"),
                    ("x-ratelimit-limit-tokens", "200000"),
                    ("x-ratelimit-remaining-requests", "9999"),
                    ("x-ratelimit-remaining-tokens", "199990"),
                    ("x-ratelimit-reset-requests", "6ms"),
                    ("x-ratelimit-reset-tokens", "3ms"),
                    ("server", "cloudflare"),
                ];
                for (name, value) in FIXED {
                    headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
                }
                let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                headers.insert(HeaderName::from_static("openai-processing-ms"), HeaderValue::from(millis));
                if let Ok(id) = HeaderValue::from_str(&format!("req_{}", unique())) {
                    headers.insert(HeaderName::from_static("x-request-id"), id);
                }
            }
            Self::LangSmith => {}
        }
    }
}

/// An answer instead of the work.
pub(super) struct Refused(Box<Response>);

impl From<Response> for Refused {
    fn from(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

pub(super) fn answer(status: StatusCode, body: Value) -> Response {
    (status, Json(body)).into_response()
}

/// vLLM's error: `code` is the status as a number.
pub(super) fn vllm_error(status: StatusCode, message: &str, kind: &str, param: Option<&str>) -> Refused {
    answer(status, vllm_body(status, message, kind, param)).into()
}

fn vllm_body(status: StatusCode, message: &str, kind: &str, param: Option<&str>) -> Value {
    json!({"error": {"message": message, "type": kind, "param": param, "code": status.as_u16()}})
}

fn vllm_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        404 => "NotFoundError",
        400..=499 => "BadRequestError",
        503 => "Service Unavailable",
        _ => "InternalServerError",
    }
}

fn vllm_message(status: StatusCode) -> &'static str {
    match status.as_u16() {
        503 => "The engine is currently busy. Please try again later.",
        500..=599 => "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        _ => status.canonical_reason().unwrap_or("Error"),
    }
}

/// OpenAI's error: `code` is a string or null.
pub(super) fn openai_error(
    status: StatusCode,
    message: &str,
    kind: &str,
    param: Option<&str>,
    code: Option<&str>,
) -> Refused {
    answer(status, json!({"error": {"message": message, "type": kind, "param": param, "code": code}})).into()
}

fn openai_status(status: StatusCode) -> Response {
    let invalid = "invalid_request_error";
    let (message, kind, code) = match status.as_u16() {
        401 => ("Incorrect API key provided.", invalid, Some("invalid_api_key")),
        429 => ("Rate limit reached for requests.", "requests", Some("rate_limit_exceeded")),
        500..=599 => ("The server had an error while processing your request. Sorry about that!", "server_error", None),
        _ => (status.canonical_reason().unwrap_or("Error"), invalid, None),
    };
    openai_error(status, message, kind, None, code).into_response()
}

/// 32 hexadecimal digits, never twice.
pub(super) fn unique() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// Seconds since the Unix epoch.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
