//! What a worker remembers between requests: answers and verdicts, bounded in bytes, and how long first tokens took.

use core::hash::Hash;

use hashbrown::HashMap;

use crate::admission::Loads;
use crate::cache::{self, Entry};
use crate::guard::{self, Remembered};
use crate::latency::FirstTokens;

/// A map bounded in bytes. Two generations: when the young one has filled half of the bound it becomes the old one, and
/// the old one is forgotten. What is asked for again moves to the young one, so that what is used stays.
#[derive(Debug)]
pub struct Bounded<K, V> {
    half: usize,
    young_bytes: usize,
    young: HashMap<K, (usize, V)>,
    old: HashMap<K, (usize, V)>,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { half: bytes / 2, young_bytes: 0, young: HashMap::new(), old: HashMap::new() }
    }

    pub fn get(&mut self, key: &K) -> Option<&V> {
        if !self.young.contains_key(key) {
            let (key, (bytes, value)) = self.old.remove_entry(key)?;
            self.insert(key, value, bytes);
        }
        self.young.get(key).map(|(_, value)| value)
    }

    /// `bytes` is what the value takes; one larger than half of the bound is not kept.
    pub fn insert(&mut self, key: K, value: V, bytes: usize) {
        let bytes = bytes.saturating_add(size_of::<K>()).saturating_add(size_of::<V>());
        if bytes > self.half {
            return;
        }
        if self.young_bytes.saturating_add(bytes) > self.half {
            self.old = core::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.old.remove(&key);
        self.young_bytes = self.young_bytes.saturating_add(bytes);
        if let Some((before, _)) = self.young.insert(key, (bytes, value)) {
            self.young_bytes = self.young_bytes.saturating_sub(before);
        }
    }

    pub fn remove(&mut self, key: &K) {
        if let Some((bytes, _)) = self.young.remove(key) {
            self.young_bytes = self.young_bytes.saturating_sub(bytes);
        }
        self.old.remove(key);
    }
}

/// One worker's memory. Each VM has its own; what other workers know is the sidecar's.
#[derive(Debug)]
pub struct Memory {
    pub answers: Bounded<cache::Key, Entry>,
    pub verdicts: Bounded<guard::Key, Remembered>,
    pub first_tokens: FirstTokens,
    pub loads: Loads,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            answers: Bounded::new(32 * 1024 * 1024),
            verdicts: Bounded::new(8 * 1024 * 1024),
            first_tokens: FirstTokens::default(),
            loads: Loads::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten_within_the_bound() {
        let mut map = Bounded::new(64 * 1024);
        map.insert(0_u32, "kept", 1000);
        for i in 1..1000 {
            map.insert(i, "passing", 1000);
            assert_eq!(map.get(&0), Some(&"kept"));
            assert!(map.young.len() + map.old.len() <= 66);
        }
        assert_eq!(map.get(&1), None);
    }

    #[test]
    fn a_value_larger_than_half_of_the_bound_is_not_kept() {
        let mut map = Bounded::new(1000);
        map.insert(1, "large", 501);
        assert_eq!(map.get(&1), None);
    }

    #[test]
    fn a_value_replaced_or_removed_is_counted_once() {
        let mut map = Bounded::new(64 * 1024);
        for _ in 0..10_000 {
            map.insert(1, "again", 1000);
        }
        assert_eq!(map.young.len() + map.old.len(), 1);
        map.remove(&1);
        assert_eq!((map.young_bytes, map.get(&1)), (0, None));
    }
}
