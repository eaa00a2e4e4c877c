//! The compose file: valid, whole, and its configuration accepted by Envoy. No engine is needed.
//!
//! `scripts/test e2e` sets what this needs: `ENVOY_BIN`, `PARAPET_WASM`, `PARAPET_PYTHON`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails by panicking, as a test does")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_yaml_ng::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn needed(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: run scripts/test e2e")).into()
}

fn compose() -> Value {
    let text = std::fs::read_to_string(Path::new(ROOT).join("docker-compose.yml")).unwrap();
    let mut value: Value = serde_yaml_ng::from_str(&text).unwrap();
    value.apply_merge().unwrap();
    value
}

fn services(compose: &Value) -> BTreeMap<&str, &Value> {
    compose["services"].as_mapping().unwrap().iter().map(|(name, service)| (name.as_str().unwrap(), service)).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_sequence().into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

/// `${NAME:-default}` as compose reads it where nothing is set.
fn interpolated(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (inside, after) = after.split_once('}').unwrap();
        let (_, default) = inside.split_once(":-").unwrap_or_else(|| panic!("{inside} has no default"));
        out.push_str(before);
        out.push_str(default);
        rest = after;
    }
    out + rest
}

/// The variables that our image sets.
fn image_environment() -> BTreeMap<String, String> {
    let dockerfile = std::fs::read_to_string(Path::new(ROOT).join("Dockerfile")).unwrap();
    let (_, block) = dockerfile.split_once("\nENV ").unwrap();
    let (block, _) = block.split_once("\nUSER ").unwrap();
    block
        .split_whitespace()
        .filter(|word| *word != "\\")
        .map(|word| word.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn it_follows_the_compose_specification() {
    let output = Command::new(needed("PARAPET_PYTHON"))
        .args(["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", shown(&output));
}

#[test]
fn every_mount_exists() {
    let compose = compose();
    let named = compose["volumes"].as_mapping().unwrap();
    let mut seen = 0;
    for (service, definition) in services(&compose) {
        for volume in strings(&definition["volumes"]) {
            seen += 1;
            let source = volume.split(':').next().unwrap();
            if source.starts_with('.') {
                assert!(Path::new(ROOT).join(source).is_file(), "{service} mounts {source}, which is missing");
            } else {
                assert!(named.contains_key(source), "{service} mounts the volume {source}, which is not declared");
            }
        }
    }
    assert!(seen >= 5, "only {seen} mounts were found");
}

#[test]
fn what_is_waited_for_can_happen() {
    let compose = compose();
    let services = services(&compose);
    let mut seen = 0;
    for (service, definition) in &services {
        for (name, condition) in definition["depends_on"].as_mapping().into_iter().flatten() {
            seen += 1;
            let name = name.as_str().unwrap();
            let other =
                services.get(name).unwrap_or_else(|| panic!("{service} waits for {name}, which does not exist"));
            match condition["condition"].as_str().unwrap() {
                "service_healthy" => {
                    assert!(other["healthcheck"]["test"].is_sequence(), "{name} is never healthy");
                }
                // A restarted service never completes.
                "service_completed_successfully" => assert!(other.get("restart").is_none(), "{name} never completes"),
                condition => panic!("{service} waits for {name} with {condition}"),
            }
        }
    }
    assert!(seen >= 5, "only {seen} dependencies were found");
}

#[test]
fn only_the_gateway_can_be_reached_from_elsewhere_and_only_when_asked() {
    let compose = compose();
    for (service, definition) in services(&compose) {
        for port in strings(&definition["ports"]) {
            assert!(interpolated(port).starts_with("127.0.0.1:"), "{service} publishes {port}");
            assert!(["envoy", "sidecar", "prometheus", "grafana"].contains(&service), "{service} publishes {port}");
        }
    }
}

#[test]
fn keys_go_to_the_one_who_needs_them() {
    let compose = compose();
    for (service, definition) in services(&compose) {
        for (variable, _) in definition["environment"].as_mapping().into_iter().flatten() {
            let allowed: &[&str] = match variable.as_str().unwrap() {
                "OPENAI_API_KEY" | "LLAMAGUARD_API_KEY" => &["envoy"],
                // What vLLM calls its own key, too.
                "VLLM_API_KEY" => &["envoy", "vllm", "llamaguard"],
                "HF_TOKEN" => &["vllm", "llamaguard"],
                "LANGSMITH_API_KEY" => &["sidecar"],
                _ => continue,
            };
            assert!(allowed.contains(&service), "{service} gets {variable:?}");
        }
    }
}

#[test]
fn the_two_models_share_the_gpu() {
    let compose = compose();
    let services = services(&compose);
    let share = |service: &str| -> f64 {
        let flags = strings(&services[service]["command"]);
        let share = flags.iter().find_map(|flag| flag.strip_prefix("--gpu-memory-utilization=")).unwrap();
        share.parse().unwrap()
    };
    assert!(share("vllm") + share("llamaguard") <= 0.92);
}

#[test]
fn prometheus_and_grafana_find_what_they_are_given() {
    let compose = compose();
    let services = services(&compose);
    for service in ["prometheus", "grafana"] {
        assert_eq!(strings(&services[service]["profiles"]), ["observability"], "{service} starts unasked");
    }
    let shipped = std::fs::read_to_string(Path::new(ROOT).join("envoy/prometheus/prometheus.yml")).unwrap();
    let shipped: Value = serde_yaml_ng::from_str(&shipped.replace("127.0.0.1:9090", "sidecar:9090")).unwrap();
    let inside: Value = serde_yaml_ng::from_str(compose["configs"]["prometheus"]["content"].as_str().unwrap()).unwrap();
    assert_eq!(inside, shipped, "the containers' configuration is the shipped one at the sidecar's name");
    // Where each file is mounted is where the one that reads it looks.
    let mounts = |service: &str| -> BTreeMap<String, String> {
        let split = |volume: &str| {
            let mut parts = volume.split(':').map(str::to_owned);
            (parts.next().unwrap(), parts.next().unwrap())
        };
        strings(&services[service]["volumes"]).into_iter().map(split).collect()
    };
    let rules = inside["rule_files"][0].as_str().unwrap();
    assert_eq!(mounts("prometheus")["./envoy/prometheus/parapet.rules.yml"], format!("/etc/prometheus/{rules}"));
    let read = |file: &str| -> Value {
        serde_yaml_ng::from_str(&std::fs::read_to_string(Path::new(ROOT).join(file)).unwrap()).unwrap()
    };
    let source = &read("envoy/grafana/datasource.yml")["datasources"][0];
    assert_eq!((source["type"].as_str(), source["url"].as_str()), (Some("prometheus"), Some("http://prometheus:9090")));
    let folder = &read("envoy/grafana/provider.yml")["providers"][0]["options"]["path"];
    let dashboard = &mounts("grafana")["./envoy/grafana/parapet.json"];
    assert_eq!(dashboard, &format!("{}/parapet.json", folder.as_str().unwrap()));
    assert_eq!(
        services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str().unwrap(),
        dashboard
    );
}

#[test]
fn envoy_accepts_what_render_makes_of_the_mounted_configuration() {
    let compose = compose();
    let services = services(&compose);
    let data = tempfile::tempdir().unwrap();
    // Where the containers' paths are in this test.
    let here = |path: &str| -> String {
        match path {
            "/etc/parapet/envoy.yaml" => format!("{ROOT}/envoy/envoy.yaml"),
            "/usr/local/lib/parapet/parapet.wasm" => needed("PARAPET_WASM").to_string_lossy().into_owned(),
            other => other.replace("/var/lib/parapet", &data.path().to_string_lossy()),
        }
    };
    let render = services["render"];
    assert!(strings(&render["volumes"]).contains(&"./envoy/envoy.yaml:/etc/parapet/envoy.yaml:ro"));
    let mut environment = image_environment();
    assert_eq!(environment.len(), 3);
    for (name, value) in render["environment"].as_mapping().unwrap() {
        environment.insert(name.as_str().unwrap().to_owned(), interpolated(value.as_str().unwrap()));
    }
    let output = Command::new(env!("CARGO_BIN_EXE_parapet"))
        .args(strings(&render["command"]).into_iter().map(here))
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, here(value))))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", shown(&output));

    let command = strings(&services["envoy"]["command"]);
    let position = command.iter().position(|flag| *flag == "--config-path").unwrap();
    let config = here(command[position + 1]);
    let rendered: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    let resources = &rendered["static_resources"];
    assert_eq!(resources["listeners"][0]["address"]["socket_address"]["address"], "0.0.0.0");
    let servers: Vec<String> = resources["clusters"]
        .as_sequence()
        .unwrap()
        .iter()
        .filter_map(|cluster| cluster.get("load_assignment"))
        .map(|assignment| &assignment["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"])
        .map(|socket| format!("{}:{}", socket["address"].as_str().unwrap(), socket["port_value"].as_u64().unwrap()))
        .collect();
    assert_eq!(servers, ["vllm:8000", "api.openai.com:443", "llamaguard:8000", "sidecar:9090"]);
    for host in ["vllm", "llamaguard", "sidecar"] {
        assert!(services.contains_key(host), "no service has the name {host}");
    }

    let output = Command::new(needed("ENVOY_BIN"))
        .args(["--mode", "validate", "--disable-hot-restart", "--config-path", &config])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", shown(&output));
}
