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
        (&[("LANGSMITH_RUNS_ENDPOINTS", r#"{"http://127.0.0.1:1": "k"}"#)], true),
        (&[("LANGSMITH_API_KEY", "k"), ("LANGSMITH_TRACING", "false")], false),
        (&[("LANGSMITH_API_KEY", "k"), ("LANGCHAIN_TRACING_V2", "false")], false),
        (&[("LANGSMITH_API_KEY", "k"), ("LANGSMITH_TRACING_V2", "true"), ("LANGSMITH_TRACING", "false")], true),
        (&[("LANGSMITH_TRACING", "true")], false),
    ] {
        assert_eq!(config(variables).unwrap().uploads(), upload, "{variables:?}");
    }
}

#[test]
fn every_variable_is_read_under_both_names_and_the_new_one_wins() {
    for prefix in ["LANGSMITH", "LANGCHAIN"] {
        let read = |name: &str| {
            Some(match name.strip_prefix(prefix)?.strip_prefix('_')? {
                "ENDPOINT" => "http://127.0.0.1:1984/api/v1/".to_owned(),
                "PROJECT" => format!("{prefix} project"),
                "API_KEY" => "k".to_owned(),
                "WORKSPACE_ID" => "0198f0c1-0000-7000-8000-000000000001".to_owned(),
                "TRACING_SAMPLING_RATE" => "0.5".to_owned(),
                "HIDE_INPUTS" | "HIDE_OUTPUTS" | "HIDE_METADATA" | "DISABLE_RUN_COMPRESSION" => "TRUE".to_owned(),
                "BATCH_INGEST_SIZE_LIMIT" => "7".to_owned(),
                _ => return None,
            })
        };
        let config = Config::from_env(read).unwrap();
        let only = &config.destinations[0];
        assert_eq!(
            (only.endpoint.as_str(), only.name.as_str()),
            ("http://127.0.0.1:1984/api/v1", "127.0.0.1_1984_api_v1")
        );
        assert_eq!(only.api_key.as_ref().unwrap().expose(), "k");
        assert_eq!(only.workspace_id.as_deref(), Some("0198f0c1-0000-7000-8000-000000000001"));
        assert_eq!(
            (only.project.clone(), config.shape.project.clone()),
            (format!("{prefix} project"), format!("{prefix} project"))
        );
        assert_eq!((config.sampling_rate, config.batch_size, config.compress), (0.5, Some(7), false));
        assert!(config.shape.hide_inputs && config.shape.hide_outputs && config.shape.hide_metadata);
    }
    let both = config(&[("LANGCHAIN_PROJECT", "old"), ("LANGSMITH_PROJECT", "new"), ("LANGCHAIN_SESSION", "older")]);
    assert_eq!(both.unwrap().shape.project, "new");
    assert_eq!(config(&[("LANGCHAIN_SESSION", "older")]).unwrap().shape.project, "older");
}

#[test]
fn quotes_and_spaces_around_a_value_are_no_part_of_it() {
    let list = r#" '[{"api_url": "http://h", "api_key": "k"}]' "#;
    assert_eq!(config(&[("LANGSMITH_RUNS_ENDPOINTS", list)]).unwrap().destinations[0].endpoint, "http://h");
    for quote in ["\"", "'"] {
        let quoted = |value: &str| Some(format!(" {quote}{value}{quote}\n"));
        let config = Config::from_env(|name| match name {
            "LANGSMITH_API_KEY" => quoted("lsv2_k"),
            "LANGCHAIN_ENDPOINT" => quoted("http://127.0.0.1:1/"),
            "LANGSMITH_PROJECT" => quoted("my project"),
            "LANGSMITH_WORKSPACE_ID" => quoted("0198f0c1-0000-7000-8000-000000000001"),
            "LANGSMITH_TRACING_SAMPLING_RATE" => quoted("0.5"),
            "LANGSMITH_HIDE_INPUTS" => quoted(" true "),
            "LANGSMITH_HIDE_OUTPUTS" => quoted(""),
            _ => None,
        })
        .unwrap();
        let only = &config.destinations[0];
        assert_eq!((only.endpoint.as_str(), only.project.as_str()), ("http://127.0.0.1:1", "my project"));
        assert_eq!(only.api_key.as_ref().unwrap().expose(), "lsv2_k");
        assert_eq!((config.sampling_rate, config.shape.hide_inputs, config.shape.hide_outputs), (0.5, true, false));
    }
}

#[test]
fn replicas_have_their_own_keys_and_stable_names() {
    let object = r#"{"https://a.example/": "ka", "http://b.example:1": "kb"}"#;
    let list = r#"[{"api_url": "https://a.example", "api_key": "ka"},
        {"api_url": "https://a.example", "api_key": "k2", "project_name": "other"}]"#;
    for (value, expected) in [
        (
            object,
            [("https://a.example", "ka", "mine", "a.example"), ("http://b.example:1", "kb", "mine", "b.example_1")],
        ),
        (list, [("https://a.example", "ka", "mine", "a.example"), ("https://a.example", "k2", "other", "a.example_2")]),
    ] {
        let config = config(&[("LANGSMITH_RUNS_ENDPOINTS", value), ("LANGSMITH_PROJECT", "mine")]).unwrap();
        let found: Vec<_> = config
            .destinations
            .iter()
            .map(|to| {
                (to.endpoint.as_str(), to.api_key.as_ref().unwrap().expose(), to.project.as_str(), to.name.as_str())
            })
            .collect();
        let mut expected = expected.to_vec();
        // An object's order is nobody's promise.
        let mut found = found;
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}

#[test]
fn impossible_values_are_refused_by_name_and_keys_are_not_shown() {
    for (variables, expected) in [
        (&[("LANGSMITH_ENDPOINT", "api.smith")][..], "LANGSMITH_ENDPOINT is not an http"),
        (&[("LANGCHAIN_ENDPOINT", "https://user:secret@h")], "LANGCHAIN_ENDPOINT is not an http"),
        (&[("LANGSMITH_ENDPOINT", "https://h?secret")], "LANGSMITH_ENDPOINT is not an http"),
        (
            &[("LANGSMITH_TRACING_SAMPLING_RATE", "2")],
            "LANGSMITH_TRACING_SAMPLING_RATE is `2`; expected a number from 0 to 1",
        ),
        (&[("LANGCHAIN_TRACING_SAMPLING_RATE", "NaN")], "LANGCHAIN_TRACING_SAMPLING_RATE is `NaN`; expected a number"),
        (&[("LANGSMITH_WORKSPACE_ID", "mine")], "LANGSMITH_WORKSPACE_ID is `mine`; expected a workspace's UUID"),
        (&[("LANGSMITH_HIDE_INPUTS", "yes")], "LANGSMITH_HIDE_INPUTS is `yes`; expected `true` or `false`"),
        (&[("LANGCHAIN_TRACING_V2", "on")], "LANGCHAIN_TRACING_V2 is `on`; expected `true` or `false`"),
        (
            &[("LANGSMITH_BATCH_INGEST_SIZE_LIMIT", "0")],
            "LANGSMITH_BATCH_INGEST_SIZE_LIMIT is `0`; expected a number of runs",
        ),
        (&[("LANGSMITH_API_KEY", "top\nsecret")], "LANGSMITH_API_KEY is not a key"),
        (&[("LANGSMITH_RUNS_ENDPOINTS", "secret")], "LANGSMITH_RUNS_ENDPOINTS: not JSON (line 1, column 1)"),
        (&[("LANGSMITH_RUNS_ENDPOINTS", "{}")], "0 endpoints, of 1 to 8"),
        (&[("LANGSMITH_RUNS_ENDPOINTS", "7")], "neither an object nor a list"),
        (&[("LANGSMITH_RUNS_ENDPOINTS", r#"{"http://h": ["secret"]}"#)], "the key of entry 1 is not a string"),
        (
            &[("LANGSMITH_RUNS_ENDPOINTS", r#"{"secret": "secret"}"#)],
            "LANGSMITH_RUNS_ENDPOINTS, entry 1 is not an http",
        ),
        (&[("LANGSMITH_RUNS_ENDPOINTS", r#"{"http://h": ""}"#)], "LANGSMITH_RUNS_ENDPOINTS, entry 1 is not a key"),
        (&[("LANGSMITH_RUNS_ENDPOINTS", r#"[{"api_url": "http://h", "secret": 1}]"#)], "entry 1 has not exactly"),
        (
            &[("LANGSMITH_RUNS_ENDPOINTS", r#"{"http://h": "secret"}"#), ("LANGSMITH_ENDPOINT", "http://h")],
            "LANGSMITH_RUNS_ENDPOINTS and LANGSMITH_ENDPOINT are both set",
        ),
    ] {
        let error = config(variables).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} for {variables:?}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
    assert!(!format!("{:?}", config(&[("LANGSMITH_API_KEY", "hush")]).unwrap()).contains("hush"));
}

#[test]
fn sampling_follows_its_rate_and_the_id() {
    let config = Config { sampling_rate: 0.25, ..config(&[]).unwrap() };
    let ids: Vec<Uuid> = (0..4000_u128).map(Uuid::from_u128).collect();
    let taken = ids.iter().filter(|&&id| config.samples(id)).count();
    assert!((850..1150).contains(&taken), "{taken}");
    assert!(ids.iter().all(|&id| config.samples(id) == config.samples(id)));
    let nothing = Config { sampling_rate: 0.0, ..config };
    assert!(!ids.iter().any(|&id| nothing.samples(id)));
}
