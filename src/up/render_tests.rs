use std::collections::BTreeMap;

use super::*;

/// The file that operators get.
const SHIPPED: &str = include_str!("../../envoy/envoy.yaml");

fn rendering() -> Rendering {
    Rendering {
        listener: "127.0.0.1:18080".parse().unwrap(),
        admin: "127.0.0.1:19901".parse().unwrap(),
        sidecar: None,
        vllm: Upstream::default(),
        openai: Upstream::default(),
        llamaguard: Upstream::default(),
        vllm_health: None,
        ca_file: None,
        module: "/run/parapet-0123.wasm".into(),
        access_log: "/data/log/access.jsonl".into(),
    }
}

fn upstream(variable: &'static str, urls: &str) -> Upstream {
    Upstream { endpoints: Endpoint::parse_list(variable, urls).unwrap(), model: None }
}

fn rendered(template: &str, rendering: &Rendering) -> Value {
    let mut document = Document::parse(template).unwrap();
    render(&mut document, rendering).unwrap();
    serde_yaml_ng::from_str(&document.to_yaml()).unwrap()
}

/// Every leaf of the tree by its path: `static_resources.clusters.0.name` → `vllm`.
fn leaves(value: &Value) -> BTreeMap<String, String> {
    fn collect(value: &Value, path: &str, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Mapping(mapping) if !mapping.is_empty() => {
                for (key, inner) in mapping {
                    collect(inner, &format!("{path}.{}", key.as_str().unwrap()), into);
                }
            }
            Value::Sequence(items) if !items.is_empty() => {
                for (index, inner) in items.iter().enumerate() {
                    collect(inner, &format!("{path}.{index}"), into);
                }
            }
            leaf => {
                into.insert(path.to_owned(), serde_yaml_ng::to_string(leaf).unwrap().trim_end().to_owned());
            }
        }
    }
    let mut all = BTreeMap::new();
    collect(value, "", &mut all);
    all
}

/// What rendering changed, as `path: new` lines, paths shortened to where the eye needs them.
fn changes(rendering: &Rendering) -> Vec<String> {
    let before = leaves(&serde_yaml_ng::from_str(SHIPPED).unwrap());
    let after = leaves(&rendered(SHIPPED, rendering));
    let shorten = |path: &str| {
        let path = path.replace(".static_resources.", "");
        match path.split_once(".configuration.value.") {
            Some((filter, key)) => {
                let filter = if filter.starts_with("listeners") { "gateway" } else { "provider" };
                format!("{filter}:{key}")
            }
            None => path,
        }
    };
    let mut lines: Vec<String> = after
        .iter()
        .filter(|(path, value)| before.get(*path) != Some(value))
        .map(|(path, value)| format!("{}: {value}", shorten(path)))
        .chain(before.keys().filter(|path| !after.contains_key(*path)).map(|path| format!("{}: gone", shorten(path))))
        // The provider filter has the gateway's section, once for each chain.
        .filter(|line| !line.starts_with("provider:"))
        .collect();
    lines.sort();
    lines
}

fn cluster<'a>(config: &'a Value, name: &str) -> &'a Value {
    let clusters = config["static_resources"]["clusters"].as_sequence().unwrap();
    clusters.iter().find(|cluster| cluster["name"] == name).unwrap()
}

/// `host:port provider` of each endpoint.
fn endpoints(config: &Value, name: &str) -> Vec<String> {
    let hosts = cluster(config, name)["load_assignment"]["endpoints"][0]["lb_endpoints"].as_sequence().unwrap();
    hosts
        .iter()
        .map(|host| {
            let socket = &host["endpoint"]["address"]["socket_address"];
            let provider = host["metadata"]["filter_metadata"]["parapet"]["provider"].as_str().unwrap_or("-");
            format!("{}:{} {provider}", socket["address"].as_str().unwrap(), socket["port_value"].as_u64().unwrap())
        })
        .collect()
}

fn gateway_policy(config: &Value) -> &Value {
    let connection_manager =
        &config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    &connection_manager["http_filters"][0]["typed_config"]["config"]["configuration"]["value"]
}

