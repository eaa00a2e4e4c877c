//! The configuration of both filters: what operators write in `envoy.yaml`, validated once at load.
//!
//! Parsing refuses unknown keys, impossible values and references to what is not there, with the path of the key; code
//! that holds a [`Config`] never checks again.

use core::fmt;
use std::collections::BTreeMap;

use serde::Deserialize;

use crate::guard::Category;
use crate::guard::dialect::Dialect;
use crate::identity::{KeyDigest, Principal};

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

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "defaults::max_request_bytes")]
    pub max_request_bytes: usize,
    pub providers: Vec<Provider>,
    /// The first is the default.
    pub models: Vec<Model>,
    #[serde(default)]
    pub first_token: FirstToken,
    #[serde(default)]
    pub guard: Option<GuardModel>,
    #[serde(default)]
    pub sidecar: Option<Sidecar>,
    pub keys: Vec<Key>,
    pub policies: BTreeMap<String, Policy>,
}

/// A server of models. Its key is in the environment, never here.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    pub name: String,
    /// The Envoy cluster of its hosts.
    pub cluster: String,
    pub authority: String,
    #[serde(default = "defaults::base_path")]
    pub base_path: String,
    #[serde(default)]
    pub api_key_env: Option<String>,
    #[serde(default)]
    pub price: Price,
}

/// US dollars per million tokens.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    #[serde(default, deserialize_with = "decimal::required")]
    pub input: f64,
    /// Of the input, what the provider took from its prefix cache.
    #[serde(default, deserialize_with = "decimal::optional")]
    pub cached: Option<f64>,
    #[serde(default, deserialize_with = "decimal::required")]
    pub output: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The public name.
    pub name: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The Envoy cluster whose priorities are the chain.
    pub cluster: String,
    pub chain: Vec<Link>,
}

/// One provider of a model's chain.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub provider: String,
    /// The model's name there.
    pub model: String,
}

/// How long an attempt may stay without its first token, in milliseconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstToken {
    #[serde(default = "defaults::first_token_ms")]
    pub stream_ms: u64,
    /// A JSON answer comes whole: this and [`FirstToken::per_token_ms`] for every token that may be generated.
    #[serde(default = "defaults::first_token_ms")]
    pub json_ms: u64,
    #[serde(default = "defaults::per_token_ms")]
    pub per_token_ms: u64,
    /// From its beginning to a JSON answer, all providers together.
    #[serde(default = "defaults::deadline_ms")]
    pub deadline_ms: u64,
}

