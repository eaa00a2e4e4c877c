//! Every answer that Parapet itself gives has a reason, and the reason gives its status, code and advice to the client.

use serde::Serialize;

/// Why Parapet answered itself, or replaced an answer. Exhaustive: a new local answer is a new variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    InvalidJson,
    InvalidRequest,
    InvalidApiKey,
    ContentBlocked,
    /// A message has a part that no guard is shown, and the policy lets nothing through unjudged.
    ContentNotJudged,
    /// The output guard replaced or cut the answer. Not an HTTP error.
    OutputBlocked,
    ModelNotAllowed,
    ModelNotFound,
    NotFound,
    MethodNotAllowed,
    RequestTooLarge,
    RateLimitExceeded,
    BudgetExceeded,
    GuardUnavailable,
    QuotaUnavailable,
    /// `Cache-Control: only-if-cached`, and it was not (RFC 9111 §5.2.1.7).
    NotCached,
    UpstreamError,
    UpstreamTimeout,
}

impl Reason {
    /// The HTTP status of an answer given for this reason.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::OutputBlocked => 200,
            Self::InvalidJson | Self::InvalidRequest => 400,
            Self::InvalidApiKey => 401,
            Self::ContentBlocked | Self::ContentNotJudged | Self::ModelNotAllowed => 403,
            Self::ModelNotFound | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTooLarge => 413,
            Self::RateLimitExceeded | Self::BudgetExceeded => 429,
            Self::UpstreamError => 502,
            Self::GuardUnavailable | Self::QuotaUnavailable => 503,
            Self::NotCached | Self::UpstreamTimeout => 504,
        }
    }

    /// The `code` in the error body, the record and the metric's label.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidRequest => "invalid_request",
            Self::InvalidApiKey => "invalid_api_key",
            Self::ContentBlocked => "content_blocked",
            Self::ContentNotJudged => "content_not_judged",
            Self::OutputBlocked => "output_blocked",
            Self::ModelNotAllowed => "model_not_allowed",
            Self::ModelNotFound => "model_not_found",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTooLarge => "request_too_large",
            Self::RateLimitExceeded => "rate_limit_exceeded",
            Self::BudgetExceeded => "budget_exceeded",
            Self::GuardUnavailable => "guard_unavailable",
            Self::QuotaUnavailable => "quota_unavailable",
            Self::NotCached => "not_cached",
            Self::UpstreamError => "upstream_error",
            Self::UpstreamTimeout => "upstream_timeout",
        }
    }

    /// OpenAI's `type` for the error body.
    const fn error_type(self) -> &'static str {
        match self {
            Self::InvalidApiKey => "authentication_error",
            Self::ModelNotAllowed => "permission_error",
            Self::RateLimitExceeded => "rate_limit_error",
            Self::BudgetExceeded => "insufficient_quota",
            Self::GuardUnavailable | Self::QuotaUnavailable | Self::UpstreamError | Self::UpstreamTimeout => {
                "server_error"
            }
            _ => "invalid_request_error",
        }
    }

    /// Whether official clients, which retry 409, 429 and 5xx by themselves, would retry in vain.
    #[must_use]
    pub const fn retry_is_pointless(self) -> bool {
        matches!(self, Self::ContentBlocked | Self::ContentNotJudged | Self::BudgetExceeded | Self::NotCached)
    }
}

/// A local answer before it has a wire form.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub reason: Reason,
    /// One line of plain English; nothing internal, no secret, no text of the request.
    pub message: String,
    /// The request's field at fault, as `messages[2].content`.
    pub param: Option<String>,
    /// The guard's categories, for [`Reason::ContentBlocked`].
    pub categories: Vec<String>,
    /// Seconds after which a new try may succeed.
    pub retry_after_s: Option<u64>,
    /// The same request would fail the same way again, whatever the reason usually says.
    pub is_lasting: bool,
    /// The method that the path takes, for [`Reason::MethodNotAllowed`] (RFC 9110 §15.5.6).
    pub allow: Option<&'static str>,
}

impl Refusal {
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            param: None,
            categories: Vec::new(),
            retry_after_s: None,
            is_lasting: false,
            allow: None,
        }
    }

    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// OpenAI's error shape.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Error<'a>,
        }
        #[derive(Serialize)]
        struct Error<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: &'a str,
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            categories: &'a [String],
        }
        serde_json::to_vec(&Body {
            error: Error {
                message: &self.message,
                r#type: self.reason.error_type(),
                param: self.param.as_deref(),
                code: self.reason.code(),
                categories: &self.categories,
            },
        })
        .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_openais_shape_and_names_the_field() {
        let refusal = Refusal::new(Reason::InvalidRequest, "content must be a string").at("messages[2].content");
        assert_eq!(
            String::from_utf8(refusal.body()).unwrap(),
            r#"{"error":{"message":"content must be a string","type":"invalid_request_error","param":"messages[2].content","code":"invalid_request"}}"#
        );
    }

    #[test]
    fn a_block_carries_its_categories() {
        let mut refusal = Refusal::new(Reason::ContentBlocked, "no");
        refusal.categories = vec!["S1".into(), "S9".into()];
        assert!(String::from_utf8(refusal.body()).unwrap().contains(r#""categories":["S1","S9"]"#));
    }
}
