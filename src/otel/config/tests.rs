use super::*;

fn exports(variables: &[(&str, &str)]) -> Result<Exports, ConfigError> {
    let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let langsmith = langsmith::Config::from_env(get).unwrap();
    Exports::from_env(get, &langsmith)
}

fn otlp(variables: &[(&str, &str)]) -> Config {
    exports(variables).unwrap().otlp.unwrap()
}

const BASE: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/");
const KEY: (&str, &str) = ("LANGSMITH_API_KEY", "the-key");

#[test]
fn the_variables_say_who_gets_traces() {
    for (variables, langsmith, endpoint) in [
        (&[][..], false, None),
        (&[KEY], true, None),
        (&[BASE], false, Some("http://127.0.0.1:4318/v1/traces")),
        (&[KEY, BASE], true, Some("http://127.0.0.1:4318/v1/traces")),
        (
            &[BASE, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c.test/own/path")],
            false,
            Some("https://c.test/own/path"),
        ),
        (&[KEY, ("LANGSMITH_TRACING_MODE", "otel")], false, Some("https://api.smith.langchain.com/otel/v1/traces")),
        (&[KEY, BASE, ("LANGSMITH_TRACING_MODE", "otel")], false, Some("http://127.0.0.1:4318/v1/traces")),
        (
            &[KEY, ("LANGCHAIN_TRACING_MODE", "Hybrid"), ("LANGSMITH_ENDPOINT", "http://l.test/api/")],
            true,
            Some("http://l.test/api/otel/v1/traces"),
        ),
        (&[KEY, BASE, ("LANGSMITH_TRACING_MODE", "langsmith")], true, None),
        (&[KEY, ("LANGSMITH_OTEL_ENABLED", "true")], true, Some("https://api.smith.langchain.com/otel/v1/traces")),
        (
            &[KEY, ("LANGSMITH_OTEL_ENABLED", "true"), ("LANGSMITH_OTEL_ONLY", "true")],
            false,
            Some("https://api.smith.langchain.com/otel/v1/traces"),
        ),
        (&[("LANGSMITH_OTEL_ENABLED", "true")], false, None),
        (&[BASE, ("OTEL_SDK_DISABLED", "TRUE")], false, None),
        (&[BASE, ("OTEL_TRACES_EXPORTER", "none")], false, None),
        (&[BASE, ("OTEL_TRACES_EXPORTER", "console, otlp")], false, Some("http://127.0.0.1:4318/v1/traces")),
        (
            &[BASE, ("LANGSMITH_API_KEY", " "), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")],
            false,
            Some("http://127.0.0.1:4318/v1/traces"),
        ),
    ] {
        let found = exports(variables).unwrap();
        let url = found.otlp.as_ref().map(|config| config.endpoint.as_str());
        assert_eq!((found.langsmith, url), (langsmith, endpoint), "{variables:?}");
    }
}

#[test]
fn headers_time_compression_and_resource_are_read() {
    let config = otlp(&[
        BASE,
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Basic%20YTpi, x-tenant = a%2Cb ,"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1500"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment.name=a%20b"),
    ]);
    let header = |name: &str| config.headers.get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!((header("authorization").as_str(), header("x-tenant").as_str()), ("Basic YTpi", "a,b"));
    assert_eq!((config.timeout, config.gzip), (Duration::from_millis(1500), true));
    let resource = |config: &Config, key: &str| {
        config.resource.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
    };
    assert_eq!(resource(&config, "service.name").as_deref(), Some("other"));
    assert_eq!(resource(&config, "deployment.environment.name").as_deref(), Some("a b"));
    let plain = otlp(&[BASE, ("OTEL_SERVICE_NAME", "edge"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other")]);
    assert_eq!(resource(&plain, "service.name").as_deref(), Some("edge"));
    assert_eq!((plain.timeout, plain.gzip, plain.headers.len()), (Duration::from_secs(10), false, 0));
}

#[test]
fn langsmiths_own_endpoint_gets_its_key_and_its_content() {
    let config = otlp(&[KEY, ("LANGSMITH_TRACING_MODE", "otel"), ("LANGSMITH_PROJECT", "demo")]);
    assert_eq!(config.headers["x-api-key"], "the-key");
    assert_eq!(config.headers["langsmith-project"], "demo");
    assert!(config.shape.content && config.shape.langsmith);
    // A collector is somebody else.
    let config = otlp(&[KEY, BASE, ("LANGSMITH_TRACING_MODE", "otel")]);
    assert!(config.headers.is_empty() && !config.shape.content && config.shape.langsmith);
    let capture = |value| otlp(&[BASE, ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", value)]).shape.content;
    for (value, content) in
        [("true", true), ("SPAN_ONLY", true), ("SPAN_AND_EVENT", true), ("false", false), ("NO_CONTENT", false)]
    {
        assert_eq!(capture(value), content, "{value}");
    }
}

#[test]
fn impossible_values_are_refused_by_name_and_secrets_are_not_shown() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user:secret@collector"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,x y=secret"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=secret%0a"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("LANGSMITH_TRACING_MODE", "both"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "EVENT_ONLY"),
    ] {
        let error = exports(&[BASE, (name, value)]).unwrap_err().to_string();
        assert!(error.contains(name) && !error.contains("secret"), "{error}");
    }
    let config = otlp(&[BASE, ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hush")]);
    assert!(!format!("{config:?} {:?}", config.headers).contains("hush"));
}
