//! The README's tables of keys and variables.

use std::collections::BTreeSet;
use std::process::Command;

use parapet_engine::config::{Config, InputMode, OutputMode};
use parapet_engine::identity;

use crate::commands::needed;
use crate::configuration::shipped;
use crate::page::{Page, code, codes};

#[test]
fn the_demonstration_keys_are_those_of_the_shipped_configuration() {
    let config = Config::parse(shipped().to_string().as_bytes()).unwrap();
    let rows = Page::open("README.md").rows("Key");
    assert_eq!(rows.len(), config.keys.len());
    for row in rows {
        let principal = identity::identify(&config, code(&row[0]).unwrap().as_bytes()).unwrap();
        assert_eq!(format!("{} / {}", principal.tenant, principal.user), row[1]);
        assert_eq!(Some(&*principal.policy), code(&row[2]));
        let policy = config.policy(&principal).unwrap();
        let said = |text: &str| row[3].contains(text);
        let input = policy.input_guard.as_ref().map(|guard| guard.mode);
        let as_alice = said("as alice");
        assert_eq!(said("input guard in parallel") || as_alice, input == Some(InputMode::Parallel), "{row:?}");
        assert_eq!(said("input guard first"), input == Some(InputMode::Blocking), "{row:?}");
        let output = policy.output_guard.as_ref().map(|guard| guard.mode);
        assert_eq!(said("`async`"), output == Some(OutputMode::Async), "{row:?}");
        assert_eq!(said("`hold`") || as_alice, output == Some(OutputMode::Hold), "{row:?}");
        let limits = policy.limits;
        assert_eq!(said("a minute"), limits.requests_per_minute.is_some(), "{row:?}");
        for number in [limits.requests_per_minute, limits.tokens_per_minute].into_iter().flatten() {
            assert!(row[3].replace(',', "").contains(&format!("{number} ")), "{row:?}");
        }
    }
}

/// The variables that a command's help names.
fn variables(command: &str) -> BTreeSet<String> {
    let output = Command::new(needed("PARAPET_BIN")).args([command, "--help"]).env_clear().output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let found: BTreeSet<String> =
        help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next()).map(str::to_owned).collect();
    assert!(found.contains("PARAPET_DATA_DIR"), "{help}");
    found
}

/// Read from the environment alone: keys, and what belongs to others.
const NO_FLAGS: [&str; 28] = [
    "VLLM_API_KEY",
    "LLAMAGUARD_API_KEY",
    "OPENAI_API_KEY",
    "LANGSMITH_API_KEY",
    "LANGSMITH_ENDPOINT",
    "LANGSMITH_PROJECT",
    "LANGSMITH_RUNS_ENDPOINTS",
    "LANGSMITH_TRACING_V2",
    "LANGSMITH_BATCH_INGEST_SIZE_LIMIT",
    "LANGSMITH_DISABLE_RUN_COMPRESSION",
    "LANGSMITH_WORKSPACE_ID",
    "LANGSMITH_TRACING",
    "LANGSMITH_TRACING_SAMPLING_RATE",
    "LANGSMITH_HIDE_INPUTS",
    "LANGSMITH_HIDE_OUTPUTS",
    "LANGSMITH_HIDE_METADATA",
    "LANGSMITH_TRACING_MODE",
    "LANGSMITH_OTEL_ENABLED",
    "LANGSMITH_OTEL_ONLY",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
];

#[test]
fn every_variable_is_documented_and_exists() {
    let rows = Page::open("README.md").rows("Variable");
    let mut documented: BTreeSet<&str> = rows.iter().flat_map(|row| codes(&row[0])).collect();
    assert!(documented.remove("RUST_LOG"), "the convention of Rust's loggers is not mentioned");
    let mut real: BTreeSet<String> = variables("up");
    real.extend(variables("sidecar"));
    real.extend(NO_FLAGS.map(str::to_owned));
    assert_eq!(documented, real.iter().map(String::as_str).collect());
}