#[test]
fn only_ports_and_paths_change_when_nothing_is_given() {
    let hcm = "listeners.0.filter_chains.0.filters.0.typed_config";
    let upstream =
        "typed_extension_protocol_options.envoy.extensions.upstreams.http.v3.HttpProtocolOptions.http_filters";
    let module = "typed_config.config.vm_config.code.local.filename: /run/parapet-0123.wasm";
    let mut expected = vec![
        ".admin.address.socket_address.port_value: 19901".to_owned(),
        "listeners.0.address.socket_address.port_value: 18080".to_owned(),
        format!("{hcm}.access_log.0.typed_config.path: /data/log/access.jsonl"),
        format!("{hcm}.http_filters.0.{module}"),
        format!("clusters.0.{upstream}.0.{module}"),
        format!("clusters.1.{upstream}.0.{module}"),
    ];
    expected.sort();
    assert_eq!(changes(&rendering()), expected);
}

#[test]
fn servers_are_put_where_the_router_and_the_filters_look() {
    let mut rendering = rendering();
    rendering.vllm = upstream("VLLM_URL", "http://gpu:8000/v1");
    rendering.llamaguard = upstream("LLAMAGUARD_URL", "http://guard:8001/api");
    rendering.openai = upstream("OPENAI_BASE_URL", "http://127.0.0.1:8002/openai/v1");
    rendering.sidecar = Some(Endpoint::local(9191));
    let config = rendered(SHIPPED, &rendering);

    assert_eq!(endpoints(&config, "vllm"), ["gpu:8000 vllm"]);
    assert_eq!(endpoints(&config, "openai"), ["127.0.0.1:8002 openai"]);
    assert_eq!(endpoints(&config, "llamaguard"), ["guard:8001 -"]);
    assert_eq!(endpoints(&config, "sidecar"), ["127.0.0.1:9191 -"]);
    assert!(cluster(&config, "openai").get("transport_socket").is_none());

    let filter_lines: Vec<String> =
        changes(&rendering).into_iter().filter(|line| line.starts_with("gateway:")).collect();
    assert_eq!(
        filter_lines,
        [
            "gateway:guard.authority: guard:8001",
            "gateway:guard.base_path: /api",
            "gateway:providers.0.authority: gpu:8000",
            "gateway:providers.1.authority: 127.0.0.1:8002",
            "gateway:providers.1.base_path: /openai/v1",
            "gateway:sidecar.authority: 127.0.0.1:9191",
        ]
    );
}

#[test]
fn every_filter_gets_the_same_section() {
    let mut rendering = rendering();
    rendering.vllm = upstream("VLLM_URL", "http://gpu:8000");
    rendering.vllm.model = Some("qwen".to_owned());
    let mut document = Document::parse(SHIPPED).unwrap();
    render(&mut document, &rendering).unwrap();
    let sections: Vec<&Value> = document.filters().into_iter().map(|filter| &filter["configuration"]).collect();
    assert_eq!(sections.len(), 3);
    assert!(sections.iter().all(|section| *section == sections[0]));
}

#[test]
fn replicas_keep_the_metadata_of_the_first() {
    let mut rendering = rendering();
    rendering.vllm = upstream("VLLM_URL", "http://a:8000,http://b:8001,http://[::1]:8002");
    let config = rendered(SHIPPED, &rendering);
    assert_eq!(endpoints(&config, "vllm"), ["a:8000 vllm", "b:8001 vllm", "::1:8002 vllm"]);
    assert_eq!(gateway_policy(&config)["providers"][0]["authority"], "a:8000");
}

#[test]
fn another_replica_is_tried_before_the_next_provider() {
    let mut rendering = rendering();
    let attempts = |rendering: &Rendering, chain: &str| -> Vec<String> {
        let options = cluster(&rendered(SHIPPED, rendering), chain)["typed_extension_protocol_options"].clone();
        leaves(&options)
            .into_iter()
            .filter(|(path, _)| path.ends_with(".num_retries") || path.ends_with(".update_frequency"))
            .map(|(path, value)| format!("{} {value}", path.rsplit('.').next().unwrap()))
            .collect()
    };
    rendering.vllm = upstream("VLLM_URL", "http://a:8000");
    assert_eq!(attempts(&rendering, "vllm_then_openai"), ["num_retries 1", "update_frequency 1"]);
    rendering.vllm = upstream("VLLM_URL", "http://a:8000,http://b:8000");
    assert_eq!(attempts(&rendering, "vllm_then_openai"), ["num_retries 2", "update_frequency 2"]);
    assert_eq!(attempts(&rendering, "only_openai"), ["num_retries 1"]);
}

