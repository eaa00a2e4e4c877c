//! docs/configuration.md against the engine, which reads the shipped section with one change at a time.

use std::collections::{BTreeMap, BTreeSet};

use parapet_engine::config::Config;
use serde_json::{Map, Value, json};

use crate::page::{Page, code, codes};

struct Key {
    pattern: String,
    kind: String,
    default: String,
}

fn documented() -> Vec<Key> {
    let rows = Page::open("docs/configuration.md").rows("Key");
    let key = |row: Vec<String>| Key {
        pattern: code(&row[0]).unwrap_or_else(|| panic!("{row:?}")).to_owned(),
        kind: row[1].clone(),
        default: row[2].clone(),
    };
    rows.into_iter().map(key).collect()
}

/// The section of the shipped `envoy.yaml` that both filters read.
pub(crate) fn shipped() -> Value {
    fn find(value: &serde_yaml_ng::Value) -> Option<&serde_yaml_ng::Value> {
        if value.get("root_id").is_some_and(|id| id == "gateway") {
            return value.get("configuration")?.get("value");
        }
        match value {
            serde_yaml_ng::Value::Mapping(mapping) => mapping.values().find_map(find),
            serde_yaml_ng::Value::Sequence(sequence) => sequence.iter().find_map(find),
            _ => None,
        }
    }
    let text = include_str!("../../envoy/envoy.yaml");
    let yaml: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).unwrap();
    serde_json::to_value(find(&yaml).unwrap()).unwrap()
}

/// The shipped section with every optional key set: in the first entry of each list and in the policy `standard`.
fn whole() -> Value {
    let mut section = shipped();
    section["models"][0]["affinity"] = json!("prefix");
    let standard = &mut section["policies"]["standard"];
    standard["models"] = json!(["gpt-4o-mini"]);
    standard["cache"]["max_temperature"] = json!(0.7);
    standard["limits"] = json!({"requests_per_minute": 5, "tokens_per_minute": 1000});
    for (key, value) in [
        ("hedge_after_ms", json!(300)),
        ("hedge_budget_percent", json!(5)),
        ("deadline_ms", json!(60_000)),
        ("spill", json!({"waiting": 4, "kv_cache": 0.9})),
    ] {
        standard[key] = value;
    }
    standard["trace"] = json!({"content": "full", "sampling": 1, "redact": ["email"], "redact_patterns": {"id": "a"}});
    standard["audit"] = json!({"text": false});
    standard["input_guard"]["media"] = json!("refuse");
    for side in ["input_guard", "output_guard"] {
        standard[side]["categories"] = json!({"flag": ["S6"], "ignore": ["S5"]});
    }
    section
}

fn parse(section: &Value) -> Result<Config, parapet_engine::config::ConfigError> {
    Config::parse(section.to_string().as_bytes())
}

fn place(pattern: &str) -> String {
    pattern.replace("[]", "[0]").replace('*', "standard")
}

/// The object that holds the key, and the key.
fn parent<'a>(section: &'a mut Value, place: &str) -> (&'a mut Map<String, Value>, String) {
    let (path, key) = place.rsplit_once('.').unwrap_or(("", place));
    let pointer = path.replace("[", "/").replace(']', "").replace('.', "/");
    let pointer = if pointer.is_empty() { pointer } else { format!("/{pointer}") };
    let object = section.pointer_mut(&pointer).unwrap_or_else(|| panic!("no {pointer}"));
    (object.as_object_mut().unwrap(), key.to_owned())
}

fn with(place: &str, value: Value) -> Value {
    let mut section = whole();
    let (object, key) = parent(&mut section, place);
    assert!(object.insert(key, value).is_some(), "`whole` lacks {place}");
    section
}

fn without(place: &str) -> Value {
    let mut section = whole();
    let (object, key) = parent(&mut section, place);
    assert!(object.remove(&key).is_some(), "`whole` lacks {place}");
    section
}

/// What no key of this type is.
fn wrong(kind: &str) -> Value {
    match kind {
        "integer" => json!("many"),
        "number" => json!("half"),
        "boolean" => json!("maybe"),
        "string" | "list" => json!(7),
        "object" => json!("on"),
        choices => {
            assert!(choices.starts_with('`'), "unknown type {choices}");
            json!("sideways")
        }
    }
}

