//! Who may use how much: read from the configuration that Envoy runs with, where this process can see it.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use parapet_engine::config::{Config, Limits};

/// A configuration that is longer is not read.
const MOST_BYTES: u64 = 16 << 20;

/// The callers that the configuration knows, and what their policies give them.
#[derive(Debug)]
pub struct Known {
    config: Config,
}

impl Known {
    pub fn of_policy(&self, policy: &str) -> Option<Limits> {
        self.config.policies.get(policy).map(|policy| policy.limits)
    }

    /// Tenant, user and policy of every key.
    pub fn callers(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.config.keys.iter().map(|key| (key.tenant.as_str(), key.user.as_str(), key.policy.as_str()))
    }
}

/// What was found, or why nothing was.
type Found = Result<Arc<Known>, String>;

#[derive(Debug)]
pub struct Source {
    file: PathBuf,
    /// Read again when the file's time or size changes.
    read: Mutex<Option<((SystemTime, u64), Found)>>,
}

impl Source {
    pub fn new(file: PathBuf) -> Self {
        Self { file, read: Mutex::new(None) }
    }

    /// Blocks for the file.
    pub fn get(&self) -> Found {
        let metadata = fs::metadata(&self.file).map_err(|error| format!("{}: {error}", self.file.display()))?;
        let version = (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len());
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, found)) = &*read
            && *seen == version
        {
            return found.clone();
        }
        let found = self.parse().map(Arc::new).map_err(|error| format!("{}: {error:#}", self.file.display()));
        *read = Some((version, found.clone()));
        found
    }

    fn parse(&self) -> anyhow::Result<Known> {
        let mut text = String::new();
        fs::File::open(&self.file)?.take(MOST_BYTES).read_to_string(&mut text)?;
        Ok(Known { config: crate::up::policy(&text)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_configuration_s_limits_are_found_and_a_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("envoy.yaml");
        let source = Source::new(file.clone());
        assert!(source.get().unwrap_err().contains("envoy.yaml"));

        let shipped = include_str!("../../envoy/envoy.yaml");
        fs::write(&file, shipped).unwrap();
        let known = source.get().unwrap();
        assert!(known.callers().any(|caller| caller == ("acme", "tiny", "tiny")));
        let limits = known.of_policy("tiny").unwrap();
        assert_eq!((limits.requests_per_minute, limits.tokens_per_minute), (Some(5), Some(1000)));
        assert!(known.of_policy("nobody's").is_none());

        fs::write(&file, shipped.replace("requests_per_minute: 5", "requests_per_minute: 50")).unwrap();
        assert_eq!(source.get().unwrap().of_policy("tiny").unwrap().requests_per_minute, Some(50));
        fs::write(&file, "static_resources: {}").unwrap();
        assert!(source.get().unwrap_err().contains("no Parapet filter"));
    }
}
