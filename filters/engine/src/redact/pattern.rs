//! An operator's own pattern: a small part of what regular expressions can say, whose search has a bound. (A library for
//! all of them would have to fit into the module's own bound.)
//!
//! Characters stand for themselves; `.` is any one, `\d` a digit, `\w` a letter, digit or `_`, `\s` white space, `\b` the
//! edge of a word, `[a-z0-9]` and `[^"]` one of these or none of these; `\` before a sign takes it as it is. `?`, `*`,
//! `+`, `{4}`, `{2,}` and `{2,8}` repeat what stands before them, as often as they can.

use core::ops::{Range, RangeInclusive};

use super::at;

/// More than any identifier needs; beyond it a pattern is refused.
const MAX_ATOMS: usize = 64;
const MAX_REPEATS: u32 = 256;
/// Steps of one search; where they run out the rest of the text is taken as matched: rather too much than a secret.
const MAX_STEPS: u32 = 1 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pattern(Vec<Atom>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Atom {
    what: What,
    least: u32,
    most: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// A character in one of the ranges; with `negated`, in none.
    Class {
        ranges: Vec<RangeInclusive<char>>,
        negated: bool,
    },
    WordEdge,
}

fn class(ranges: &[RangeInclusive<char>]) -> What {
    What::Class { ranges: ranges.to_vec(), negated: false }
}

/// What a letter after `\` stands for.
fn escape(letter: char) -> Option<Vec<RangeInclusive<char>>> {
    Some(match letter {
        'd' => vec!['0'..='9'],
        'w' => vec!['0'..='9', 'A'..='Z', '_'..='_', 'a'..='z'],
        's' => vec!['\t'..='\r', ' '..=' '],
        letter if letter.is_ascii_alphanumeric() => return None,
        sign => vec![sign..=sign],
    })
}

impl Pattern {
    /// # Errors
    /// What is wrong with it, in words for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut atoms: Vec<Atom> = Vec::new();
        let mut rest = text.chars();
        while let Some(sign) = rest.next() {
            let what = match sign {
                '\\' => match rest.next() {
                    Some('b') => What::WordEdge,
                    Some(letter) => class(&escape(letter).ok_or_else(|| format!("`\\{letter}` is not known"))?),
                    None => return Err("nothing follows the last `\\`".to_owned()),
                },
                '.' => What::Class { ranges: vec!['\n'..='\n'], negated: true },
                '[' => one_of(&mut rest)?,
                '?' | '*' | '+' | '{' => {
                    let (least, most) = match sign {
                        '?' => (0, 1),
                        '*' => (0, MAX_REPEATS),
                        '+' => (1, MAX_REPEATS),
                        _ => counts(&mut rest)?,
                    };
                    let last = atoms
                        .last_mut()
                        .filter(|atom| atom.what != What::WordEdge && (atom.least, atom.most) == (1, 1));
                    let last = last.ok_or_else(|| format!("nothing that `{sign}` could repeat stands before it"))?;
                    (last.least, last.most) = (least, most);
                    continue;
                }
                '(' | ')' | '|' | '^' | '$' => {
                    return Err(format!("`{sign}` is not supported; write `\\{sign}` for the sign itself"));
                }
                sign => class(&[sign..=sign]),
            };
            atoms.push(Atom { what, least: 1, most: 1 });
        }
        if atoms.len() > MAX_ATOMS {
            return Err(format!("longer than {MAX_ATOMS} characters or classes"));
        }
        if atoms.iter().all(|atom| atom.least == 0 || atom.what == What::WordEdge) {
            return Err("it would match the empty text".to_owned());
        }
        Ok(Self(atoms))
    }

    pub(super) fn next(&self, text: &[u8], from: usize) -> Option<Range<usize>> {
        let mut steps = MAX_STEPS;
        let mut start = from;
        while start < text.len() {
            match matches(&self.0, text, start, &mut steps) {
                Some(end) if end > start => return Some(start..end),
                _ if steps == 0 => return Some(start..text.len()),
                _ => {}
            }
            start = start.saturating_add(char_at(text, start).map_or(1, char::len_utf8));
        }
        None
    }
}