#[test]
fn the_servers_that_are_checked_are_asked_by_their_own_names() {
    let mut rendering = rendering();
    rendering.vllm = upstream("VLLM_URL", "http://a:8000,http://b:80");
    rendering.openai = upstream("OPENAI_BASE_URL", "https://api.example");
    let config = rendered(SHIPPED, &rendering);
    let host = |name: &str, index: usize| {
        cluster(&config, name)["load_assignment"]["endpoints"][0]["lb_endpoints"][index]["endpoint"].clone()
    };
    assert_eq!(host("vllm", 0)["health_check_config"]["hostname"], "a:8000");
    assert_eq!(host("vllm", 1)["health_check_config"]["hostname"], "b");
    assert!(host("openai", 0).get("health_check_config").is_none());
    assert!(cluster(&config, "openai").get("health_checks").is_none(), "OpenAI has no /health, and counts calls");
}

#[test]
fn health_checks_go_where_the_environment_says_or_are_off() {
    let mut rendering = rendering();
    rendering.vllm_health = Some(HealthCheck::Path("/v1/models".to_owned()));
    assert!(changes(&rendering).contains(&"clusters.2.health_checks.0.http_health_check.path: /v1/models".to_owned()));
    rendering.vllm_health = Some(HealthCheck::Off);
    let config = rendered(SHIPPED, &rendering);
    assert!(cluster(&config, "vllm").get("health_checks").is_none());
    assert!(cluster(&config, "vllm")["common_lb_config"].get("ignore_new_hosts_until_first_hc").is_none());
    assert!(cluster(&config, "llamaguard").get("health_checks").is_some());
}

#[test]
fn https_verifies_the_name_and_http_has_no_tls() {
    let sans = |config: &Value, name: &str| -> Vec<String> {
        let validation =
            cluster(config, name)["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"]
                .clone();
        let sans = validation["match_typed_subject_alt_names"].as_sequence().unwrap().clone();
        sans.iter()
            .map(|san| format!("{} {}", san["san_type"].as_str().unwrap(), san["matcher"]["exact"].as_str().unwrap()))
            .collect()
    };
    // (VLLM_URL, sni, auto_host_sni, names that are accepted)
    type Row = (&'static str, Option<&'static str>, Option<bool>, &'static [&'static str]);
    let table: [Row; 4] = [
        ("https://gpu.example/v1", Some("gpu.example"), None, &["DNS gpu.example"]),
        ("https://gpu.example:1,https://gpu.example:2", Some("gpu.example"), None, &["DNS gpu.example"]),
        ("https://a.example,https://b.example", None, Some(true), &["DNS a.example", "DNS b.example"]),
        ("https://10.0.0.7:8443", None, None, &["IP_ADDRESS 10.0.0.7"]),
    ];
    for (urls, sni, auto_host_sni, names) in table {
        let mut rendering = rendering();
        rendering.vllm = upstream("VLLM_URL", urls);
        let config = rendered(SHIPPED, &rendering);
        let socket = &cluster(&config, "vllm")["transport_socket"];
        let context = &socket["typed_config"];
        assert_eq!(socket["name"], "envoy.transport_sockets.tls", "{urls}");
        assert_eq!(context.get("sni").and_then(Value::as_str), sni, "{urls}");
        assert_eq!(context.get("auto_host_sni").and_then(Value::as_bool), auto_host_sni, "{urls}");
        assert_eq!(sans(&config, "vllm"), names, "{urls}");
    }
}

