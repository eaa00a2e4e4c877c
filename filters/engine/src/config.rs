//! The configuration of both filters: what operators write in `envoy.yaml`, validated once at load.
//!
//! Parsing refuses unknown keys, impossible values and references to what is not there, with the path of the key; code
//! that holds a [`Config`] never checks again.

use core::fmt;
use std::collections::BTreeMap;

use self::item::{Item, Mistake, Read as _};
use crate::guard::Category;
use crate::guard::dialect::Dialect;
use crate::identity::{Index, KeyDigest, Principal};
use crate::record::Content;
use crate::redact::Rules;

/// A mistake in the configuration: where, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The key, as `policies.standard.input_guard.mode`; `.` for the whole.
    pub path: String,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl core::error::Error for ConfigError {}

#[derive(Debug, Clone, Default)]
pub struct Config {
    pub max_request_bytes: usize,
    pub providers: Vec<Provider>,
    /// The first is the default.
    pub models: Vec<Model>,
    pub first_token: FirstToken,
    pub guard: Option<GuardModel>,
    pub sidecar: Option<Sidecar>,
    pub keys: Vec<Key>,
    pub key_index: Index,
    pub policies: BTreeMap<String, Policy>,
    /// A word for all of it but the keys: 16 hexadecimal digits.
    pub revision: String,
}

/// A server of models. Its key is in the environment, never here.
#[derive(Debug, Clone, Default)]
pub struct Provider {
    pub name: String,
    /// The Envoy cluster of its hosts.
    pub cluster: String,
    pub authority: String,
    pub base_path: String,
    pub api_key_env: Option<String>,
    pub price: Price,
}

/// US dollars per million tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Price {
    pub input: f64,
    /// Of the input, what the provider took from its prefix cache.
    pub cached: Option<f64>,
    pub output: f64,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The public name.
    pub name: String,
    pub aliases: Vec<String>,
    /// The Envoy cluster whose priorities are the chain.
    pub cluster: String,
    /// The Envoy cluster whose priorities are the chain without its first.
    pub spill_cluster: Option<String>,
    pub chain: Vec<Link>,
    pub affinity: Affinity,
}

/// Which requests go to the same replica of a provider.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Each goes where there is room.
    #[default]
    None,
    /// Those with the same opening, which the replica's prefix cache then holds.
    Prefix,
    /// Those of the same session; without one, as [`Affinity::Prefix`].
    Session,
}

/// One provider of a model's chain.
#[derive(Debug, Clone, Default)]
pub struct Link {
    pub provider: String,
    /// The model's name there.
    pub model: String,
}

/// How long an attempt may stay without its first token, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct FirstToken {
    pub stream_ms: u64,
    /// A JSON answer comes whole: this and [`FirstToken::per_token_ms`] for every token that may be generated.
    pub json_ms: u64,
    pub per_token_ms: u64,
    /// From a request's head to a stream's first token; to the end of a JSON answer, where the policy says nothing else.
    pub deadline_ms: u64,
    /// Between these the limit of streams follows the model, from [`FirstToken::stream_ms`] on; see [`crate::latency`].
    pub floor_ms: u64,
    pub ceiling_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub struct GuardModel {
    pub cluster: String,
    pub authority: String,
    pub base_path: String,
    pub model: String,
    pub dialect: Dialect,
    pub api_key_env: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Sidecar {
    pub cluster: String,
    pub authority: String,
    pub timeout_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Key {
    pub sha256: KeyDigest,
    pub tenant: String,
    pub user: String,
    pub policy: String,
}

#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Public names of the models its callers may use; absent means all.
    pub models: Option<Vec<String>>,
    pub input_guard: Option<InputGuard>,
    pub output_guard: Option<OutputGuard>,
    pub cache: Option<Cache>,
    pub limits: Limits,
    /// Without a first token for so long, the next provider is asked too; absent: not before the first-token limit.
    pub hedge_after_ms: Option<u64>,
    /// Hedges for every hundred requests.
    pub hedge_budget_percent: u32,
    /// From a request's head to the end of its answer, streams too.
    pub deadline_ms: Option<u64>,
    /// From which load of the first provider on a request goes to the rest of its chain.
    pub spill: Option<Spill>,
    pub trace: Trace,
    pub audit: Audit,
}

/// Either is enough. See [`crate::admission`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spill {
    /// Requests in the queue of the replica with the shortest one.
    pub waiting: Option<u64>,
    /// Of the KV cache of the replica with the emptiest one, from 0 to 1.
    pub kv_cache: Option<f64>,
}

/// What the audit log holds beside verdicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Audit {
    /// What was judged, where it was not simply let through.
    pub text: bool,
}

