//! Telephone numbers that can be told from other numbers: international ones (E.164, `+` or `00`), national ones with
//! their leading 0, and North American ones by their groups.

use core::ops::Range;

use super::{at, before, end_of, is_word};

/// E.164 allows 15 digits.
const MAX_DIGITS: usize = 15;
const MIN_DIGITS: usize = 7;

pub(super) fn next(text: &[u8], from: usize) -> Option<Range<usize>> {
    let mut start = from;
    loop {
        let rest = text.get(start..)?;
        start =
            start.saturating_add(rest.iter().position(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'('))?);
        let opens = !before(text, start).is_some_and(|byte| is_word(byte) || matches!(byte, b'.' | b'_' | b'='));
        if opens && let Some(end) = read(text, start).filter(Number::is_phone).map(|number| number.end) {
            return Some(start..end);
        }
        let digits = end_of(text, start, |byte| byte.is_ascii_digit());
        start = digits.max(start.saturating_add(1));
    }
}

/// A number as it is written.
struct Number {
    plus: bool,
    /// Somewhere a group stands in parentheses.
    parenthesis: bool,
    dots: bool,
    groups: Vec<Vec<u8>>,
    end: usize,
}

fn read(text: &[u8], start: usize) -> Option<Number> {
    let mut number = Number { plus: false, parenthesis: false, dots: false, groups: Vec::new(), end: start };
    let mut index = start;
    if at(text, index) == Some(b'+') {
        number.plus = true;
        index = index.saturating_add(1);
    }
    loop {
        // At most `) (` stands between two groups.
        let gap = end_of(text, index, |byte| matches!(byte, b' ' | b'-' | b'.' | b'/' | b'(' | b')'));
        let between = text.get(index..gap)?;
        let stop = end_of(text, gap, |byte| byte.is_ascii_digit());
        let group = text.get(gap..stop)?;
        if group.is_empty() || between.len() > 3 {
            break;
        }
        number.parenthesis |= between.contains(&b'(');
        number.dots |= between.contains(&b'.');
        if number.digits().saturating_add(group.len()) > MAX_DIGITS {
            // A longer number is none; digits of another one may follow.
            return (number.groups.len() > 1 && between.contains(&b' ')).then_some(number);
        }
        number.groups.push(group.to_vec());
        number.end = stop;
        index = stop;
    }
    (!number.groups.is_empty()).then_some(number)
}

impl Number {
    fn digits(&self) -> usize {
        self.groups.iter().map(Vec::len).fold(0, usize::saturating_add)
    }

    fn is_phone(&self) -> bool {
        let digits = self.digits();
        if digits < MIN_DIGITS {
            return false;
        }
        let lengths: Vec<usize> = self.groups.iter().map(Vec::len).collect();
        let first = self.groups.first().map(Vec::as_slice).unwrap_or_default();
        if self.plus {
            return first.first() != Some(&b'0');
        }
        if first.starts_with(b"0") {
            // A fraction, a date (two digits first) and a counter are none.
            let long = first.len() >= 3 && digits >= 9 && !self.dots;
            return long || lengths == [2, 2, 2, 2, 2] || (self.parenthesis && digits >= 8);
        }
        match lengths.as_slice() {
            [3, 3, 4] => self.is_north_american(),
            [1, 3, 3, 4] => first == b"1",
            [10] => self.is_north_american(),
            [3, 7] => self.parenthesis && self.is_north_american(),
            _ => false,
        }
    }

    /// Neither the area nor the exchange begins with 0 or 1.
    fn is_north_american(&self) -> bool {
        let digits: Vec<u8> = self.groups.concat();
        [0, 3].into_iter().all(|place| matches!(digits.get(place), Some(b'2'..=b'9')))
    }
}
