//! How far each destination has come, and what none of them is to get.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A place between two lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    pub segment: u64,
    pub offset: u64,
}

/// Lines stored while no upload was configured: they stay local when one comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stretch {
    from: Cursor,
    /// Absent while it still grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Cursor>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursors {
    #[serde(default)]
    destinations: BTreeMap<String, Cursor>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    local: Vec<Stretch>,
}

impl Cursors {
    /// Takes up the destinations that are configured now; `end` is where the spool ends. The names of those that are not
    /// any more are returned.
    ///
    /// A destination seen for the first time begins at the end, unless another is gone: then it goes on where that one
    /// stood. So an address that is put right, or a new name of it, loses nothing. Without any destination the others'
    /// places are kept for the day they come back, and what is stored meanwhile stays local.
    pub(super) fn adopt(&mut self, configured: &[String], end: Cursor) -> Vec<String> {
        for cursor in self.destinations.values_mut() {
            *cursor = (*cursor).min(end);
        }
        for stretch in &mut self.local {
            stretch.from = stretch.from.min(end);
            stretch.to = stretch.to.map(|to| to.min(end));
        }
        if configured.is_empty() {
            if self.local.iter().all(|stretch| stretch.to.is_some()) {
                self.local.push(Stretch { from: end, to: None });
            }
            return Vec::new();
        }
        for stretch in &mut self.local {
            stretch.to.get_or_insert(end);
        }
        let is_gone = |name: &String| !configured.contains(name);
        let gone: Vec<String> = self.destinations.keys().filter(|name| is_gone(name)).cloned().collect();
        let inherited = gone.iter().filter_map(|name| self.destinations.remove(name)).min();
        for name in configured {
            self.destinations.entry(name.clone()).or_insert(inherited.unwrap_or(end));
        }
        self.forget_delivered_stretches();
        gone
    }

    pub fn get(&self, destination: &str) -> Option<Cursor> {
        self.destinations.get(destination).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, Cursor)> {
        self.destinations.iter().map(|(name, cursor)| (name.as_str(), *cursor))
    }

    pub(super) fn set(&mut self, destination: &str, to: Cursor) {
        if let Some(cursor) = self.destinations.get_mut(destination) {
            *cursor = to;
        }
        self.forget_delivered_stretches();
    }

    /// The place of the one that is furthest behind.
    pub(super) fn last(&self) -> Option<Cursor> {
        self.destinations.values().min().copied()
    }

    /// The next place behind `at` (or there) whose line is for upload, and where such lines end.
    pub(super) fn uploadable(&self, mut at: Cursor, end: Cursor) -> (Cursor, Cursor) {
        let mut limit = end;
        for stretch in &self.local {
            let to = stretch.to.unwrap_or(end);
            if stretch.from <= at && at < to {
                at = to;
            } else if at < stretch.from {
                limit = limit.min(stretch.from);
                break;
            }
        }
        (at, limit.max(at))
    }

    fn forget_delivered_stretches(&mut self) {
        if let Some(last) = self.last() {
            self.local.retain(|stretch| stretch.to.is_none_or(|to| to > last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(segment: u64, offset: u64) -> Cursor {
        Cursor { segment, offset }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_new_destination_begins_at_the_end_or_where_the_one_it_replaces_stood() {
        let mut cursors = Cursors::default();
        assert!(cursors.adopt(&names(&["a"]), at(1, 0)).is_empty());
        assert!(cursors.adopt(&names(&["a", "b"]), at(1, 70)).is_empty());
        assert_eq!((cursors.get("a"), cursors.get("b")), (Some(at(1, 0)), Some(at(1, 70))));
        assert_eq!(cursors.adopt(&names(&["b", "c"]), at(1, 90)), ["a"]);
        assert_eq!((cursors.get("c"), cursors.get("a")), (Some(at(1, 0)), None));
        cursors.set("c", at(1, 80));
        assert_eq!(cursors.last(), Some(at(1, 70)));
    }

    #[test]
    fn what_is_stored_without_an_upload_stays_local_and_what_waited_waits_on() {
        let mut cursors = Cursors::default();
        cursors.adopt(&names(&["a"]), at(1, 0));
        for (from, to) in [(50, 60), (80, 90)] {
            cursors.adopt(&[], at(1, from));
            cursors.adopt(&[], at(1, to - 5));
            cursors.adopt(&names(&["a"]), at(1, to));
        }
        let mut read = Vec::new();
        let mut place = cursors.get("a").unwrap();
        loop {
            let (from, to) = cursors.uploadable(place, at(1, 100));
            if from == to {
                break;
            }
            read.push((from.offset, to.offset));
            place = to;
        }
        assert_eq!(read, [(0, 50), (60, 80), (90, 100)]);
        cursors.set("a", at(1, 70));
        assert_eq!(cursors.local.len(), 1);
        assert_eq!(cursors.uploadable(at(1, 85), at(1, 100)), (at(1, 90), at(1, 100)));
    }

    #[test]
    fn a_first_upload_over_local_lines_begins_behind_them() {
        let mut cursors = Cursors::default();
        cursors.adopt(&[], at(1, 0));
        cursors.adopt(&names(&["a"]), at(2, 30));
        assert_eq!(cursors.get("a"), Some(at(2, 30)));
        assert!(cursors.local.is_empty());
    }
}
