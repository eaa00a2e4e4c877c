//! Which settings a request was served under: a short word that changes when one of them does.

use super::node::Node;
use crate::digest::hex;

/// Of everything but the keys: who may call changes often, and says nothing of how an answer came about. A section's order
/// does not count, because Envoy hands it over in any.
pub(super) fn revision(configuration: &Node) -> String {
    let sum = match configuration {
        Node::Section(entries) => {
            entries.iter().filter(|(name, _)| name != "keys").map(entry).fold(0, u64::wrapping_add)
        }
        _ => 0,
    };
    hex(&sum.to_be_bytes())
}

fn entry((name, value): &(String, Node)) -> u64 {
    mix(word(name.as_bytes(), 1), of(value))
}

fn of(node: &Node) -> u64 {
    match node {
        Node::Null => 2,
        Node::Flag(flag) => word(&[u8::from(*flag)], 3),
        Node::Number(number) => word(&number.to_bits().to_le_bytes(), 4),
        Node::Text(text) => word(text.as_bytes(), 5),
        Node::List(items) => items.iter().map(of).fold(6, mix),
        Node::Section(entries) => entries.iter().map(entry).fold(7, u64::wrapping_add),
    }
}

#[inline(never)]
fn word(bytes: &[u8], kind: u64) -> u64 {
    bytes.iter().fold(mix(kind, bytes.len() as u64), |sum, &byte| mix(sum, u64::from(byte)))
}

/// The finaliser of splitmix64 over the sum of both. Once in the module, not at each of its uses.
#[inline(never)]
const fn mix(sum: u64, next: u64) -> u64 {
    let sum = sum.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(next);
    let sum = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    sum ^ (sum >> 27)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_text(json: &str) -> String {
        revision(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_revision_follows_the_settings_and_neither_their_order_nor_the_keys() {
        let base = of_text(r#"{"a": {"b": 1, "c": [1, "x", true, null]}, "d": "e", "keys": [{"sha256": "1"}]}"#);
        assert_eq!(base.len(), 16);
        let same = of_text(r#"{"keys": [], "d": "e", "a": {"c": [1, "x", true, null], "b": 1}}"#);
        assert_eq!(same, base);
        for other in [
            r#"{"a": {"b": 2, "c": [1, "x", true, null]}, "d": "e"}"#,
            r#"{"a": {"b": 1, "c": ["x", 1, true, null]}, "d": "e"}"#,
            r#"{"a": {"b": 1, "c": [1, "x", true]}, "d": "e"}"#,
            r#"{"a": {"b": 1, "c": [1, "x", true, null], "d": "e"}}"#,
            r#"{"a": {"b": 1, "c": [1, "x", false, null]}, "d": "e"}"#,
            r#"{"d": {"b": 1, "c": [1, "x", true, null]}, "a": "e"}"#,
            r#"{"a": {"b": 1, "c": [1, "x", true, null]}}"#,
        ] {
            assert_ne!(of_text(other), base, "{other}");
        }
    }
}