/// What is written down of its callers' requests, and of how many.
#[derive(Debug, Clone)]
pub struct Trace {
    pub content: Content,
    /// The share of requests that are traced, 0 to 1.
    pub sampling: f64,
    pub redact: Rules,
}

impl Default for Trace {
    fn default() -> Self {
        Self { content: Content::Full, sampling: 1.0, redact: Rules::default() }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InputMode {
    /// The model starts at once; its first byte waits for the verdict.
    Parallel,
    /// The model starts after the verdict.
    Blocking,
    #[default]
    Off,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutputMode {
    /// Nothing unjudged leaves.
    Hold,
    /// Tokens flow; the stream is cut at the verdict.
    Async,
    /// The whole answer is judged once, then released.
    Full,
    #[default]
    Off,
}

/// What a guard call without a usable verdict means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Refuse: 503 `guard_unavailable`.
    #[default]
    Closed,
    /// Let through, flagged in the record.
    Open,
}

#[derive(Debug, Clone, Default)]
pub struct InputGuard {
    pub mode: InputMode,
    pub timeout_ms: u64,
    pub on_failure: OnFailure,
    /// P(unsafe) from which a text is unsafe.
    pub threshold: f64,
    pub categories: Categories,
    /// Images, audio, files: what no guard is shown.
    pub media: Media,
}

/// What becomes of a request with parts that no guard is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Media {
    /// 403 `content_not_judged`.
    #[default]
    Refuse,
    /// Let through, marked and audited.
    Flag,
}

#[derive(Debug, Clone, Default)]
pub struct OutputGuard {
    pub mode: OutputMode,
    pub timeout_ms: u64,
    pub on_failure: OnFailure,
    pub threshold: f64,
    pub categories: Categories,
    /// Sizes of the first, second, ... window in tokens; the last is repeated.
    pub window_tokens: Vec<u32>,
}

/// What a category does that the guard names. Listed nowhere: `block`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Categories {
    /// Let through, marked and audited.
    pub flag: Vec<Category>,
    pub ignore: Vec<Category>,
}

#[derive(Debug, Clone, Default)]
pub struct Cache {
    pub ttl_s: u64,
    /// Answers sampled above this temperature are not cached.
    pub max_temperature: f64,
}

/// Per user. Absent means unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
}

impl Config {
    /// Parses and validates what Envoy hands a filter as its `configuration`: a JSON text, or an encoded
    /// `google.protobuf.Struct` (measured on 1.40: an inline `Struct` arrives encoded).
    ///
    /// # Errors
    /// The first mistake found, with the path of its key.
    pub fn parse(configuration: &[u8]) -> Result<Self, ConfigError> {
        let whole = |message: String| ConfigError { path: ".".to_owned(), message };
        let node = if configuration.trim_ascii_start().starts_with(b"{") {
            serde_json::from_slice(configuration).map_err(|error| whole(error.to_string()))?
        } else {
            structure::node(configuration).ok_or_else(|| {
                whole("expected a google.protobuf.Struct, or a StringValue with JSON in it".to_owned())
            })?
        };
        let mistake = Mistake::default();
        let config = Self::read(&Item::root(&node, &mistake));
        let mut config = mistake.into_result(config)?;
        config.revision = revision::revision(&node);
        config.key_index = Index::of(&config.keys);
        validate::config(&config)?;
        Ok(config)
    }

    /// The model by public name or alias.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.name == name || model.aliases.iter().any(|alias| alias == name))
    }

    #[must_use]
    pub fn provider(&self, name: &str) -> Option<&Provider> {
        self.providers.iter().find(|provider| provider.name == name)
    }

    #[must_use]
    pub fn policy(&self, principal: &Principal) -> Option<&Policy> {
        self.policies.get(&principal.policy)
    }

    /// Somebody wants to know how busy providers are.
    #[must_use]
    pub fn watches_load(&self) -> bool {
        self.sidecar.is_some() && self.policies.values().any(|policy| policy.spill.is_some())
    }

    /// The guard's; it matters only where a guard is asked.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.guard.as_ref().map(|guard| guard.dialect).unwrap_or_default()
    }

    /// The environment variables that hold keys of providers and of the guard.
    pub fn key_variables(&self) -> impl Iterator<Item = &str> {
        let guard = self.guard.iter().filter_map(|guard| guard.api_key_env.as_deref());
        self.providers.iter().filter_map(|provider| provider.api_key_env.as_deref()).chain(guard)
    }
}

impl Policy {
    #[must_use]
    pub fn allows(&self, model: &Model) -> bool {
        self.models.as_ref().is_none_or(|names| names.contains(&model.name))
    }
}

mod item;
mod node;
mod read;
mod revision;
mod structure;
mod validate;

#[cfg(test)]
mod tests;
