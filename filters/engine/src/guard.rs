//! The guards: what is judged, what a verdict means under a policy, and what is remembered.

pub mod canary;
mod completion;
pub mod dialect;
mod llama_guard;
pub mod passage;
mod pieces;
mod qwen3_guard;
mod shield_gemma;
mod transcript;
pub mod window;

use core::fmt;

use crate::config::{Categories, OnFailure};
use crate::conversation::TurnsDigest;
use crate::digest::{Parts, hex};

/// Which side of the conversation is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Input,
    Output,
}

/// A hazard category of Llama Guard: `S1` to `S14`. Guards with names of their own are mapped onto these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Category(u8);

impl Category {
    pub const LAST: u8 = 14;

    /// A guard's name that none of the fourteen stands for. No list of a policy can hold it: it always blocks.
    pub const OTHER: Self = Self(0);

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(['S', 's'])?;
        let number: u8 = digits.parse().ok()?;
        // `S+1` parses as a number and is no category.
        (digits.bytes().all(|digit| digit.is_ascii_digit()) && (1..=Self::LAST).contains(&number))
            .then_some(Self(number))
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::OTHER { f.write_str("other") } else { write!(f, "S{}", self.0) }
    }
}

/// What the guard said of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Safe {
        score: Option<f64>,
    },
    /// `categories` may be empty: the guard has not named any (yet).
    Unsafe {
        score: Option<f64>,
        categories: Vec<Category>,
    },
    /// No usable verdict: timeout, error status, unparsable text.
    Failed,
}

impl Verdict {
    /// The score decides where there is one, and otherwise what the guard said.
    fn of(score: Option<f64>, said_unsafe: bool, threshold: f64, categories: Vec<Category>) -> Self {
        if score.map_or(said_unsafe, |score| score >= threshold) {
            Self::Unsafe { score, categories }
        } else {
            Self::Safe { score }
        }
    }
}

/// What is done about a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Pass,
    /// Let through, marked in the record and audited.
    Flag,
    Block,
    /// No verdict, and the policy fails closed.
    Unavailable,
}

/// What a policy makes of a verdict. An unsafe verdict without categories blocks: nothing excuses it.
#[must_use]
pub fn decide(verdict: &Verdict, categories: &Categories, on_failure: OnFailure) -> Action {
    match verdict {
        Verdict::Safe { .. } => Action::Pass,
        Verdict::Failed => match on_failure {
            OnFailure::Closed => Action::Unavailable,
            OnFailure::Open => Action::Flag,
        },
        Verdict::Unsafe { categories: named, .. } => {
            let mut counted = named.iter().filter(|category| !categories.ignore.contains(category)).peekable();
            if !named.is_empty() && counted.peek().is_none() {
                Action::Pass
            } else if !named.is_empty() && counted.all(|category| categories.flag.contains(category)) {
                Action::Flag
            } else {
                Action::Block
            }
        }
    }
}

/// What a remembered verdict depends on: the turns (of which the prompt is made) and the threshold. The guard model is
/// the same for as long as a worker's memory lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    turns: TurnsDigest,
    threshold_bits: u64,
}

impl Key {
    #[must_use]
    pub const fn of(turns: TurnsDigest, threshold: f64) -> Self {
        Self { turns, threshold_bits: threshold.to_bits() }
    }

    /// For the audit log.
    #[must_use]
    pub fn digest(&self) -> String {
        hex(&self.turns.0)
    }
}

/// A verdict with its age. Only Safe and Unsafe are worth remembering.
#[derive(Debug, Clone)]
pub struct Remembered {
    pub verdict: Verdict,
    pub at_us: u64,
}

/// A day: as long as a verdict is taken for true without asking again.
pub const REMEMBER_US: u64 = 24 * 3600 * 1_000_000;

/// The digest of a judged prompt in hexadecimal, for the audit log.
#[must_use]
pub fn text_digest(text: &str) -> String {
    let mut hash = Parts::default();
    hash.add(text.as_bytes());
    hex(&hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn categories(list: &[&str]) -> Vec<Category> {
        list.iter().map(|text| Category::parse(text).unwrap()).collect()
    }

    #[test]
    fn categories_are_s1_to_s14_and_nothing_else() {
        for (text, number) in
            [("S1", Some(1)), ("s14", Some(14)), ("S0", None), ("S15", None), ("S+1", None), ("1", None), ("S", None)]
        {
            assert_eq!(Category::parse(text).map(|category| category.0), number, "{text}");
        }
    }

    #[test]
    fn a_verdict_blocks_unless_every_category_is_excused() {
        let policy = Categories { flag: categories(&["S6"]), ignore: categories(&["S5"]) };
        let cases: [(&[&str], Action); 6] = [
            (&["S1"], Action::Block),
            (&["S1", "S6"], Action::Block),
            (&["S6"], Action::Flag),
            (&["S5"], Action::Pass),
            (&["S5", "S6"], Action::Flag),
            (&[], Action::Block),
        ];
        for (named, action) in cases {
            let verdict = Verdict::Unsafe { score: None, categories: categories(named) };
            assert_eq!(decide(&verdict, &policy, OnFailure::Closed), action, "{named:?}");
        }
    }

    #[test]
    fn no_verdict_is_never_safe() {
        let none = Categories::default();
        assert_eq!(decide(&Verdict::Failed, &none, OnFailure::Closed), Action::Unavailable);
        assert_eq!(decide(&Verdict::Failed, &none, OnFailure::Open), Action::Flag);
    }
}