fn one_of(rest: &mut core::str::Chars<'_>) -> Result<What, String> {
    let open = || "a `[` is never closed".to_owned();
    let mut ranges: Vec<RangeInclusive<char>> = Vec::new();
    let negated = rest.as_str().starts_with('^');
    if negated {
        rest.next();
    }
    loop {
        let first = match rest.next().ok_or_else(open)? {
            ']' if ranges.is_empty() => return Err("`[]` matches nothing".to_owned()),
            ']' => return Ok(What::Class { ranges, negated }),
            '\\' => {
                let letter = rest.next().ok_or_else(open)?;
                let escaped = escape(letter).ok_or_else(|| format!("`\\{letter}` is not known"))?;
                if letter.is_ascii_alphanumeric() {
                    ranges.extend(escaped);
                    continue;
                }
                letter
            }
            sign => sign,
        };
        let mut ahead = rest.clone();
        match (ahead.next(), ahead.next()) {
            (Some('-'), Some(last)) if last != ']' => {
                if last < first || last == '\\' {
                    return Err(format!("`{first}-{last}` is no range"));
                }
                *rest = ahead;
                ranges.push(first..=last);
            }
            _ => ranges.push(first..=first),
        }
    }
}

fn counts(rest: &mut core::str::Chars<'_>) -> Result<(u32, u32), String> {
    let wrong = || format!("expected `{{4}}`, `{{2,}}` or `{{2,8}}`, at most {MAX_REPEATS}");
    let (inner, after) = rest.as_str().split_once('}').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= MAX_REPEATS).ok_or_else(wrong);
    let (least, most) = match inner.split_once(',') {
        None => (number(inner)?, number(inner)?),
        Some((least, "")) => (number(least)?, MAX_REPEATS),
        Some((least, most)) => (number(least)?, number(most)?),
    };
    *rest = after.chars();
    if most == 0 || least > most { Err(wrong()) } else { Ok((least, most)) }
}

/// The end of a match that begins at `index`.
fn matches(atoms: &[Atom], text: &[u8], index: usize, steps: &mut u32) -> Option<usize> {
    let Some((atom, later)) = atoms.split_first() else { return Some(index) };
    *steps = steps.checked_sub(1)?;
    let What::Class { ranges, negated } = &atom.what else {
        let edge = is_word(super::before(text, index)) != is_word(at(text, index));
        return if edge { matches(later, text, index, steps) } else { None };
    };
    let end_of_one = |here: usize| {
        let character = char_at(text, here)?;
        let belongs = ranges.iter().any(|range| range.contains(&character)) != *negated;
        belongs.then(|| here.saturating_add(character.len_utf8()))
    };
    if (atom.least, atom.most) == (1, 1) {
        return matches(later, text, end_of_one(index)?, steps);
    }
    // As many as there are, then one fewer at a time.
    let mut ends = vec![index];
    while ends.len() <= usize::try_from(atom.most).unwrap_or(usize::MAX) {
        let Some(end) = ends.last().and_then(|here| end_of_one(*here)) else { break };
        ends.push(end);
    }
    let least = usize::try_from(atom.least).unwrap_or(usize::MAX);
    while ends.len() > least {
        if let Some(end) = matches(later, text, ends.pop()?, steps) {
            return Some(end);
        }
        if *steps == 0 {
            return None;
        }
    }
    None
}

const fn is_word(byte: Option<u8>) -> bool {
    matches!(byte, Some(byte) if super::is_word(byte) || byte == b'_')
}

/// The character that begins at `index`.
fn char_at(text: &[u8], index: usize) -> Option<char> {
    let length = match text.get(index)? {
        0..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    core::str::from_utf8(text.get(index..index.checked_add(length)?)?).ok()?.chars().next()
}