#[test]
fn a_value_of_another_type_is_refused_with_the_path_that_is_documented() {
    parse(&whole()).unwrap();
    for Key { pattern, kind, .. } in documented() {
        let place = place(&pattern);
        let error = parse(&with(&place, wrong(&kind))).err().unwrap_or_else(|| panic!("{place} is no {kind}"));
        assert_eq!(error.path, place, "{error}");
        for choice in codes(&kind) {
            assert!(error.message.contains(&format!("`{choice}`")), "{place}: {choice} is no choice: {error}");
        }
    }
}

#[test]
fn the_documented_defaults_are_what_is_taken_for_an_absent_key() {
    for Key { pattern, default, .. } in documented() {
        let place = place(&pattern);
        // A policy that keys name cannot be left out.
        if place == "policies.standard" {
            continue;
        }
        let mut absent = without(&place);
        if ["guard", "sidecar"].contains(&&*place) {
            // Policies may not ask for what is not there.
            absent["policies"] = json!({"standard": {}, "careful": {}, "tiny": {}, "open": {}});
        } else if place == "sidecar" {
            // Nor spill by the word of nobody.
            absent["policies"]["standard"].as_object_mut().unwrap().remove("spill");
        }
        let parsed = parse(&absent);
        match (default.as_str(), code(&default)) {
            ("*required*", _) => assert!(parsed.is_err(), "{place} is not required"),
            ("*none*", _) => assert!(parsed.is_ok(), "{place}: {parsed:?}"),
            (_, Some(default)) => {
                let default: Value = serde_json::from_str(default).unwrap();
                // A revision tells what is written, not what follows from it.
                let meaning = |config: Config| format!("{:?}", Config { revision: String::new(), ..config });
                let explicit = parse(&with(&place, default)).unwrap();
                assert_eq!(meaning(parsed.unwrap()), meaning(explicit), "{place}");
            }
            (other, None) => {
                panic!("{place}: the default `{other}` is neither *required*, *none* nor JSON in backticks")
            }
        }
    }
}

/// The keys of each object of the section, by the object's pattern.
fn objects(value: &Value, pattern: &str, found: &mut BTreeMap<String, String>, place: &str) {
    match value {
        Value::Object(object) => {
            found.entry(pattern.to_owned()).or_insert_with(|| place.to_owned());
            for (key, inner) in object {
                let name = if pattern == "policies" { "*" } else { key };
                let join =
                    |path: &str, key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                objects(inner, &join(pattern, name), found, &join(place, key));
            }
        }
        Value::Array(list) => {
            for (i, inner) in list.iter().enumerate() {
                objects(inner, &format!("{pattern}[]"), found, &format!("{place}[{i}]"));
            }
        }
        _ => {}
    }
}

/// The engine names what it knows when it meets a key that it does not.
#[test]
fn every_key_that_the_engine_knows_is_documented_and_no_other() {
    let mut found = BTreeMap::new();
    objects(&whole(), "", &mut found, "");
    let mut known = BTreeSet::new();
    for (pattern, place) in found {
        if pattern == "policies" {
            // Its keys are the operator's.
            known.insert("policies.*".to_owned());
            continue;
        }
        if pattern.ends_with(".redact_patterns") {
            continue;
        }
        let prefix = if place.is_empty() { String::new() } else { format!("{place}.") };
        let mut section = whole();
        let (object, key) = parent(&mut section, &format!("{prefix}unheard_of"));
        object.insert(key, json!(1));
        let error = parse(&section).unwrap_err();
        let (_, expected) = error.message.split_once("expected ").unwrap_or_else(|| panic!("{error}"));
        let prefix = if pattern.is_empty() { String::new() } else { format!("{pattern}.") };
        known.extend(codes(expected).into_iter().map(|key| format!("{prefix}{key}")));
    }
    assert!(known.len() > 50, "{known:?}");
    let documented: Vec<String> = documented().into_iter().map(|key| key.pattern).collect();
    assert_eq!(documented.len(), documented.iter().collect::<BTreeSet<_>>().len(), "a key stands twice");
    assert_eq!(documented.into_iter().collect::<BTreeSet<_>>(), known);
}
