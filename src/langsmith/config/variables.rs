//! One value under several names: the new prefix before the old one.

use std::str::FromStr;

use super::ConfigError;

pub(super) struct Variables<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

/// Without the quotes that an env file's reader left where it found them, as LangSmith's SDK reads its variables.
fn unquoted(value: &str) -> &str {
    let inner = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\'')).unwrap_or(value).trim()
}

impl Variables<'_> {
    /// The first that is set and not empty, with the name it was found under.
    pub(super) fn find(&self, names: &[&str]) -> Option<(String, String)> {
        names.iter().flat_map(|name| [format!("LANGSMITH_{name}"), format!("LANGCHAIN_{name}")]).find_map(|name| {
            let value = unquoted((self.0)(&name)?.trim()).to_owned();
            (!value.is_empty()).then_some((name, value))
        })
    }

    pub(super) fn switch(&self, names: &[&str]) -> Result<Option<bool>, ConfigError> {
        let Some((name, value)) = self.find(names) else { return Ok(None) };
        match value.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(ConfigError::Invalid { name, value, expected: "`true` or `false`" }),
        }
    }

    pub(super) fn number<N: FromStr>(
        &self,
        names: &[&str],
        expected: &'static str,
        fits: impl Fn(&N) -> bool,
    ) -> Result<Option<N>, ConfigError> {
        let Some((name, value)) = self.find(names) else { return Ok(None) };
        match value.parse().ok().filter(fits) {
            Some(number) => Ok(Some(number)),
            None => Err(ConfigError::Invalid { name, value, expected }),
        }
    }
}
