//! An Envoy configuration as a tree of YAML, and where Parapet's parts stand in it.

use serde_yaml_ng::{Mapping, Value};

use super::yaml;

/// The two entry points of Parapet's module. Envoy finds them by these names, so they tell our filters from others'.
const ROOTS: [&str; 2] = ["gateway", "provider"];
const WASM_FILTER: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const FILE_ACCESS_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
/// Where the gateway filter leaves a request's record: the access log that prints it is the ledger.
const RECORD: &str = "wasm.parapet.record";

/// A parsed configuration file.
#[derive(Clone, Debug)]
pub(super) struct Document {
    root: Value,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DocumentError {
    #[error("no YAML: {0}")]
    Syntax(#[from] serde_yaml_ng::Error),
    #[error("no Envoy configuration: `static_resources` is missing at the top")]
    NotEnvoy,
}

impl Document {
    pub(super) fn parse(text: &str) -> Result<Self, DocumentError> {
        let root: Value = serde_yaml_ng::from_str(text)?;
        if !root.get("static_resources").is_some_and(Value::is_mapping) {
            return Err(DocumentError::NotEnvoy);
        }
        Ok(Self { root })
    }

    /// The configuration as Envoy reads it; anchors are written out.
    pub(super) fn to_yaml(&self) -> String {
        yaml::write(&self.root)
    }

    pub(super) fn admin_mut(&mut self) -> Option<&mut Mapping> {
        descend_mut(&mut self.root, &["admin", "address", "socket_address"])
    }

    pub(super) fn listener_mut(&mut self, name: &str) -> Option<&mut Mapping> {
        self.named_mut("listeners", name)
    }

    pub(super) fn cluster_mut(&mut self, name: &str) -> Option<&mut Mapping> {
        self.named_mut("clusters", name)
    }

    pub(super) fn for_each_cluster_mut(&mut self, edit: impl FnMut(&mut Mapping)) {
        let clusters = self.root.get_mut("static_resources").and_then(|resources| resources.get_mut("clusters"));
        let clusters = clusters.and_then(Value::as_sequence_mut).into_iter().flatten();
        clusters.filter_map(Value::as_mapping_mut).for_each(edit);
    }

    /// The static clusters, in the file's order.
    pub(super) fn clusters(&self) -> impl Iterator<Item = &Mapping> {
        let clusters = self.root.get("static_resources").and_then(|resources| resources.get("clusters"));
        clusters.and_then(Value::as_sequence).into_iter().flatten().filter_map(Value::as_mapping)
    }

    pub(super) fn cluster(&self, name: &str) -> Option<&Mapping> {
        self.clusters().find(|cluster| text(cluster, "name") == Some(name))
    }

    /// The values of a key wherever it stands.
    pub(super) fn all(&self, key: &str) -> Vec<&Value> {
        let mut found = Vec::new();
        walk(&self.root, &mut |mapping| found.extend(mapping.get(key)));
        found
    }

    pub(super) fn has_cluster(&self, name: &str) -> bool {
        self.cluster(name).is_some()
    }

    /// Whether Envoy also learns clusters from elsewhere.
    pub(super) fn has_dynamic_clusters(&self) -> bool {
        self.root.get("dynamic_resources").is_some_and(|dynamic| dynamic.get("cds_config").is_some())
    }

    /// The `config` section of each of Parapet's filters, in the file's order.
    pub(super) fn filters(&self) -> Vec<&Mapping> {
        let mut found = Vec::new();
        walk(&self.root, &mut |mapping| {
            if text(mapping, "@type") == Some(WASM_FILTER) {
                found.extend(mapping.get("config").and_then(Value::as_mapping).filter(|config| is_ours(config)));
            }
        });
        found
    }

    pub(super) fn for_each_filter_mut(&mut self, mut edit: impl FnMut(&mut Mapping)) {
        walk_mut(&mut self.root, &mut |mapping| {
            if text(mapping, "@type") == Some(WASM_FILTER)
                && let Some(config) = mapping.get_mut("config").and_then(Value::as_mapping_mut)
                && is_ours(config)
            {
                edit(config);
            }
        });
    }

    /// Each file access log that writes Parapet's records.
    pub(super) fn for_each_ledger_mut(&mut self, mut edit: impl FnMut(&mut Mapping)) {
        walk_mut(&mut self.root, &mut |mapping| {
            if text(mapping, "@type") == Some(FILE_ACCESS_LOG)
                && mapping.get("log_format").is_some_and(|format| mentions(format, RECORD))
            {
                edit(mapping);
            }
        });
    }

    /// The environment variables that Envoy hands to Parapet's filters.
    pub(super) fn host_env_keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self
            .filters()
            .into_iter()
            .filter_map(|config| config.get("vm_config")?.get("environment_variables")?.get("host_env_keys"))
            .filter_map(Value::as_sequence)
            .flatten()
            .filter_map(|key| key.as_str().map(str::to_owned))
            .collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// The model name that the configuration sends to a provider, the first one written.
    pub(super) fn model_at(&self, provider: &str) -> Option<&str> {
        self.filters()
            .into_iter()
            .filter_map(|config| config.get("configuration")?.get("value")?.get("models")?.as_sequence())
            .flatten()
            .filter_map(|model| model.get("chain")?.as_sequence())
            .flatten()
            .find(|step| step.get("provider").and_then(Value::as_str) == Some(provider))
            .and_then(|step| step.get("model")?.as_str())
    }

    /// The name of the model that judges.
    pub(super) fn guard_model(&self) -> Option<&str> {
        self.filters()
            .into_iter()
            .find_map(|config| config.get("configuration")?.get("value")?.get("guard")?.get("model")?.as_str())
    }

    fn named_mut(&mut self, kind: &str, name: &str) -> Option<&mut Mapping> {
        let all = self.root.get_mut("static_resources")?.get_mut(kind)?.as_sequence_mut()?;
        all.iter_mut().filter_map(Value::as_mapping_mut).find(|entry| text(entry, "name") == Some(name))
    }
}

fn is_ours(config: &Mapping) -> bool {
    text(config, "root_id").is_some_and(|root| ROOTS.contains(&root))
}

/// The string under a key.
pub(super) fn text<'a>(mapping: &'a Mapping, key: &str) -> Option<&'a str> {
    mapping.get(key).and_then(Value::as_str)
}

