use super::*;

/// A whole, valid configuration.
const VALID: &str = r#"{
  "providers": [
    {"name": "vllm", "cluster": "vllm", "authority": "h:1", "api_key_env": "V", "price": {"input": "0.1", "output": 0.2}},
    {"name": "openai", "cluster": "openai", "authority": "h:2"}],
  "models": [{"name": "m", "aliases": ["n"], "cluster": "c", "chain": [{"provider": "vllm", "model": "x"}, {"provider": "openai", "model": "y"}]}],
  "guard": {"cluster": "g", "authority": "h:3", "model": "lg"},
  "keys": [{"sha256": "32a642c5fd761670c7f9989b70138c93c56ea519529eb544d46b91a8e59f3075", "tenant": "t", "user": "u", "policy": "p"}],
  "policies": {"p": {
    "input_guard": {"mode": "parallel", "categories": {"flag": ["S6"]}},
    "output_guard": {"mode": "hold", "window_tokens": [8]},
    "cache": {"ttl_s": 60}, "limits": {"requests_per_minute": 5}}}
}"#;

fn mistake(replace: &str, by: &str) -> ConfigError {
    let json = VALID.replacen(replace, by, 1);
    assert_ne!(json, VALID, "{replace} is not in the configuration");
    Config::parse(json.as_bytes()).unwrap_err()
}

#[test]
fn a_valid_configuration_resolves_keys_models_and_aliases() {
    let config = Config::parse(VALID.as_bytes()).unwrap();
    let principal = crate::identity::identify(&config, b"sk-demo-alice").unwrap();
    assert_eq!((&*principal.tenant, &*principal.user), ("t", "u"));
    assert_eq!(crate::identity::identify(&config, b"sk-demo-alicf"), None);
    assert_eq!(config.model("n").map(|model| &*model.name), Some("m"));
    assert_eq!(config.key_variables().collect::<Vec<_>>(), ["V"]);
}

#[test]
fn every_mistake_names_its_key_and_what_was_expected() {
    for (replace, by, path, message) in [
        (
            "\"mode\": \"parallel\"",
            "\"mode\": \"parallell\"",
            "policies.p.input_guard.mode",
            "expected one of `parallel`, `blocking`, `off`; got `parallell`",
        ),
        (
            "\"ttl_s\"",
            "\"ttl\"",
            "policies.p.cache.ttl",
            "unknown key `ttl`; expected one of `ttl_s`, `max_temperature`",
        ),
        ("\"limits\"", "\"limit\"", "policies.p.limit", "unknown key"),
        ("\"S6\"", "\"S60\"", "policies.p.input_guard.categories.flag[0]", "expected S1 to S14"),
        ("\"window_tokens\": [8]", "\"window_tokens\": [0]", "policies.p.output_guard.window_tokens", "1 or more"),
        (
            "\"requests_per_minute\": 5",
            "\"requests_per_minute\": 0",
            "policies.p.limits.requests_per_minute",
            "no limit",
        ),
        (
            "\"requests_per_minute\": 5",
            "\"requests_per_minute\": -5",
            "policies.p.limits.requests_per_minute",
            "0 or more; got `-5`",
        ),
        ("\"ttl_s\": 60", "\"ttl_s\": 60, \"ttl_s\": 61", "policies.p.cache.ttl_s", "twice"),
        ("\"ttl_s\": 60", "\"max_temperature\": 0", "policies.p.cache", "missing key `ttl_s`"),
        ("\"ttl_s\": 60", "\"ttl_s\": 0.5", "policies.p.cache.ttl_s", "got a number with a fraction"),
        ("\"aliases\": [\"n\"]", "\"aliases\": \"n\"", "models[0].aliases", "expected a list; got `n`"),
        ("{\"ttl_s\": 60}", "[]", "policies.p.cache", "expected a section; got a list"),
        ("\"limits\"", "\"hedge_after_ms\": 0, \"limits\"", "policies.p.hedge_after_ms", "1 to 3600000"),
        ("\"limits\"", "\"hedge_budget_percent\": 0, \"limits\"", "policies.p.hedge_budget_percent", "1 to 100"),
        ("\"limits\"", "\"hedge_budget_percent\": 101, \"limits\"", "policies.p.hedge_budget_percent", "1 to 100"),
        ("\"limits\"", "\"deadline_ms\": 3600001, \"limits\"", "policies.p.deadline_ms", "1 to 3600000"),
        ("\"limits\"", "\"spill\": {\"waiting\": 1}, \"limits\"", "policies.p.spill", "there is no `sidecar`"),
        ("\"guard\":", "\"first_token\": {\"floor_ms\": 6000}, \"guard\":", "first_token", "in this order"),
        ("\"guard\":", "\"first_token\": {\"ceiling_ms\": 10}, \"guard\":", "first_token", "in this order"),
        ("\"policy\": \"p\"", "\"policy\": \"q\"", "keys[0].policy", "expected one of: p"),
        ("32a642", "xxa642", "keys[0].sha256", "hexadecimal"),
        (
            "\"provider\": \"openai\"",
            "\"provider\": \"azure\"",
            "models[0].chain[1].provider",
            "no provider named `azure`",
        ),
        ("\"aliases\": [\"n\"]", "\"aliases\": [\"m\"]", "models[0]", "stands twice"),
        ("\"name\": \"openai\"", "\"name\": \"vllm\"", "providers[1].name", "stands twice"),
        ("\"output\": 0.2", "\"output\": -1", "providers[0].price.output", "0 or more"),
        ("\"model\": \"lg\"", "\"model\": \"lg\", \"base_path\": \"v1/\"", "guard.base_path", "`/v1`"),
        (
            "\"model\": \"lg\"",
            "\"model\": \"lg\", \"dialect\": \"llama_guard_2\"",
            "guard.dialect",
            "expected one of `llama_guard_3`, `llama_guard_3_1b`, `llama_guard_4`, `qwen3_guard`, `shield_gemma`; got `llama_guard_2`",
        ),
        (
            "\"mode\": \"hold\"",
            "\"mode\": \"hold\", \"threshold\": 1.5",
            "policies.p.output_guard.threshold",
            "probability",
        ),
        (
            "\"mode\": \"hold\"",
            "\"mode\": \"hold\", \"timeout_ms\": 0",
            "policies.p.output_guard.timeout_ms",
            "at least 1",
        ),
    ] {
        let error = mistake(replace, by);
        assert_eq!(error.path, path, "{error}");
        assert!(error.message.contains(message), "{error}");
    }
}

