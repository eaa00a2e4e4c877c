//! Keys and tokens by how they begin.

use core::ops::Range;

use super::{before, end_of, is_word};

/// A beginning, and how many characters of a key have to follow it at least.
const PREFIXES: [(&[u8], usize); 29] = [
    (b"sk-", 8),
    (b"sk_live_", 8),
    (b"sk_test_", 8),
    (b"pk_live_", 8),
    (b"rk_live_", 8),
    (b"whsec_", 16),
    (b"ghp_", 16),
    (b"gho_", 16),
    (b"ghu_", 16),
    (b"ghs_", 16),
    (b"ghr_", 16),
    (b"github_pat_", 16),
    (b"glpat-", 16),
    (b"xoxb-", 10),
    (b"xoxp-", 10),
    (b"xoxa-", 10),
    (b"xoxr-", 10),
    (b"xoxs-", 10),
    (b"xapp-", 10),
    (b"AKIA", 16),
    (b"ASIA", 16),
    (b"AIza", 30),
    (b"ya29.", 16),
    (b"hf_", 16),
    (b"lsv2_", 16),
    (b"npm_", 30),
    (b"pypi-", 30),
    (b"dop_v1_", 16),
    (b"SG.", 30),
];

const PEM: &[u8] = b"-----BEGIN ";
const PEM_END: &[u8] = b"-----END ";

pub(super) fn next(text: &[u8], from: usize) -> Option<Range<usize>> {
    let mut index = from;
    while let Some(rest) = text.get(index..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(PEM) {
            if let Some(end) = pem_end(rest) {
                return Some(index..index.saturating_add(end));
            }
        } else if !before(text, index).is_some_and(|byte| is_word(byte) || byte == b'_')
            && let Some(range) = token(text, index)
        {
            return Some(range);
        }
        index = index.saturating_add(1);
    }
    None
}

const fn is_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn token(text: &[u8], start: usize) -> Option<Range<usize>> {
    let rest = text.get(start..)?;
    for (prefix, more) in PREFIXES {
        if rest.starts_with(prefix) {
            let body = start.saturating_add(prefix.len());
            let end = end_of(text, body, |byte| is_key(byte) || byte == b'.');
            let end = without_full_stop(text, end);
            return (end.saturating_sub(body) >= more).then_some(start..end);
        }
    }
    if rest.starts_with(b"eyJ") {
        return jwt(text, start);
    }
    let scheme = rest.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
    let body = start.saturating_add(7);
    let end = end_of(text, body, |byte| is_key(byte) || matches!(byte, b'.' | b'~' | b'+' | b'/' | b'='));
    let end = without_full_stop(text, end);
    (scheme && end.saturating_sub(body) >= 16).then_some(body..end)
}

/// What ends a sentence is no part of a key.
fn without_full_stop(text: &[u8], end: usize) -> usize {
    if before(text, end) == Some(b'.') { end.saturating_sub(1) } else { end }
}

/// RFC 7519: three parts in base64url, the first two of which are JSON objects.
fn jwt(text: &[u8], start: usize) -> Option<Range<usize>> {
    let mut end = start;
    for part in 0..3 {
        if part > 0 {
            if text.get(end) != Some(&b'.') {
                return None;
            }
            end = end.saturating_add(1);
        }
        let stop = end_of(text, end, is_key);
        // The signature of an unsigned token is empty.
        if part < 2 && !text.get(end..stop)?.starts_with(b"eyJ") {
            return None;
        }
        end = stop;
    }
    Some(start..end)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// A private key's block: to the line that closes it, or to the end of the text.
fn pem_end(block: &[u8]) -> Option<usize> {
    let label = block.get(PEM.len()..)?;
    let label = label.get(..find(label, b"-----")?)?;
    if !label.ends_with(b"PRIVATE KEY") {
        return None;
    }
    let Some(close) = find(block, PEM_END) else { return Some(block.len()) };
    let after = close.saturating_add(PEM_END.len());
    let dashes = find(block.get(after..)?, b"-----");
    Some(dashes.map_or(block.len(), |dashes| after.saturating_add(dashes).saturating_add(5)))
}
