//! Label values with a bound: past it every new one is `other`, so that no client can grow the metrics.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

const LONGEST: usize = 64;

#[derive(Debug)]
pub struct Bound {
    seen: Mutex<HashSet<String>>,
    max: usize,
}

impl Bound {
    pub fn new(max: usize) -> Self {
        Self { seen: Mutex::new(HashSet::new()), max }
    }

    /// The value itself, `none` for an empty one, or `other`.
    pub fn label(&self, value: &str) -> String {
        if value.is_empty() {
            return "none".to_owned();
        }
        if value.len() > LONGEST {
            return "other".to_owned();
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.contains(value) || (seen.len() < self.max && seen.insert(value.to_owned())) {
            return value.to_owned();
        }
        "other".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_values_past_the_bound_are_other() {
        let bound = Bound::new(2);
        assert_eq!(
            ["a", "b", "c", "a", "", &"x".repeat(65)].map(|value| bound.label(value)),
            ["a", "b", "other", "a", "none", "other"]
        );
    }
}