impl Default for FirstToken {
    fn default() -> Self {
        Self {
            stream_ms: defaults::first_token_ms(),
            json_ms: defaults::first_token_ms(),
            per_token_ms: defaults::per_token_ms(),
            deadline_ms: defaults::deadline_ms(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardModel {
    pub cluster: String,
    pub authority: String,
    #[serde(default = "defaults::base_path")]
    pub base_path: String,
    pub model: String,
    #[serde(default)]
    pub dialect: Dialect,
    #[serde(default)]
    pub api_key_env: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    pub cluster: String,
    pub authority: String,
    #[serde(default = "defaults::sidecar_timeout_ms")]
    pub timeout_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    pub sha256: KeyDigest,
    pub tenant: String,
    pub user: String,
    pub policy: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Public names of the models its callers may use; absent means all.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    #[serde(default)]
    pub input_guard: Option<InputGuard>,
    #[serde(default)]
    pub output_guard: Option<OutputGuard>,
    #[serde(default)]
    pub cache: Option<Cache>,
    #[serde(default)]
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputMode {
    /// The model starts at once; its first byte waits for the verdict.
    Parallel,
    /// The model starts after the verdict.
    Blocking,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputMode {
    /// Nothing unjudged leaves.
    Hold,
    /// Tokens flow; the stream is cut at the verdict.
    Async,
    /// The whole answer is judged once, then released.
    Full,
    Off,
}

/// What a guard call without a usable verdict means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Refuse: 503 `guard_unavailable`.
    #[default]
    Closed,
    /// Let through, flagged in the record.
    Open,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputGuard {
    #[serde(deserialize_with = "mode::read")]
    pub mode: InputMode,
    #[serde(default = "defaults::guard_timeout_ms")]
    pub timeout_ms: u64,
    #[serde(default)]
    pub on_failure: OnFailure,
    /// P(unsafe) from which a text is unsafe.
    #[serde(default = "defaults::threshold", deserialize_with = "decimal::required")]
    pub threshold: f64,
    #[serde(default)]
    pub categories: Categories,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputGuard {
    #[serde(deserialize_with = "mode::read")]
    pub mode: OutputMode,
    #[serde(default = "defaults::guard_timeout_ms")]
    pub timeout_ms: u64,
    #[serde(default)]
    pub on_failure: OnFailure,
    #[serde(default = "defaults::threshold", deserialize_with = "decimal::required")]
    pub threshold: f64,
    #[serde(default)]
    pub categories: Categories,
    /// Sizes of the first, second, ... window in tokens; the last is repeated.
    #[serde(default = "defaults::window_tokens")]
    pub window_tokens: Vec<u32>,
}

/// What a category does that the guard names. Listed nowhere: `block`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Categories {
    /// Let through, marked and audited.
    #[serde(default)]
    pub flag: Vec<Category>,
    #[serde(default)]
    pub ignore: Vec<Category>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    pub ttl_s: u64,
    /// Answers sampled above this temperature are not cached.
    #[serde(default = "defaults::max_temperature", deserialize_with = "decimal::required")]
    pub max_temperature: f64,
}

/// Per user. Absent means unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    #[serde(default)]
    pub requests_per_minute: Option<u64>,
    #[serde(default)]
    pub tokens_per_minute: Option<u64>,
}

mod defaults {
    pub(super) const fn max_request_bytes() -> usize {
        4 * 1024 * 1024
    }
    pub(super) fn base_path() -> String {
        "/v1".into()
    }
    pub(super) const fn first_token_ms() -> u64 {
        5_000
    }
    pub(super) const fn deadline_ms() -> u64 {
        120_000
    }
    pub(super) const fn per_token_ms() -> u64 {
        15
    }
    pub(super) const fn sidecar_timeout_ms() -> u64 {
        10
    }
    pub(super) const fn guard_timeout_ms() -> u64 {
        5_000
    }
    pub(super) const fn threshold() -> f64 {
        0.5
    }
    pub(super) fn window_tokens() -> Vec<u32> {
        vec![8, 16, 32, 64]
    }
    pub(super) const fn max_temperature() -> f64 {
        1.0
    }
}

impl Config {
    /// Parses and validates what Envoy hands a filter as its `configuration`: a JSON text, or an encoded
    /// `google.protobuf.Struct` (measured on 1.40: an inline `Struct` arrives encoded).
    ///
    /// # Errors
    /// The first mistake found, with the path of its key.
    pub fn parse(configuration: &[u8]) -> Result<Self, ConfigError> {
        if configuration.trim_ascii_start().starts_with(b"{") {
            return Self::parse_json(configuration);
        }
        let json = structure::to_json(configuration).ok_or_else(|| ConfigError {
            path: ".".to_owned(),
            message: "expected a google.protobuf.Struct, or a StringValue with JSON in it".to_owned(),
        })?;
        Self::parse_json(&json)
    }

    fn parse_json(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(json).map_err(|error| ConfigError {
            path: path::at(json, error.line(), error.column()),
            message: without_place(&error.to_string()),
        })?;
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

/// A reader counts keys, not columns of a JSON text it never saw.
fn without_place(message: &str) -> String {
    message.split(" at line ").next().unwrap_or_default().to_owned()
}

mod decimal;
mod mode;
mod path;
mod structure;
mod validate;

#[cfg(test)]
mod tests;