#[test]
fn spilling_needs_a_threshold_and_somebody_to_spill_to() {
    let with_sidecar =
        VALID.replacen("\"guard\":", "\"sidecar\": {\"cluster\": \"s\", \"authority\": \"h:4\"}, \"guard\":", 1);
    for (spill, path) in [
        ("{\"waiting\": 1}", None),
        ("{\"kv_cache\": \"0.9\"}", None),
        ("{}", Some("policies.p.spill")),
        ("{\"waiting\": 0}", Some("policies.p.spill")),
        ("{\"kv_cache\": 1.5}", Some("policies.p.spill.kv_cache")),
        ("{\"kv_cache\": 0}", Some("policies.p.spill.kv_cache")),
    ] {
        let json = with_sidecar.replacen("\"limits\"", &format!("\"spill\": {spill}, \"limits\""), 1);
        let config = Config::parse(json.as_bytes());
        assert_eq!(config.as_ref().err().map(|error| &*error.path), path, "{spill}");
        assert!(config.is_err() || config.unwrap().watches_load());
    }
    let chain = r#", {"provider": "openai", "model": "y"}]"#;
    let alone =
        VALID.replacen(chain, "]", 1).replacen("\"cluster\": \"c\"", "\"cluster\": \"c\", \"spill_cluster\": \"d\"", 1);
    assert_eq!(Config::parse(alone.as_bytes()).unwrap_err().path, "models[0].spill_cluster");
}

#[test]
fn off_is_off_also_where_yaml_made_a_boolean_of_it() {
    let json = VALID.replacen("\"mode\": \"parallel\"", "\"mode\": false", 1);
    let config = Config::parse(json.as_bytes()).unwrap();
    assert_eq!(config.policies["p"].input_guard.as_ref().map(|guard| guard.mode), Some(InputMode::Off));
    assert!(mistake("\"mode\": \"hold\"", "\"mode\": true").message.contains("got `true`"));
}

#[test]
fn a_guard_speaks_llama_guard_3_unless_told_otherwise() {
    let dialect = |json: &str| Config::parse(json.as_bytes()).unwrap().dialect();
    assert_eq!(dialect(VALID), Dialect::LlamaGuard3);
    let other = VALID.replacen("\"model\": \"lg\"", "\"model\": \"lg\", \"dialect\": \"qwen3_guard\"", 1);
    assert_eq!(dialect(&other), Dialect::Qwen3Guard);
}

#[test]
fn a_guard_that_is_not_there_cannot_be_asked() {
    let error = mistake(r#""guard": {"cluster": "g", "authority": "h:3", "model": "lg"},"#, "");
    assert_eq!((&*error.path, &*error.message), ("policies.p.input_guard", "there is no `guard` to ask"));
}

#[test]
fn a_section_without_a_value_is_as_one_that_is_not_there() {
    let json = VALID.replacen(r#""limits": {"requests_per_minute": 5}"#, r#""limits": null"#, 1);
    assert_eq!(Config::parse(json.as_bytes()).unwrap().policies["p"].limits, Limits::default());
}

#[test]
fn what_is_no_configuration_at_all_says_so() {
    for (text, message) in [("{\"keys\": [}", "line 1 column"), ("[]", "google.protobuf.Struct"), ("{}", "missing key")]
    {
        let error = Config::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.path, ".", "{text}");
        assert!(error.message.contains(message), "{error}");
    }
}
