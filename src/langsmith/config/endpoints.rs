//! `LANGSMITH_RUNS_ENDPOINTS`: every run goes to each of them. As LangSmith's SDK reads it: an object of addresses with
//! their keys, which must not stand beside `LANGSMITH_ENDPOINT`, or a list of objects.

use serde::Deserialize;
use serde_json::Value;

use super::{ConfigError, Destination, Secret, base_url};

/// Each reads the spool by itself and keeps requests in flight.
const MAX: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    api_url: String,
    api_key: String,
    /// Instead of `LANGSMITH_PROJECT`.
    project_name: Option<String>,
}

pub(super) fn read(name: &str, value: &str, endpoint: Option<&str>) -> Result<Vec<Destination>, ConfigError> {
    let wrong = |what: String| ConfigError::Endpoints { name: name.to_owned(), what };
    // Neither serde's message nor the value is shown: both may hold a key.
    let parsed: Value = serde_json::from_str(value)
        .map_err(|error| wrong(format!("not JSON (line {}, column {})", error.line(), error.column())))?;
    let entries: Vec<Entry> = match parsed {
        Value::Object(pairs) => {
            if let Some(endpoint) = endpoint {
                return Err(ConfigError::Both { first: name.to_owned(), second: endpoint.to_owned() });
            }
            let entry = |(index, (api_url, key)): (usize, (String, Value))| match key {
                Value::String(api_key) => Ok(Entry { api_url, api_key, project_name: None }),
                _ => Err(wrong(format!("the key of entry {} is not a string", index + 1))),
            };
            pairs.into_iter().enumerate().map(entry).collect::<Result<_, _>>()?
        }
        Value::Array(list) => {
            let entry = |(index, entry): (usize, Value)| {
                let wrong = |_| {
                    wrong(format!(
                        "entry {} has not exactly `api_url`, `api_key` and, if need be, `project_name`, all strings",
                        index + 1
                    ))
                };
                serde_json::from_value(entry).map_err(wrong)
            };
            list.into_iter().enumerate().map(entry).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong("neither an object nor a list".to_owned())),
    };
    if entries.is_empty() || entries.len() > MAX {
        return Err(wrong(format!("{} endpoints, of 1 to {MAX}", entries.len())));
    }
    let destination = |(index, entry): (usize, Entry)| {
        let place = format!("{name}, entry {}", index + 1);
        Ok(Destination {
            name: String::new(),
            endpoint: base_url(&place, &entry.api_url)?,
            api_key: Some(Secret::new(&place, entry.api_key)?),
            workspace_id: None,
            project: entry.project_name.unwrap_or_default(),
        })
    };
    entries.into_iter().enumerate().map(destination).collect()
}

/// Names them by their addresses; the second with one address is `..._2`.
pub(super) fn name(destinations: &mut [Destination]) {
    const LONG: usize = 100;
    let mut taken: Vec<String> = Vec::new();
    for destination in destinations {
        let address = destination.endpoint.split_once("://").map_or(destination.endpoint.as_str(), |(_, rest)| rest);
        let plain = |letter: char| if letter.is_ascii_alphanumeric() || ".-".contains(letter) { letter } else { '_' };
        let base: String = address.chars().map(plain).take(LONG).collect();
        let numbered = |number: usize| if number == 1 { base.clone() } else { format!("{base}_{number}") };
        let free = (1..).map(numbered).find(|name| !taken.contains(name)).unwrap_or_default();
        taken.push(free.clone());
        destination.name = free;
    }
}
