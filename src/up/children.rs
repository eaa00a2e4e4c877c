//! What is started, with which arguments and with which secrets: each child sees its own and no other's.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use super::document::Document;
use super::endpoint::Endpoint;
use super::render::{Rendering, Upstream};
use super::supervise::Program;
use super::{ENVOY, envoy, ports};

/// Read by programs of every kind; none is secret.
const COMMON: [&str; 8] = ["PATH", "HOME", "TZ", "LANG", "TMPDIR", "RUST_LOG", "RUST_BACKTRACE", "SSL_CERT_FILE"];
/// What the sidecar has no business with: it never speaks to a model.
const PROVIDER_KEYS: [&str; 3] = ["VLLM_API_KEY", "OPENAI_API_KEY", "LLAMAGUARD_API_KEY"];
/// What Envoy has no business with, whatever a configuration asks for.
const SIDECARS_PREFIXES: [&str; 4] = ["LANGSMITH_", "LANGCHAIN_", "OTEL_", "REDIS_"];
/// Both sides of the simulated OpenAI know this key.
const DEMONSTRATION_KEY: &str = "sk-demonstration-only";

/// The providers' keys, by the variables that hold them.
pub(super) struct Keys(Vec<(&'static str, OsString)>);

impl Keys {
    pub(super) fn from_environment(rendering: &Rendering) -> Self {
        let set = |variable: &'static str| {
            std::env::var_os(variable).filter(|key| !key.is_empty()).map(|key| (variable, key))
        };
        let mut keys: Vec<_> = PROVIDER_KEYS.into_iter().filter_map(set).collect();
        let simulated = rendering.openai.endpoints.is_empty();
        if simulated && !keys.iter().any(|(variable, _)| *variable == "OPENAI_API_KEY") {
            keys.push(("OPENAI_API_KEY", DEMONSTRATION_KEY.into()));
        }
        Self(keys)
    }

    fn get(&self, variable: &str) -> Option<&OsString> {
        self.0.iter().find(|(known, _)| *known == variable).map(|(_, key)| key)
    }
}

/// A stand-in for a server that is not given.
pub(super) struct Simulator {
    pub(super) name: &'static str,
    pub(super) announcement: String,
    pub(super) port: u16,
    arguments: Vec<OsString>,
    key: Option<(&'static str, OsString)>,
}

/// Plans a simulator for each cluster that the configuration has and the environment does not place, and puts their
/// addresses into `rendering`.
pub(super) fn simulators(
    document: &Document,
    rendering: &mut Rendering,
    keys: &Keys,
) -> anyhow::Result<Vec<Simulator>> {
    struct Kind<'a> {
        cluster: &'static str,
        command: &'static str,
        name: &'static str,
        url: &'static str,
        key: &'static str,
        upstream: &'a mut Upstream,
        model: Option<&'a str>,
    }
    let kinds = [
        Kind {
            cluster: "vllm",
            command: "vllm",
            name: "sim vllm",
            url: "VLLM_URL",
            key: "VLLM_API_KEY",
            upstream: &mut rendering.vllm,
            model: document.model_at("vllm"),
        },
        Kind {
            cluster: "llamaguard",
            command: "llama-guard",
            name: "sim llama-guard",
            url: "LLAMAGUARD_URL",
            key: "LLAMAGUARD_API_KEY",
            upstream: &mut rendering.llamaguard,
            model: document.guard_model(),
        },
        Kind {
            cluster: "openai",
            command: "openai",
            name: "sim openai",
            url: "OPENAI_BASE_URL",
            key: "OPENAI_API_KEY",
            upstream: &mut rendering.openai,
            model: document.model_at("openai"),
        },
    ];
    let mut planned = Vec::new();
    for (kind, port) in kinds.into_iter().zip(ports::free(3)?) {
        if !kind.upstream.endpoints.is_empty() || !document.has_cluster(kind.cluster) {
            continue;
        }
        let mut arguments: Vec<OsString> =
            ["sim", kind.command, "--port", &port.to_string()].map(OsString::from).to_vec();
        if let Some(model) = kind.upstream.model.as_deref().or(kind.model) {
            arguments.extend(["--model", model].map(OsString::from));
        }
        let key = keys.get(kind.key).map(|key| (kind.key, key.clone()));
        if key.is_some() {
            arguments.extend(["--api-key-env", kind.key].map(OsString::from));
        }
        kind.upstream.endpoints = vec![Endpoint::local(port)];
        planned.push(Simulator {
            name: kind.name,
            announcement: format!("{} is not set: simulating it on 127.0.0.1:{port}", kind.url),
            port,
            arguments,
            key,
        });
    }
    Ok(planned)
}

pub(super) fn simulator(simulator: &Simulator) -> anyhow::Result<Program> {
    let mut environment = common();
    environment.extend(simulator.key.iter().map(|(variable, key)| (OsString::from(variable), key.clone())));
    Ok(Program { name: simulator.name, path: this_binary()?, arguments: simulator.arguments.clone(), environment })
}

pub(super) fn sidecar(
    data_dir: &Path,
    address: SocketAddr,
    admin: SocketAddr,
    vllm: &[Endpoint],
) -> anyhow::Result<Program> {
    let replicas: Vec<String> = vllm.iter().map(Endpoint::origin).collect();
    let mut environment: Vec<(OsString, OsString)> =
        std::env::vars_os().filter(|(variable, _)| !PROVIDER_KEYS.iter().any(|key| variable == key)).collect();
    // Later entries win over what was inherited.
    environment.extend([
        ("PARAPET_DATA_DIR".into(), data_dir.into()),
        ("PARAPET_SIDECAR_PORT".into(), address.port().to_string().into()),
        ("PARAPET_ADMIN_PORT".into(), admin.port().to_string().into()),
        ("PARAPET_ADMIN_URL".into(), format!("http://{admin}").into()),
        ("VLLM_URL".into(), replicas.join(",").into()),
    ]);
    Ok(Program { name: "sidecar", path: this_binary()?, arguments: vec!["sidecar".into()], environment })
}

pub(super) fn envoy(
    binary: &Path,
    config: &Path,
    workers: u16,
    log_level: &str,
    document: &Document,
    keys: &Keys,
) -> Program {
    let mut environment = common();
    for variable in document.host_env_keys() {
        if SIDECARS_PREFIXES.iter().any(|prefix| variable.starts_with(prefix)) {
            continue;
        }
        let value = keys.get(&variable).cloned().or_else(|| std::env::var_os(&variable));
        environment.extend(value.map(|value| (variable.into(), value)));
    }
    Program { name: ENVOY, path: binary.into(), arguments: envoy::arguments(config, workers, log_level), environment }
}

fn common() -> Vec<(OsString, OsString)> {
    COMMON.iter().filter_map(|variable| Some((variable.into(), std::env::var_os(variable)?))).collect()
}

fn this_binary() -> anyhow::Result<OsString> {
    Ok(std::env::current_exe().context("cannot find the running binary")?.into())
}
