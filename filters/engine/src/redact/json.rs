//! Redaction of a JSON text that stays JSON: every string value and every number in it, not its keys.

use super::Rules;
use crate::openai::json_string;

/// `None` when nothing matches.
pub(crate) fn redact(rules: &Rules, json: &str) -> Option<String> {
    let bytes = json.as_bytes();
    let mut out = Vec::new();
    let (mut done, mut index) = (0, 0);
    while let Some(&byte) = bytes.get(index) {
        let end = match byte {
            b'"' => string_end(bytes, index),
            b'-' | b'0'..=b'9' => {
                super::end_of(bytes, index, |byte| matches!(byte, b'-' | b'+' | b'.' | b'0'..=b'9' | b'e' | b'E'))
            }
            _ => {
                index = index.saturating_add(1);
                continue;
            }
        };
        let Some(token) = json.get(index..end) else { break };
        let is_key = byte == b'"' && bytes.get(end..).unwrap_or_default().trim_ascii_start().starts_with(b":");
        if !is_key && let Some(redacted) = value(rules, token) {
            out.extend_from_slice(bytes.get(done..index).unwrap_or_default());
            out.extend_from_slice(&json_string(&redacted));
            done = end;
        }
        index = end;
    }
    if done == 0 {
        return None;
    }
    out.extend_from_slice(bytes.get(done..).unwrap_or_default());
    String::from_utf8(out).ok()
}

fn value(rules: &Rules, token: &str) -> Option<String> {
    match token.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        // An escape may hide what is looked for: `alice\u0040example.com`.
        Some(inner) if inner.contains('\\') => rules.redact(&serde_json::from_slice::<String>(token.as_bytes()).ok()?),
        Some(inner) => rules.redact(inner),
        None => rules.redact(token),
    }
}

/// Behind the closing quote of the string that opens at `start`.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut index = start.saturating_add(1);
    loop {
        let rest = bytes.get(index..).unwrap_or_default();
        let Some(found) = memchr::memchr2(b'"', b'\\', rest) else { return bytes.len() };
        index = index.saturating_add(found);
        if bytes.get(index) == Some(&b'"') {
            return index.saturating_add(1);
        }
        index = index.saturating_add(2);
    }
}