/// Follows keys down to a mapping; `None` where one is missing.
pub(super) fn descend_mut<'a>(value: &'a mut Value, keys: &[&str]) -> Option<&'a mut Mapping> {
    let mut value = value;
    for key in keys {
        value = value.get_mut(key)?;
    }
    value.as_mapping_mut()
}

// The parser bounds the depth (128), so the recursion below is bounded too.

fn walk<'a>(value: &'a Value, visit: &mut impl FnMut(&'a Mapping)) {
    match value {
        Value::Mapping(mapping) => {
            visit(mapping);
            mapping.values().for_each(|inner| walk(inner, visit));
        }
        Value::Sequence(items) => items.iter().for_each(|inner| walk(inner, visit)),
        _ => {}
    }
}

fn walk_mut(value: &mut Value, visit: &mut impl FnMut(&mut Mapping)) {
    match value {
        Value::Mapping(mapping) => {
            visit(mapping);
            mapping.values_mut().for_each(|inner| walk_mut(inner, visit));
        }
        Value::Sequence(items) => items.iter_mut().for_each(|inner| walk_mut(inner, visit)),
        _ => {}
    }
}

fn mentions(value: &Value, needle: &str) -> bool {
    match value {
        Value::String(text) => text.contains(needle),
        Value::Mapping(mapping) => mapping.values().any(|inner| mentions(inner, needle)),
        Value::Sequence(items) => items.iter().any(|inner| mentions(inner, needle)),
        _ => false,
    }
}
