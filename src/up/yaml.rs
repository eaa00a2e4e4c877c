//! Writes YAML that Envoy reads as it was meant.
//!
//! Envoy's reader follows YAML 1.1, where a bare `off` or `no` is a boolean; `serde_yaml_ng` follows 1.2 and writes such
//! strings bare. Here a string is bare only when no reader can take it for anything else.

use std::fmt::Write;

use serde_yaml_ng::{Mapping, Value};

/// The document in block style, two spaces a level.
pub(super) fn write(root: &Value) -> String {
    let mut out = String::new();
    match root {
        Value::Mapping(mapping) if !mapping.is_empty() => write_mapping(mapping, 0, &mut out),
        Value::Sequence(items) if !items.is_empty() => write_sequence(items, 0, &mut out),
        scalar => {
            write_scalar(scalar, &mut out);
            out.push('\n');
        }
    }
    out
}

fn write_mapping(mapping: &Mapping, depth: usize, out: &mut String) {
    for (index, (key, value)) in mapping.iter().enumerate() {
        // The first key of a list's item stands behind its dash.
        if index > 0 || !out.ends_with("- ") {
            indent(depth, out);
        }
        write_scalar(key, out);
        out.push(':');
        match value {
            Value::Mapping(inner) if !inner.is_empty() => {
                out.push('\n');
                write_mapping(inner, depth + 1, out);
            }
            Value::Sequence(items) if !items.is_empty() => {
                out.push('\n');
                write_sequence(items, depth + 1, out);
            }
            scalar => {
                out.push(' ');
                write_scalar(scalar, out);
                out.push('\n');
            }
        }
    }
}

fn write_sequence(items: &[Value], depth: usize, out: &mut String) {
    for item in items {
        indent(depth, out);
        match item {
            Value::Mapping(inner) if !inner.is_empty() => {
                out.push_str("- ");
                write_mapping(inner, depth + 1, out);
            }
            Value::Sequence(inner) if !inner.is_empty() => {
                out.push_str("-\n");
                write_sequence(inner, depth + 1, out);
            }
            scalar => {
                out.push_str("- ");
                write_scalar(scalar, out);
                out.push('\n');
            }
        }
    }
}

fn write_scalar(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(boolean) => out.push_str(if *boolean { "true" } else { "false" }),
        // Writing to a string cannot fail.
        Value::Number(number) => _ = write!(out, "{number}"),
        Value::String(text) if is_bare(text) => out.push_str(text),
        // A JSON string is a double-quoted YAML one.
        Value::String(text) => out.push_str(&serde_json::Value::from(text.as_str()).to_string()),
        Value::Sequence(_) => out.push_str("[]"),
        Value::Mapping(_) => out.push_str("{}"),
        // No part of an Envoy configuration has a tag; the value is what it reads.
        Value::Tagged(tagged) => write_scalar(&tagged.value, out),
    }
}

fn is_bare(text: &str) -> bool {
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"];
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/' || first == '_')
        && text.chars().all(|other| other.is_ascii_alphanumeric() || "_-./".contains(other))
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn indent(depth: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9..1e9_f64).prop_map(Value::from),
            "[ -~\n\t\u{e9}\u{1F600}]{0,12}".prop_map(Value::from),
            prop::sample::select(vec!["off", "No", "~", "1e3", "- a", "a: b", "#", "&x", "*x", "0x1f", ".inf", "<<"])
                .prop_map(Value::from),
        ];
        scalar.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z@ :-]{1,6}", inner, 0..4)
                    .prop_map(|map| map.into_iter().map(|(key, value)| (Value::from(key), value)).collect::<Mapping>())
                    .prop_map(Value::from),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in values()) {
            let text = write(&value);
            prop_assert_eq!(serde_yaml_ng::from_str::<Value>(&text).unwrap(), value, "{}", text);
        }
    }

    #[test]
    fn the_shipped_file_is_read_back() {
        let value: Value = serde_yaml_ng::from_str(include_str!("../../envoy/envoy.yaml")).unwrap();
        assert_eq!(serde_yaml_ng::from_str::<Value>(&write(&value)).unwrap(), value);
    }

    #[test]
    fn words_that_some_reader_takes_for_a_boolean_or_a_number_are_quoted() {
        for word in
            ["off", "On", "yes", "NO", "y", "n", "null", "~", "true", "1", "0x1f", "1e3", "4s", "", "1_000", "12:30"]
        {
            assert_eq!(write(&Value::from(word)), format!("{word:?}\n"));
        }
        for word in ["parallel", "/etc/parapet.wasm", "envoy.wasm.runtime.v8", "gpt-4o-mini"] {
            assert_eq!(write(&Value::from(word)), format!("{word}\n"));
        }
    }
}
