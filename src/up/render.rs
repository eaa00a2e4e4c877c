//! Turns the configuration that operators edit into the one that Envoy runs here: addresses, models and paths are
//! replaced by name, everything else stays as written.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_yaml_ng::{Mapping, Value};

use super::document::{Document, descend_mut, text};
use super::endpoint::Endpoint;
use super::replicas::{self, HealthCheck};
use super::tls;

/// The name of the listener that clients talk to.
const LISTENER: &str = "parapet";

/// A model server as the environment describes it. What is not given stays as the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Upstream {
    /// Replicas of one cluster: same scheme, same base path.
    pub endpoints: Vec<Endpoint>,
    pub model: Option<String>,
}

/// What is put into the configuration.
#[derive(Clone, Debug)]
pub(super) struct Rendering {
    pub listener: SocketAddr,
    pub admin: SocketAddr,
    pub sidecar: Option<Endpoint>,
    pub vllm: Upstream,
    pub openai: Upstream,
    pub llamaguard: Upstream,
    /// Of vLLM; absent: as the file says.
    pub vllm_health: Option<HealthCheck>,
    /// Certificates to trust instead of those that the file or the system names.
    pub ca_file: Option<PathBuf>,
    pub module: PathBuf,
    pub access_log: PathBuf,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RenderError {
    #[error("cluster `{0}` has no load_assignment.endpoints[0].lb_endpoints[0] to fill with addresses")]
    NoEndpoint(String),
    #[error("listener `{0}` has no address.socket_address")]
    NoAddress(&'static str),
}

/// Puts `rendering` into the configuration.
pub(super) fn render(document: &mut Document, rendering: &Rendering) -> Result<(), RenderError> {
    if let Some(listener) = document.listener_mut(LISTENER) {
        let address = listener.get_mut("address").and_then(|address| descend_mut(address, &["socket_address"]));
        put_address(address.ok_or(RenderError::NoAddress(LISTENER))?, rendering.listener);
    }
    if let Some(admin) = document.admin_mut() {
        put_address(admin, rendering.admin);
    }
    let clusters = [
        ("vllm", rendering.vllm.endpoints.as_slice()),
        ("openai", rendering.openai.endpoints.as_slice()),
        ("llamaguard", rendering.llamaguard.endpoints.as_slice()),
        ("sidecar", rendering.sidecar.as_slice()),
    ];
    for (name, endpoints) in clusters {
        if let Some(cluster) = document.cluster_mut(name) {
            put_endpoints(cluster, endpoints, rendering.ca_file.as_deref())?;
        }
    }
    if let (Some(check), Some(cluster)) = (&rendering.vllm_health, document.cluster_mut("vllm")) {
        check.apply(cluster);
    }
    if rendering.vllm.endpoints.len() > 1 {
        replicas::try_another(document, "vllm");
    }
    document.for_each_filter_mut(|filter| put_filter(filter, rendering));
    document.for_each_ledger_mut(|log| put(log, "path", path(&rendering.access_log)));
    Ok(())
}

fn put_address(socket: &mut Mapping, address: SocketAddr) {
    put(socket, "address", address.ip().to_string());
    put(socket, "port_value", address.port());
}

/// Repeats the cluster's first endpoint for each server, so that its metadata (which provider it is) stays.
fn put_endpoints(cluster: &mut Mapping, endpoints: &[Endpoint], ca_file: Option<&Path>) -> Result<(), RenderError> {
    if endpoints.is_empty() {
        return Ok(());
    }
    // A check's `Host` would be the cluster's name, which a server that many share does not know.
    let checked = cluster.contains_key("health_checks");
    let missing = RenderError::NoEndpoint(text(cluster, "name").unwrap_or_default().to_owned());
    let localities = cluster.get_mut("load_assignment").and_then(|assignment| assignment.get_mut("endpoints"));
    let Some(localities) = localities.and_then(Value::as_sequence_mut) else { return Err(missing) };
    localities.truncate(1);
    let hosts = localities.first_mut().and_then(|locality| locality.get_mut("lb_endpoints"));
    let Some(hosts) = hosts.and_then(Value::as_sequence_mut) else { return Err(missing) };
    let Some(template) = hosts.first().cloned() else { return Err(missing) };
    let mut filled = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let mut host = template.clone();
        let Some(inner) = descend_mut(&mut host, &["endpoint"]) else { return Err(missing) };
        // The handshake's name where replicas have several (`tls`); harmless elsewhere.
        if endpoint.tls && !endpoint.is_address() {
            put(inner, "hostname", endpoint.host.as_str());
        }
        if checked {
            put(inner, "health_check_config", Mapping::from_iter([("hostname".into(), endpoint.authority().into())]));
        }
        let socket = inner.get_mut("address").and_then(|address| descend_mut(address, &["socket_address"]));
        let Some(socket) = socket else { return Err(missing) };
        put(socket, "address", endpoint.host.as_str());
        put(socket, "port_value", endpoint.port);
        filled.push(host);
    }
    *hosts = filled;
    tls::apply(cluster, endpoints, ca_file);
    Ok(())
}

fn put_filter(filter: &mut Mapping, rendering: &Rendering) {
    let code = filter.get_mut("vm_config").and_then(|vm| descend_mut(vm, &["code", "local"]));
    if let Some(local) = code {
        put(local, "filename", path(&rendering.module));
    }
    let Some(policy) = filter.get_mut("configuration").and_then(|configuration| descend_mut(configuration, &["value"]))
    else {
        return;
    };
    for (name, upstream) in [("vllm", &rendering.vllm), ("openai", &rendering.openai)] {
        let providers = policy.get_mut("providers").and_then(Value::as_sequence_mut);
        for provider in providers.into_iter().flatten().filter_map(Value::as_mapping_mut) {
            if text(provider, "name") == Some(name) {
                put_server(provider, upstream.endpoints.first());
            }
        }
        if let (Some(model), Some(models)) =
            (&upstream.model, policy.get_mut("models").and_then(Value::as_sequence_mut))
        {
            put_model(models, name, model);
        }
    }
    if let Some(guard) = policy.get_mut("guard").and_then(Value::as_mapping_mut) {
        put_server(guard, rendering.llamaguard.endpoints.first());
        if let Some(model) = &rendering.llamaguard.model {
            put(guard, "model", model.as_str());
        }
    }
    if let (Some(sidecar), Some(endpoint)) =
        (policy.get_mut("sidecar").and_then(Value::as_mapping_mut), &rendering.sidecar)
    {
        put(sidecar, "authority", endpoint.authority());
    }
}

fn put_server(section: &mut Mapping, endpoint: Option<&Endpoint>) {
    if let Some(endpoint) = endpoint {
        put(section, "authority", endpoint.authority());
        put(section, "base_path", endpoint.base_path.as_str());
    }
}

/// Sets the model's name at a provider wherever it is asked, and lets clients ask for that name: it becomes an alias of
/// the first model that starts at this provider, unless a model is called so already.
fn put_model(models: &mut [Value], provider: &str, name: &str) {
    let known = models.iter().any(|model| {
        let alias = |aliases: &Value| aliases.as_sequence().is_some_and(|all| all.iter().any(|alias| alias == name));
        model.get("name").is_some_and(|own| own == name) || model.get("aliases").is_some_and(alias)
    });
    let mut needs_alias = !known;
    for model in models.iter_mut().filter_map(Value::as_mapping_mut) {
        let Some(chain) = model.get_mut("chain").and_then(Value::as_sequence_mut) else { continue };
        let at_provider = |step: &Value| step.get("provider").is_some_and(|own| own == provider);
        let starts_here = chain.first().is_some_and(at_provider);
        for step in chain.iter_mut().filter(|step| at_provider(step)).filter_map(Value::as_mapping_mut) {
            put(step, "model", name);
        }
        if starts_here && needs_alias {
            needs_alias = false;
            match model.get_mut("aliases") {
                Some(Value::Sequence(aliases)) => aliases.push(Value::from(name)),
                _ => put(model, "aliases", vec![Value::from(name)]),
            }
        }
    }
}

/// Sets a key in place: the order of a file's keys stays.
pub(super) fn put(mapping: &mut Mapping, key: &str, value: impl Into<Value>) {
    mapping.insert(Value::from(key), value.into());
}

pub(super) fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
