//! What the `LANGSMITH_*` variables (and their older `LANGCHAIN_*` names) say.

mod endpoints;
mod variables;

use std::fmt;

use reqwest::Url;
use reqwest::header::HeaderValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::tree::Shape;
use variables::Variables;

const DEFAULT_ENDPOINT: &str = "https://api.smith.langchain.com";

/// Where runs go, and what of them.
#[derive(Debug, Clone)]
pub struct Config {
    /// Empty: nothing is uploaded.
    pub destinations: Vec<Destination>,
    /// 0 to 1, decided per trace.
    pub sampling_rate: f64,
    pub shape: Shape,
    /// Runs in a request, instead of what the server says it takes.
    pub batch_size: Option<usize>,
    /// Whether bodies are compressed where the server takes that.
    pub compress: bool,
}

/// One LangSmith.
#[derive(Clone)]
pub struct Destination {
    /// The address in the letters of a file's name; the same at the next start.
    pub name: String,
    /// Without a slash at its end; paths are appended.
    pub endpoint: String,
    pub api_key: Option<Secret>,
    pub workspace_id: Option<String>,
    /// The LangSmith project.
    pub project: String,
}

/// A key that no log and no error shows.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    fn new(name: &str, value: String) -> Result<Self, ConfigError> {
        match HeaderValue::from_str(&value) {
            Ok(_) if !value.is_empty() => Ok(Self(value)),
            _ => Err(ConfigError::Key { name: name.to_owned() }),
        }
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(secret)")
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Destination")
            .field("endpoint", &self.endpoint)
            .field("project", &self.project)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} is `{value}`; expected {expected}")]
    Invalid { name: String, value: String, expected: &'static str },
    /// The value may hold a password.
    #[error("{name} is not an http or https URL without user, query and fragment, such as {DEFAULT_ENDPOINT}")]
    Url { name: String },
    #[error("{name} is not a key that a header can carry")]
    Key { name: String },
    /// The value holds keys.
    #[error(
        "{name}: {what}; expected {{\"URL\": \"KEY\", ...}} or [{{\"api_url\": \"URL\", \"api_key\": \"KEY\"}}, ...]"
    )]
    Endpoints { name: String, what: String },
    #[error("{first} and {second} are both set, and each says where runs go: unset one of them")]
    Both { first: String, second: String },
}

impl Config {
    /// Reads the configuration through `get` (usually the environment). Empty values count as unset.
    ///
    /// Uploading is on when a key, an endpoint (one of one's own may need no key) or a list of endpoints is set, unless
    /// `LANGSMITH_TRACING` says no.
    ///
    /// # Errors
    /// At the first variable with an impossible value, by its name.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let variables = Variables(&get);
        let switch = |names: &[&str]| variables.switch(names);
        let workspace_id = match variables.find(&["WORKSPACE_ID"]) {
            Some((name, value)) if Uuid::try_parse(&value).is_err() => {
                return Err(ConfigError::Invalid { name, value, expected: "a workspace's UUID" });
            }
            other => other.map(|(_, value)| value),
        };
        let project = variables.find(&["PROJECT", "SESSION"]).map_or_else(|| "default".to_owned(), |(_, value)| value);
        let api_key = match variables.find(&["API_KEY"]) {
            Some((name, value)) => Some(Secret::new(&name, value)?),
            None => None,
        };
        let endpoint = match variables.find(&["ENDPOINT"]) {
            Some((name, value)) => Some((base_url(&name, &value)?, name)),
            None => None,
        };
        let mut destinations = match variables.find(&["RUNS_ENDPOINTS"]) {
            Some((name, value)) => endpoints::read(&name, &value, endpoint.as_ref().map(|(_, name)| name.as_str()))?,
            None if api_key.is_none() && endpoint.is_none() => Vec::new(),
            None => {
                let endpoint = endpoint.map_or_else(|| DEFAULT_ENDPOINT.to_owned(), |(endpoint, _)| endpoint);
                vec![Destination { name: String::new(), endpoint, api_key, workspace_id: None, project: String::new() }]
            }
        };
        endpoints::name(&mut destinations);
        for destination in &mut destinations {
            destination.workspace_id.clone_from(&workspace_id);
            if destination.project.is_empty() {
                destination.project.clone_from(&project);
            }
        }
        if switch(&["TRACING_V2", "TRACING"])? == Some(false) {
            destinations.clear();
        }
        Ok(Self {
            destinations,
            sampling_rate: variables
                .number(&["TRACING_SAMPLING_RATE"], "a number from 0 to 1", |rate| (0.0..=1.0).contains(rate))?
                .unwrap_or(1.0),
            shape: Shape {
                project,
                hide_inputs: switch(&["HIDE_INPUTS"])? == Some(true),
                hide_outputs: switch(&["HIDE_OUTPUTS"])? == Some(true),
                hide_metadata: switch(&["HIDE_METADATA"])? == Some(true),
                key: None,
            },
            batch_size: variables.number(&["BATCH_INGEST_SIZE_LIMIT"], "a number of runs from 1 to 10000", |runs| {
                (1..=10_000).contains(runs)
            })?,
            compress: switch(&["DISABLE_RUN_COMPRESSION"])? != Some(true),
        })
    }

    /// Whether anything is uploaded.
    pub fn uploads(&self) -> bool {
        !self.destinations.is_empty()
    }

    /// Whether the trace is in the sample. The id decides, so that a replay decides the same; the caller's trace
    /// decides for its children.
    pub fn samples(&self, trace_id: Uuid) -> bool {
        if self.sampling_rate >= 1.0 {
            return true;
        }
        let digest = Sha256::digest(trace_id.as_bytes());
        let mut top = [0_u8; 4];
        for (to, from) in top.iter_mut().zip(digest.iter()) {
            *to = *from;
        }
        f64::from(u32::from_be_bytes(top)) < self.sampling_rate * 4_294_967_296.0
    }

    /// What the destination's runs look like.
    pub fn shape_for(&self, destination: &Destination) -> Shape {
        Shape { project: destination.project.clone(), ..self.shape.clone() }
    }
}

/// The URL without slashes at its end.
fn base_url(name: &str, value: &str) -> Result<String, ConfigError> {
    let fits = Url::parse(value).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    if fits { Ok(value.trim_end_matches('/').to_owned()) } else { Err(ConfigError::Url { name: name.to_owned() }) }
}

#[cfg(test)]
mod tests;
