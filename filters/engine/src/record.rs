//! The record: one JSON object per request, written by the gateway filter when the request ends, whatever the end
//! was, and read by the sidecar. It is the only write path out of Envoy, so it carries everything that quota, cache,
//! audit, metrics and LangSmith need, and each text once.
//!
//! All times are microseconds since the Unix epoch. Absent values are left out of the JSON.

mod line;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The version in every line; a reader refuses lines of a version it does not know.
pub const VERSION: u32 = 1;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// [`VERSION`] of the writer.
    pub v: u32,
    /// UUIDv7: the value of `x-parapet-trace-id` and the LangSmith root run's id.
    pub id: String,
    /// The request's head arrived.
    pub start_us: u64,
    /// The stream was over.
    pub end_us: u64,
    /// Which endpoint: `chat_completions`, `chat`, `models`, `feedback`, `health` or `unknown`.
    pub api: String,
    /// The answer's HTTP status as the client saw it; 0 when it saw none.
    pub status: u16,
    /// The code of [`crate::reason::Reason`] when Parapet itself gave the answer or replaced it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,

    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// [`crate::config::Config::revision`]: the settings that were in force.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// `x-session-id`, or `session_id` of `/chat`: the LangSmith thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// `x-feature`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<String>,
    /// `x-user-id` as a tag (an identity only where the listener trusts it).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_user: Option<String>,
    /// `x-request-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// `traceparent`, joined by the OpenTelemetry export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// `langsmith-trace`: the dotted order of the caller's own run, whose child ours becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub langsmith_parent: Option<String>,

    /// The model the client asked for (or the default), by its public name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    pub stream: bool,
    /// The messages as OpenAI chat messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Box<RawValue>>,
    /// The request's other parameters as a JSON object (`temperature`, `tools`, ...).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<Box<RawValue>>,

    /// What the client was given, one entry per choice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answered>,
    /// The first token reached the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What all attempts together cost, in billionths of a US dollar.
    pub cost_nanousd: u64,

    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_guard: Option<GuardRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_guard: Option<GuardRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaRecord>,
    /// The attempts at providers, in order; the last one gave the answer if any did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,

    /// The first provider of the model's chain was too busy to be asked.
    #[serde(skip_serializing_if = "is_false")]
    pub spilled: bool,
    /// What of the texts is in here: `hash` or `none` where the policy does not want all of them written down.
    #[serde(skip_serializing_if = "Content::is_full")]
    pub content: Content,
    /// BLAKE2b-256 of the messages and of the answers, in hexadecimal, where `content` is `hash`; what leaves the sidecar
    /// is an HMAC of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_digest: Option<String>,
    /// Redaction has replaced something.
    #[serde(skip_serializing_if = "is_false")]
    pub redacted: bool,
    /// The policy's sampling leaves this request out of the traces; quota, cache, audit and metrics count it all the same.
    #[serde(skip_serializing_if = "is_false")]
    pub unsampled: bool,

    /// The client left before the answer was whole.
    #[serde(skip_serializing_if = "is_false")]
    pub client_aborted: bool,
    /// The answer ended without a finish reason: cut off upstream. Never cached.
    #[serde(skip_serializing_if = "is_false")]
    pub truncated: bool,
}

/// What of the texts may be written down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    #[default]
    Full,
    /// Digests, by which equal texts are known again.
    Hash,
    None,
}

impl Content {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
    const fn is_full(&self) -> bool {
        matches!(self, Self::Full)
    }
}

/// One choice of the answer as the client saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answered {
    pub content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub refusal: String,
    /// OpenAI's `tool_calls`, merged from their fragments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// `stop`, `length`, `tool_calls`, `content_filter`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// A JSON text, as the model wrote it.
    pub arguments: String,
}

/// Token counts. `prompt` includes `cached`; `completion` includes `reasoning`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    pub prompt: u64,
    pub completion: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub cached: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub reasoning: u64,
    /// Counted by Parapet because the provider said nothing (a cut stream, a client that left).
    #[serde(skip_serializing_if = "is_false")]
    pub estimated: bool,
}

impl Usage {
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.prompt.saturating_add(self.completion)
    }
}

/// One side's guard over the whole request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardRecord {
    /// The policy's mode: `parallel`, `blocking`; `hold`, `async`, `full`.
    pub mode: String,
    /// `safe`, `unsafe`, `failed` (no usable verdict) or `pending` (the request ended first).
    pub verdict: String,
    /// What was done: `pass`, `block` or `flag`.
    pub action: String,
    /// P(unsafe), 0 to 1, where the guard gave log probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// `S1`, ...
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// The guard model.
    pub model: String,
    /// Calls made; 0 when the verdict was remembered.
    pub calls: u32,
    /// The first call went out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_us: Option<u64>,
    /// The last verdict came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_us: Option<u64>,
    /// BLAKE2b-256 of what was judged, in hexadecimal, where the verdict was not simply safe; the audit log holds only an
    /// HMAC of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_digest: Option<String>,
    /// What was judged, at most 8,000 bytes of it, where the verdict was not simply safe and the policy says
    /// `audit: {text: true}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheRecord {
    /// `hit`, `miss` or `bypass`.
    pub outcome: String,
    /// The exact key, in hexadecimal. Present when an answer was looked up or may be stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The sidecar may store this answer under `key` for so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_s: Option<u64>,
    /// Seconds since the entry was made, on a hit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_s: Option<u64>,
}

/// Tokens and requests that the local bucket gave and what was used in the end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct QuotaRecord {
    pub reserved_tokens: u64,
    pub settled_tokens: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempt {
    /// `vllm`, `openai`: the provider's name in the configuration.
    pub provider: String,
    /// The model's name at that provider.
    pub model: String,
    pub start_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_us: Option<u64>,
    /// The provider's status; 0 when it gave none.
    pub status: u16,
    /// `ok`; before the first token `status`, `no_first_token`, `error_event`, `empty`, `reset` or, where another was
    /// faster, `lost`; after it `cut`.
    pub outcome: String,
    /// What the provider says it used; of one that was cut off the prompt, estimated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What the provider charges for `usage`, in billionths of a US dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_nanousd: Option<u64>,
    /// Of `cost_nanousd`, what the completion cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_nanousd: Option<u64>,
}

const fn is_false(value: &bool) -> bool {
    !*value
}

const fn is_zero(value: &u64) -> bool {
    *value == 0
}