#[test]
fn a_tls_section_keeps_what_is_not_about_the_name() {
    let template = SHIPPED.replace(
        "          common_tls_context:\n            validation_context:\n",
        "          common_tls_context:\n            tls_certificates: [{certificate_chain: {filename: /c.pem}}]\n            validation_context:\n",
    );
    assert_ne!(template, SHIPPED);
    let mut rendering = rendering();
    rendering.openai = upstream("OPENAI_BASE_URL", "https://llm.example/openai/v1");
    for (ca_file, expected) in [(None, "/etc/ssl/certs/ca-certificates.crt"), (Some("/ca.pem"), "/ca.pem")] {
        rendering.ca_file = ca_file.map(PathBuf::from);
        let config = rendered(&template, &rendering);
        let context = &cluster(&config, "openai")["transport_socket"]["typed_config"];
        assert_eq!(context["sni"], "llm.example");
        let common = &context["common_tls_context"];
        assert_eq!(common["tls_certificates"][0]["certificate_chain"]["filename"], "/c.pem");
        assert_eq!(common["validation_context"]["trusted_ca"]["filename"], expected);
        assert_eq!(common["validation_context"]["match_typed_subject_alt_names"][0]["matcher"]["exact"], "llm.example");
    }
}

#[test]
fn a_model_that_clients_do_not_know_yet_becomes_an_alias() {
    // (VLLM_MODEL, OPENAI_MODEL, aliases of the first model, aliases of the second)
    let shipped = ["meta-llama/Llama-3-8B-Instruct", "llama-3-8b-instruct"];
    let table: [(&str, &str, &[&str], &[&str]); 3] = [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "gpt-4o-mini", &shipped, &[]),
        ("llama-3-8b-instruct", "gpt-4o-mini", &shipped, &[]),
        ("qwen", "gpt-4.1", &["meta-llama/Llama-3-8B-Instruct", "llama-3-8b-instruct", "qwen"], &["gpt-4.1"]),
    ];
    for (vllm, openai, first, second) in table {
        let mut rendering = rendering();
        rendering.vllm.model = Some(vllm.to_owned());
        rendering.openai.model = Some(openai.to_owned());
        rendering.llamaguard.model = Some("guard-x".to_owned());
        let config = rendered(SHIPPED, &rendering);
        let policy = gateway_policy(&config);
        let aliases = |index: usize| -> Vec<String> {
            let aliases =
                policy["models"][index].get("aliases").and_then(Value::as_sequence).cloned().unwrap_or_default();
            aliases.iter().map(|alias| alias.as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(policy["models"][0]["chain"][0]["model"], vllm);
        assert_eq!(policy["models"][0]["chain"][1]["model"], openai);
        assert_eq!(policy["models"][1]["chain"][0]["model"], openai);
        assert_eq!(aliases(0), first, "{vllm}");
        assert_eq!(aliases(1), second, "{openai}");
        assert_eq!(policy["guard"]["model"], "guard-x");
    }
}

#[test]
fn a_file_without_our_parts_stays_as_it_is() {
    let template = "static_resources:\n  clusters:\n  - name: mine\n    connect_timeout: 1s\n";
    let mut rendering = rendering();
    rendering.vllm = upstream("VLLM_URL", "http://gpu:8000");
    assert_eq!(rendered(template, &rendering), serde_yaml_ng::from_str::<Value>(template).unwrap());
}

#[test]
fn a_filter_of_another_module_keeps_its_file() {
    let template = r#"
static_resources:
  listeners:
  - name: mine
    filters:
    - "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
      config: {root_id: other, vm_config: {code: {local: {filename: /other.wasm}}}}
    access_log:
    - "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
      path: /mine.log
"#;
    assert_eq!(rendered(template, &rendering()), serde_yaml_ng::from_str::<Value>(template).unwrap());
}

#[test]
fn a_cluster_without_a_place_for_addresses_is_refused_by_name() {
    let mut document = Document::parse("static_resources: {clusters: [{name: vllm, type: EDS}]}").unwrap();
    let mut rendering = rendering();
    rendering.vllm = upstream("VLLM_URL", "http://gpu:8000");
    assert_eq!(render(&mut document, &rendering), Err(RenderError::NoEndpoint("vllm".to_owned())));
}
