//! A message longer than a guard reads at once, in pieces that overlap: unsafe if any of them is.

/// What one call reads of a conversation, in fifths of a token, estimated so that a guard that is served with 8,192 tokens
/// holds it with its template: letters, digits and spaces count three fifths each, every other byte a whole token.
pub(super) const CALL: usize = 5 * 7_000;

/// Bytes that two pieces have in common, so that nothing hides in the seam.
const OVERLAP: usize = 600;

/// More calls than one message is worth; a longer one has no verdict.
pub(super) const MAX_PIECES: usize = 64;

const fn weight_of(byte: u8) -> usize {
    if byte.is_ascii_alphanumeric() || byte == b' ' { 3 } else { 5 }
}

/// In fifths of a token.
pub(super) fn weight(text: &str) -> usize {
    text.bytes().fold(0, |sum, byte| sum.saturating_add(weight_of(byte)))
}

/// The text itself where one call holds it.
pub(super) fn split(text: &str) -> Vec<&str> {
    let mut pieces = Vec::with_capacity(1);
    let mut start = 0;
    loop {
        let rest = text.get(start..).unwrap_or_default();
        let end = start.saturating_add(held(rest));
        pieces.push(text.get(start..end).unwrap_or_default());
        if end >= text.len() {
            return pieces;
        }
        start = floor(text, end.saturating_sub(OVERLAP));
    }
}

/// Bytes from the beginning that one call holds; all of them, or more than [`OVERLAP`].
fn held(text: &str) -> usize {
    let mut sum = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        sum = sum.saturating_add(weight_of(byte));
        if sum > CALL {
            return floor(text, at);
        }
    }
    text.len()
}

/// The last `bytes` bytes, or a few less.
pub(super) fn tail(text: &str, bytes: usize) -> &str {
    let mut start = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(start) {
        start = start.saturating_add(1);
    }
    text.get(start..).unwrap_or_default()
}

pub(super) fn floor(text: &str, mut index: usize) -> usize {
    while !text.is_char_boundary(index) {
        index = index.saturating_sub(1);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_one_call_holds_is_one_piece() {
        assert_eq!(split(""), [""]);
        let held = "a".repeat(CALL / 3);
        assert_eq!(split(&held), [&*held]);
        assert_eq!(split(&format!("{held}a")).len(), 2);
        // A byte that may be a token of its own counts as one.
        assert_eq!(split(&"\u{10FFFF}".repeat(1_750)).len(), 1);
        assert_eq!(split(&"\u{10FFFF}".repeat(1_751)).len(), 2);
    }

    proptest! {
        /// Pieces are bounded, overlap, and cover every byte.
        #[test]
        fn nothing_is_left_out(unit in "[a-z é€😀.!]{1,40}", times in 1_usize..4_000) {
            let text = unit.repeat(times);
            let pieces = split(&text);
            let at = |piece: &str| piece.as_ptr() as usize - text.as_ptr() as usize;
            prop_assert_eq!(at(pieces[0]), 0);
            for pair in pieces.windows(2) {
                let end = at(pair[0]) + pair[0].len();
                prop_assert!(at(pair[1]) < end && at(pair[1]) > at(pair[0]) && end - at(pair[1]) <= OVERLAP + 3);
            }
            prop_assert!(pieces.iter().all(|piece| weight(piece) <= CALL));
            let last = pieces.last().unwrap();
            prop_assert_eq!(at(last) + last.len(), text.len());
        }
    }
}
