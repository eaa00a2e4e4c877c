//! The key a simulator asks of its callers.

use std::{convert::Infallible, fmt, io, str::FromStr};

use axum::http::{HeaderMap, HeaderName, header::AUTHORIZATION};

/// A secret that never shows in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}

impl From<&str> for ApiKey {
    fn from(key: &str) -> Self {
        Self(key.to_owned())
    }
}

impl FromStr for ApiKey {
    type Err = Infallible;

    fn from_str(key: &str) -> Result<Self, Infallible> {
        Ok(key.into())
    }
}

impl ApiKey {
    /// Whether `authorization` carries this key as a bearer token.
    pub(super) fn is_bearer_of(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split_once(' ').is_some_and(|(scheme, key)| scheme.eq_ignore_ascii_case("bearer") && key == self.0)
    }

    pub(super) fn is_header(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        headers.get(name).is_some_and(|value| value.as_bytes() == self.0.as_bytes())
    }
}

/// Where the key comes from; neither given: every caller is let in.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct KeyOptions {
    /// Key that callers must send
    #[arg(long, conflicts_with = "api_key_env")]
    pub api_key: Option<ApiKey>,
    /// Environment variable that holds the key
    #[arg(long, value_name = "NAME")]
    pub api_key_env: Option<String>,
}

impl KeyOptions {
    /// # Errors
    /// When the named variable is unset, empty or not UTF-8.
    pub(super) fn resolve(self) -> io::Result<Option<ApiKey>> {
        let Some(name) = self.api_key_env else { return Ok(self.api_key) };
        match std::env::var(&name) {
            Ok(key) if !key.is_empty() => Ok(Some(ApiKey(key))),
            _ => Err(io::Error::other(format!("--api-key-env {name}: set that variable to the key"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_compared_whole_and_never_printed() {
        let key = ApiKey::from("sk-1");
        let mut headers = HeaderMap::new();
        assert!(!key.is_bearer_of(&headers));
        headers.insert(AUTHORIZATION, "Bearer sk-1".parse().unwrap());
        assert!(key.is_bearer_of(&headers));
        headers.insert(AUTHORIZATION, "Bearer sk-12".parse().unwrap());
        assert!(!key.is_bearer_of(&headers));
        assert!(!format!("{key:?}").contains("sk-1"));
    }

    #[test]
    fn a_named_variable_that_is_not_set_is_refused() {
        let options = KeyOptions { api_key: None, api_key_env: Some("PARAPET_TEST_NO_SUCH_KEY".into()) };
        assert!(options.resolve().unwrap_err().to_string().contains("PARAPET_TEST_NO_SUCH_KEY"));
    }
}
