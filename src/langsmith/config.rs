//! What the `LANGSMITH_*` variables (and their older `LANGCHAIN_*` names) say.

use std::fmt;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::tree::Shape;

const DEFAULT_ENDPOINT: &str = "https://api.smith.langchain.com";

/// Where runs go, and what of them.
#[derive(Clone)]
pub struct Config {
    /// Without a slash at its end; paths are appended.
    pub endpoint: String,
    pub api_key: Option<Secret>,
    pub workspace_id: Option<String>,
    /// 0 to 1, decided per trace.
    pub sampling_rate: f64,
    pub shape: Shape,
    /// Whether runs are uploaded at all.
    pub upload: bool,
}

/// A key that no log and no error shows.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(secret)")
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Config")
            .field("endpoint", &self.endpoint)
            .field("upload", &self.upload)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} is `{value}`; expected {expected}")]
    Invalid { name: String, value: String, expected: &'static str },
    #[error("{name} is not a key that a header can carry")]
    Key { name: String },
}

impl Config {
    /// Reads the configuration through `get` (usually the environment). Empty values count as unset.
    ///
    /// Uploading is on when a key or an endpoint is set (an endpoint of one's own may need no key), and
    /// `LANGSMITH_TRACING` does not turn it off.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let find = |names: &[&str]| {
            names.iter().flat_map(|name| [format!("LANGSMITH_{name}"), format!("LANGCHAIN_{name}")]).find_map(|name| {
                let value = get(&name)?.trim().to_owned();
                (!value.is_empty()).then_some((name, value))
            })
        };
        let switch = |names: &[&str]| find(names).map(|(_, value)| value.eq_ignore_ascii_case("true") || value == "1");

        let endpoint = find(&["ENDPOINT"]);
        if let Some((name, value)) = &endpoint
            && !reqwest::Url::parse(value).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        {
            return Err(ConfigError::Invalid {
                name: name.clone(),
                value: value.clone(),
                expected: "an http or https URL",
            });
        }
        let api_key = find(&["API_KEY"]);
        if let Some((name, value)) = &api_key
            && reqwest::header::HeaderValue::from_str(value).is_err()
        {
            return Err(ConfigError::Key { name: name.clone() });
        }
        let sampling_rate = match find(&["TRACING_SAMPLING_RATE"]) {
            None => 1.0,
            Some((name, value)) => match value.parse::<f64>() {
                Ok(rate) if (0.0..=1.0).contains(&rate) => rate,
                _ => return Err(ConfigError::Invalid { name, value, expected: "a number from 0 to 1" }),
            },
        };
        let workspace_id = match find(&["WORKSPACE_ID"]) {
            Some((name, value)) if Uuid::try_parse(&value).is_err() => {
                return Err(ConfigError::Invalid { name, value, expected: "a workspace's UUID" });
            }
            other => other.map(|(_, value)| value),
        };
        let wanted = switch(&["TRACING_V2", "TRACING"]) != Some(false);
        Ok(Self {
            upload: wanted && (api_key.is_some() || endpoint.is_some()),
            endpoint: endpoint
                .map_or_else(|| DEFAULT_ENDPOINT.to_owned(), |(_, value)| value.trim_end_matches('/').to_owned()),
            api_key: api_key.map(|(_, value)| Secret(value)),
            workspace_id,
            sampling_rate,
            shape: Shape {
                project: find(&["PROJECT", "SESSION"]).map_or_else(|| "default".to_owned(), |(_, value)| value),
                hide_inputs: switch(&["HIDE_INPUTS"]) == Some(true),
                hide_outputs: switch(&["HIDE_OUTPUTS"]) == Some(true),
                hide_metadata: switch(&["HIDE_METADATA"]) == Some(true),
            },
        })
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_env(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn a_key_or_an_endpoint_turns_the_upload_on() {
        for (variables, upload) in [
            (&[][..], false),
            (&[("LANGSMITH_API_KEY", "k")], true),
            (&[("LANGCHAIN_API_KEY", "k")], true),
            (&[("LANGSMITH_API_KEY", " ")], false),
            (&[("LANGSMITH_ENDPOINT", "http://127.0.0.1:1")], true),
            (&[("LANGSMITH_API_KEY", "k"), ("LANGSMITH_TRACING", "false")], false),
            (&[("LANGSMITH_API_KEY", "k"), ("LANGCHAIN_TRACING_V2", "false")], false),
            (&[("LANGSMITH_API_KEY", "k"), ("LANGSMITH_TRACING_V2", "true"), ("LANGSMITH_TRACING", "false")], true),
            (&[("LANGSMITH_TRACING", "true")], false),
        ] {
            assert_eq!(config(variables).unwrap().upload, upload, "{variables:?}");
        }
    }

    #[test]
    fn the_new_names_win_and_slashes_go() {
        let config = config(&[
            ("LANGSMITH_ENDPOINT", "http://127.0.0.1:1984/api/v1/"),
            ("LANGCHAIN_PROJECT", "old"),
            ("LANGSMITH_PROJECT", "new"),
            ("LANGCHAIN_HIDE_INPUTS", "TRUE"),
        ])
        .unwrap();
        assert_eq!((config.endpoint.as_str(), config.shape.project.as_str()), ("http://127.0.0.1:1984/api/v1", "new"));
        assert!(config.shape.hide_inputs && !config.shape.hide_outputs);
    }

    #[test]
    fn impossible_values_are_refused_and_keys_are_not_shown() {
        assert!(config(&[("LANGSMITH_ENDPOINT", "api.smith")]).is_err());
        assert!(config(&[("LANGSMITH_TRACING_SAMPLING_RATE", "2")]).is_err());
        assert!(config(&[("LANGSMITH_WORKSPACE_ID", "mine")]).is_err());
        let error = config(&[("LANGSMITH_API_KEY", "top\nsecret")]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
        assert!(!format!("{:?}", config(&[("LANGSMITH_API_KEY", "hush")]).unwrap()).contains("hush"));
    }

    #[test]
    fn sampling_follows_its_rate_and_the_id() {
        let config = Config { sampling_rate: 0.25, ..config(&[]).unwrap() };
        let ids: Vec<Uuid> = (0..4000_u128).map(Uuid::from_u128).collect();
        let taken = ids.iter().filter(|&&id| config.samples(id)).count();
        assert!((800..1200).contains(&taken), "{taken}");
        assert!(ids.iter().all(|&id| !Config { sampling_rate: 0.0, ..config.clone() }.samples(id)));
    }
}
