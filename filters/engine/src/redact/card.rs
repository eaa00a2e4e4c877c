//! Payment card numbers: 13 to 19 digits, written in one piece or in groups, with the right checksum.

use core::ops::Range;

use super::{at, before, end_of};

const MIN: usize = 13;
const MAX: usize = 19;

pub(super) fn next(text: &[u8], from: usize) -> Option<Range<usize>> {
    let mut start = from;
    loop {
        let rest = text.get(start..)?;
        start = start.saturating_add(rest.iter().position(u8::is_ascii_digit)?);
        // Within a match of before or a longer number no card begins.
        if !before(text, start).is_some_and(|byte| byte.is_ascii_digit())
            && let Some(end) = card_end(text, start)
        {
            return Some(start..end);
        }
        start = end_of(text, start, |byte| byte.is_ascii_digit());
    }
}

fn card_end(text: &[u8], start: usize) -> Option<usize> {
    let mut digits = Vec::with_capacity(MAX);
    let mut longest = None;
    let mut index = start;
    while digits.len() < MAX {
        match at(text, index) {
            Some(digit @ b'0'..=b'9') => digits.push(digit.wrapping_sub(b'0')),
            Some(b' ' | b'-' | b'.') if at(text, index.saturating_add(1)).is_some_and(|byte| byte.is_ascii_digit()) => {
            }
            _ => break,
        }
        index = index.saturating_add(1);
        let stops = !at(text, index).is_some_and(|byte| byte.is_ascii_digit());
        if digits.len() >= MIN && stops && luhn(&digits) {
            longest = Some(index);
        }
    }
    // The first digit names the industry: 2 to 6 are banks and travel.
    longest.filter(|_| matches!(digits.first(), Some(2..=6)))
}

/// ISO/IEC 7812-1, annex B.
fn luhn(digits: &[u8]) -> bool {
    let sum = digits.iter().rev().enumerate().fold(0_u32, |sum, (place, &digit)| {
        let digit = u32::from(digit);
        let value = match (place % 2, digit) {
            (0, digit) => digit,
            (_, 0..=4) => digit.saturating_mul(2),
            (_, digit) => digit.saturating_mul(2).saturating_sub(9),
        };
        sum.saturating_add(value)
    });
    sum.checked_rem(10) == Some(0)
}
