//! What the `OTEL_*` variables say (OpenTelemetry specification, "OTLP Exporter Configuration" and "General SDK
//! Configuration"), and LangSmith's own about OpenTelemetry.

use std::fmt;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::tree::Shape;
use crate::langsmith::config as langsmith;

/// Where traces go.
#[derive(Debug, Clone, Default)]
pub struct Exports {
    /// Runs, to LangSmith's own API.
    pub langsmith: bool,
    /// Spans, by OTLP.
    pub otlp: Option<Config>,
}

#[derive(Clone)]
pub struct Config {
    /// The whole URL that is posted to.
    pub endpoint: Url,
    /// Their values may be keys: marked as sensitive.
    pub headers: HeaderMap,
    pub timeout: Duration,
    pub gzip: bool,
    /// A file of certificates to trust beside the system's.
    pub certificate: Option<String>,
    pub resource: Vec<(String, String)>,
    pub shape: Shape,
}

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Config").field("endpoint", &self.endpoint.as_str()).finish_non_exhaustive()
    }
}

/// None of these holds a value of a header: it may be a key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} is `{value}`; expected {expected}")]
    Invalid { name: String, value: String, expected: &'static str },
    #[error("{name} cannot be read: entry {entry} is not `name=value` with a name and a value that a header can carry")]
    Headers { name: String, entry: usize },
    #[error("{name} cannot be read: entry {entry} is not `key=value`, percent-encoded")]
    Attributes { name: String, entry: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    LangSmith,
    Otel,
    Hybrid,
}

type Variable = (String, String);

impl Exports {
    /// Reads the configuration through `get` (usually the environment). Empty values count as unset.
    ///
    /// OTLP is on when an endpoint for it is set; or, for LangSmith's own OTLP endpoint, when `LANGSMITH_TRACING_MODE`
    /// is `otel` or `hybrid` (or `LANGSMITH_OTEL_ENABLED` is true; with `LANGSMITH_OTEL_ONLY` it is `otel`). The mode
    /// `langsmith` turns it off, `otel` turns the upload of runs off.
    pub fn from_env(get: impl Fn(&str) -> Option<String>, langsmith: &langsmith::Config) -> Result<Self, ConfigError> {
        let read = |name: &str| {
            let value = get(name)?.trim().to_owned();
            (!value.is_empty()).then(|| (name.to_owned(), value))
        };
        let mode = mode(&read)?;
        let first = langsmith.destinations.first();
        let runs = first.is_some() && mode != Some(Mode::Otel);
        // What holds for traces alone wins over what holds for every signal.
        let signal = |name: &str| {
            read(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| read(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let own = match signal("ENDPOINT") {
            Some((name, value)) => Some(endpoint(name, value)?),
            None => None,
        };
        let for_langsmith = matches!(mode, Some(Mode::Otel | Mode::Hybrid));
        let to_langsmith = first.filter(|_| own.is_none() && for_langsmith);
        let off = mode == Some(Mode::LangSmith)
            || read("OTEL_SDK_DISABLED").is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
        let endpoint = match (own, to_langsmith) {
            (Some(endpoint), _) => endpoint,
            (None, Some(destination)) => {
                let url = format!("{}/otel/v1/traces", destination.endpoint);
                Url::parse(&url).map_err(|_| ConfigError::Invalid {
                    name: "LANGSMITH_ENDPOINT".to_owned(),
                    value: destination.endpoint.clone(),
                    expected: "an http or https URL",
                })?
            }
            (None, None) => return Ok(Self { langsmith: runs, otlp: None }),
        };
        if off || !exporter(read("OTEL_TRACES_EXPORTER"))? {
            return Ok(Self { langsmith: runs, otlp: None });
        }
        if let Some((name, value)) = signal("PROTOCOL")
            && value != "http/protobuf"
        {
            return Err(ConfigError::Invalid { name, value, expected: "http/protobuf, the only protocol spoken" });
        }
        let mut headers = match signal("HEADERS") {
            Some((name, value)) => headers(&name, &value)?,
            None => HeaderMap::new(),
        };
        if let Some(destination) = to_langsmith {
            langsmith_headers(&mut headers, destination);
        }
        let config = Config {
            endpoint,
            headers,
            timeout: timeout(signal("TIMEOUT"))?,
            gzip: compression(signal("COMPRESSION"))?,
            certificate: signal("CERTIFICATE").map(|(_, path)| path),
            resource: resource(&read)?,
            shape: Shape {
                runs: first.map_or_else(|| langsmith.shape.clone(), |first| langsmith.shape_for(first)),
                // Whoever gets the runs gets their content; a collector gets it when told so.
                content: content(read("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"))?
                    .unwrap_or(to_langsmith.is_some()),
                langsmith: for_langsmith,
            },
        };
        Ok(Self { langsmith: runs, otlp: Some(config) })
    }
}

fn mode(read: &impl Fn(&str) -> Option<Variable>) -> Result<Option<Mode>, ConfigError> {
    let find = |name: &str| read(&format!("LANGSMITH_{name}")).or_else(|| read(&format!("LANGCHAIN_{name}")));
    let on = |name: &str| find(name).is_some_and(|(_, value)| value.eq_ignore_ascii_case("true") || value == "1");
    if let Some((name, value)) = find("TRACING_MODE") {
        return match value.to_ascii_lowercase().as_str() {
            "langsmith" => Ok(Some(Mode::LangSmith)),
            "otel" => Ok(Some(Mode::Otel)),
            "hybrid" => Ok(Some(Mode::Hybrid)),
            _ => Err(ConfigError::Invalid { name, value, expected: "langsmith, otel or hybrid" }),
        };
    }
    Ok(match (on("OTEL_ENABLED"), on("OTEL_ONLY")) {
        (_, true) => Some(Mode::Otel),
        (true, false) => Some(Mode::Hybrid),
        (false, false) => None,
    })
}

/// The variable for every signal names a base, the one for traces the whole URL.
fn endpoint(name: String, value: String) -> Result<Url, ConfigError> {
    let whole = name.contains("TRACES");
    let url = if whole { value.clone() } else { format!("{}/v1/traces", value.trim_end_matches('/')) };
    match Url::parse(&url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() && url.password().is_none() => Ok(url),
        // A URL may hold a password: it is not shown.
        _ => Err(ConfigError::Invalid {
            name,
            value: "(not shown)".to_owned(),
            expected: "an http or https URL without a password, such as http://127.0.0.1:4318",
        }),
    }
}

fn exporter(variable: Option<Variable>) -> Result<bool, ConfigError> {
    let Some((name, value)) = variable else { return Ok(true) };
    let listed = |wanted: &str| value.split(',').any(|name| name.trim() == wanted);
    if listed("otlp") {
        Ok(true)
    } else if listed("none") {
        Ok(false)
    } else {
        Err(ConfigError::Invalid { name, value, expected: "otlp or none" })
    }
}

fn timeout(variable: Option<Variable>) -> Result<Duration, ConfigError> {
    const DEFAULT: Duration = Duration::from_secs(10);
    let Some((name, value)) = variable else { return Ok(DEFAULT) };
    match value.parse::<u64>() {
        Ok(milliseconds @ 1..=600_000) => Ok(Duration::from_millis(milliseconds)),
        _ => Err(ConfigError::Invalid { name, value, expected: "milliseconds from 1 to 600000" }),
    }
}

fn compression(variable: Option<Variable>) -> Result<bool, ConfigError> {
    match variable {
        None => Ok(false),
        Some((_, value)) if value == "gzip" => Ok(true),
        Some((_, value)) if value == "none" => Ok(false),
        Some((name, value)) => Err(ConfigError::Invalid { name, value, expected: "gzip or none" }),
    }
}

fn content(variable: Option<Variable>) -> Result<Option<bool>, ConfigError> {
    let Some((name, value)) = variable else { return Ok(None) };
    match value.to_ascii_lowercase().as_str() {
        "true" | "span_only" | "span_and_event" => Ok(Some(true)),
        "false" | "no_content" => Ok(Some(false)),
        _ => Err(ConfigError::Invalid {
            name,
            value,
            expected: "true, false, SPAN_ONLY, SPAN_AND_EVENT or NO_CONTENT (content is never put into events)",
        }),
    }
}

/// `name=value,...`, the values percent-encoded (W3C Baggage's form).
fn headers(variable: &str, text: &str) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    for (entry, pair) in text.split(',').enumerate().filter(|(_, pair)| !pair.trim().is_empty()) {
        let parsed = pair.split_once('=').and_then(|(name, value)| {
            let name = HeaderName::try_from(name.trim()).ok()?;
            let mut value = HeaderValue::try_from(decode(value.trim())?).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        let (name, value) =
            parsed.ok_or_else(|| ConfigError::Headers { name: variable.to_owned(), entry: entry + 1 })?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// What LangSmith's SDK sends to LangSmith's OTLP endpoint; a header that was given stays.
fn langsmith_headers(headers: &mut HeaderMap, destination: &langsmith::Destination) {
    let key = destination.api_key.as_ref().map(langsmith::Secret::expose);
    for (name, value) in [
        ("x-api-key", key),
        ("x-tenant-id", destination.workspace_id.as_deref()),
        ("langsmith-project", Some(destination.project.as_str())),
    ] {
        if let Some(mut value) = value.and_then(|value| HeaderValue::from_str(value).ok())
            && !headers.contains_key(name)
        {
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// The service's name comes first; what is given more than once counts as given last, and the name's own variable most.
fn resource(read: &impl Fn(&str) -> Option<Variable>) -> Result<Vec<(String, String)>, ConfigError> {
    let mut attributes: Vec<(String, String)> = vec![
        ("service.name".into(), "parapet".into()),
        ("service.version".into(), env!("CARGO_PKG_VERSION").into()),
        ("telemetry.sdk.name".into(), "parapet".into()),
        ("telemetry.sdk.language".into(), "rust".into()),
        ("telemetry.sdk.version".into(), env!("CARGO_PKG_VERSION").into()),
    ];
    let mut put = |key: String, value: String| match attributes.iter_mut().find(|(known, _)| *known == key) {
        Some((_, old)) => *old = value,
        None => attributes.push((key, value)),
    };
    if let Some((name, text)) = read("OTEL_RESOURCE_ATTRIBUTES") {
        for (entry, pair) in text.split(',').enumerate().filter(|(_, pair)| !pair.trim().is_empty()) {
            let parsed =
                pair.split_once('=').and_then(|(key, value)| Some((decode(key.trim())?, decode(value.trim())?)));
            let (key, value) = parsed
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| ConfigError::Attributes { name: name.clone(), entry: entry + 1 })?;
            put(key, value);
        }
    }
    if let Some((_, service)) = read("OTEL_SERVICE_NAME") {
        put("service.name".into(), service);
    }
    Ok(attributes)
}

/// Percent-decodes; none for what is not UTF-8 behind it.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match (byte, after) {
            (b'%', [high, low, ..]) => {
                char::from(*high).to_digit(16).zip(char::from(*low).to_digit(16)).map(|(high, low)| high << 4 | low)
            }
            _ => None,
        };
        match escaped.and_then(|escaped| u8::try_from(escaped).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
