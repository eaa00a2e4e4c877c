//! Redaction: what a policy does not want written down is replaced by its kind (`[email]`, `[card]`, ...) before the
//! record leaves the filter, so that no disk ever sees it.
//!
//! The rules lean towards replacing: a number that looks like a card and is none costs a word of a log, the other mistake
//! costs a secret.

mod card;
mod email;
mod json;
mod pattern;
mod phone;
mod secret;

use core::ops::Range;

pub(crate) use json::redact as redact_json;
pub use pattern::Pattern;

/// What is looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Email,
    /// International with `+` or `00`, national with a leading 0, North American.
    Phone,
    /// 13 to 19 digits whose checksum is right (ISO/IEC 7812-1, Luhn).
    Card,
    /// API keys by their well-known beginnings, JSON Web Tokens, bearer tokens, private keys in PEM.
    Secret,
}

impl Kind {
    const fn replacement(self) -> &'static str {
        match self {
            Self::Email => "[email]",
            Self::Phone => "[phone]",
            Self::Card => "[card]",
            Self::Secret => "[secret]",
        }
    }

    fn next(self, text: &[u8], from: usize) -> Option<Range<usize>> {
        match self {
            Self::Email => email::next(text, from),
            Self::Phone => phone::next(text, from),
            Self::Card => card::next(text, from),
            Self::Secret => secret::next(text, from),
        }
    }
}

/// The rules of a policy.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub kinds: Vec<Kind>,
    /// An operator's own: the name that replaces a match, and what matches.
    pub patterns: Vec<(String, Pattern)>,
}

impl Rules {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.patterns.is_empty()
    }

    /// The text with every match replaced; `None` when nothing matches.
    #[must_use]
    pub fn redact(&self, text: &str) -> Option<String> {
        let bytes = text.as_bytes();
        let mut out = String::new();
        let mut done = 0;
        // Each rule's next match, looked for anew only when the one before has been passed.
        let mut next: Vec<Option<Range<usize>>> = (0..self.len()).map(|rule| self.next(rule, bytes, 0)).collect();
        loop {
            // The first match; of those that begin together the longest, and of equal ones the first rule's.
            let mut first: Option<(usize, Range<usize>)> = None;
            for (rule, found) in next.iter_mut().enumerate() {
                if found.as_ref().is_some_and(|range| range.start < done) {
                    *found = self.next(rule, bytes, done);
                }
                let Some(range) = found else { continue };
                let better = first.as_ref().is_none_or(|(_, best)| {
                    range.start < best.start || (range.start == best.start && range.end > best.end)
                });
                if better {
                    first = Some((rule, range.clone()));
                }
            }
            let Some((rule, range)) = first else { break };
            out.push_str(text.get(done..range.start)?);
            self.replace(rule, &mut out);
            // A match is never empty; were one, this would still come to an end.
            done = range.end.max(range.start.saturating_add(1));
        }
        if done == 0 {
            return None;
        }
        out.push_str(text.get(done..).unwrap_or_default());
        Some(out)
    }

    /// In place.
    pub(crate) fn apply(&self, text: &mut String) -> bool {
        let redacted = self.redact(text);
        let changed = redacted.is_some();
        if let Some(redacted) = redacted {
            *text = redacted;
        }
        changed
    }

    const fn len(&self) -> usize {
        self.kinds.len().saturating_add(self.patterns.len())
    }

    fn next(&self, rule: usize, text: &[u8], from: usize) -> Option<Range<usize>> {
        match self.kinds.get(rule) {
            Some(kind) => kind.next(text, from),
            None => self.pattern(rule)?.1.next(text, from),
        }
    }

    fn pattern(&self, rule: usize) -> Option<&(String, Pattern)> {
        self.patterns.get(rule.saturating_sub(self.kinds.len()))
    }

    fn replace(&self, rule: usize, out: &mut String) {
        match self.kinds.get(rule) {
            Some(kind) => out.push_str(kind.replacement()),
            None => {
                out.push('[');
                out.push_str(self.pattern(rule).map_or("redacted", |(name, _)| name));
                out.push(']');
            }
        }
    }
}

/// A letter, a digit, or a part of a character beyond ASCII.
const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80
}

fn at(text: &[u8], index: usize) -> Option<u8> {
    text.get(index).copied()
}

fn before(text: &[u8], index: usize) -> Option<u8> {
    index.checked_sub(1).and_then(|index| at(text, index))
}

/// Where what `belongs` ends that begins at `from`.
fn end_of(text: &[u8], from: usize, belongs: impl Fn(u8) -> bool) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from.saturating_add(rest.iter().position(|&byte| !belongs(byte)).unwrap_or(rest.len()))
}

#[cfg(test)]
mod tests;
