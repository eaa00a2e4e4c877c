//! Addresses of RFC 5321's usual shape: a local part, `@`, a domain with a dot in it.

use core::ops::Range;

use super::{at, end_of, is_word};

pub(super) fn next(text: &[u8], from: usize) -> Option<Range<usize>> {
    let mut seen = from;
    loop {
        let rest = text.get(seen..)?;
        let sign = seen.saturating_add(memchr::memchr(b'@', rest)?);
        let head = text.get(from..sign)?;
        let local =
            head.iter().rev().take_while(|&&byte| is_word(byte) || b".!#$%&'*+-/=?^_`{|}~".contains(&byte)).count();
        let start = sign.saturating_sub(local);
        let end = domain_end(text, sign.saturating_add(1));
        if let (1.., Some(end)) = (local, end) {
            return Some(start..end);
        }
        seen = sign.saturating_add(1);
    }
}

/// The end of a domain of at least two labels whose last is no number.
fn domain_end(text: &[u8], from: usize) -> Option<usize> {
    let (mut label, mut end) = (from, None);
    loop {
        let stop = end_of(text, label, |byte| is_word(byte) || byte == b'-');
        let name = text.get(label..stop)?;
        if name.is_empty() {
            return end;
        }
        if label != from && name.len() >= 2 && !name.iter().all(u8::is_ascii_digit) {
            end = Some(stop);
        }
        if at(text, stop) != Some(b'.') {
            return end;
        }
        label = stop.saturating_add(1);
    }
}
