//! The cache in the sidecar's own memory, bounded in bytes, the least recently used entry leaving first; with a file
//! that a restart reads. The file is a log of puts, rewritten when most of it is dead.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use parapet_engine::cache::Entry;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::spool::durable::{self, Lines};

/// What an entry takes in memory beside its key and JSON: two map nodes and their slack.
const OVERHEAD: u64 = 256;
/// The file may be so much bigger than twice what lives before it is rewritten.
const SLACK: u64 = 4 << 20;

#[derive(Debug)]
pub struct Embedded {
    memory: Mutex<Memory>,
    file: Mutex<Lines>,
    path: PathBuf,
}

#[derive(Debug)]
struct Memory {
    entries: HashMap<String, Slot>,
    /// Keys by their last use.
    uses: BTreeMap<u64, String>,
    clock: u64,
    bytes: u64,
    max_bytes: u64,
}

#[derive(Debug)]
struct Slot {
    json: Bytes,
    created_s: u64,
    expires_s: u64,
    used: u64,
}

#[derive(Serialize, Deserialize)]
struct Put<'a> {
    key: &'a str,
    #[serde(borrow)]
    entry: &'a RawValue,
}

impl Embedded {
    /// Opens the store and reads what its file holds; lines that cannot be read are passed over.
    pub fn open(path: &Path, max_bytes: u64, now_s: u64) -> io::Result<Self> {
        let file = Lines::open(path)?;
        let mut memory = Memory { entries: HashMap::new(), uses: BTreeMap::new(), clock: 0, bytes: 0, max_bytes };
        // More than the bound cannot live; the newest are at the end.
        for line in file.read_tail(max_bytes.saturating_mul(2).saturating_add(SLACK))?.split(|&byte| byte == b'\n') {
            let Ok(put) = serde_json::from_slice::<Put<'_>>(line) else { continue };
            let Ok(entry) = serde_json::from_str::<Entry>(put.entry.get()) else { continue };
            memory.put(put.key, Bytes::from(put.entry.get().to_owned()), &entry, now_s);
        }
        let store = Self { memory: Mutex::new(memory), file: Mutex::new(file), path: path.to_owned() };
        store.compact()?;
        Ok(store)
    }

    pub fn get(&self, key: &str, now_s: u64) -> Option<Bytes> {
        self.memory().get(key, now_s)
    }

    pub fn put(&self, entries: &[(String, Entry)], now_s: u64) -> io::Result<()> {
        let mut lines = Vec::new();
        let mut stored = Vec::new();
        for (key, entry) in entries {
            let json = serde_json::value::to_raw_value(entry)?;
            if entry.expires_s <= now_s || self.memory().is_current(key, entry) {
                continue;
            }
            serde_json::to_writer(&mut lines, &Put { key, entry: &json })?;
            lines.push(b'\n');
            stored.push((key, entry, Bytes::from(String::from(Box::<str>::from(json)))));
        }
        if stored.is_empty() {
            return Ok(());
        }
        self.file().append(&lines)?;
        for (key, entry, json) in stored {
            self.memory().put(key, json, entry, now_s);
        }
        self.compact()
    }

    /// Keeps an entry in memory alone: its own store has it for good.
    pub fn remember(&self, key: &str, json: &Bytes, entry: &Entry, now_s: u64) {
        self.memory().put(key, json.clone(), entry, now_s);
    }

    pub fn size(&self) -> (u64, u64) {
        let memory = self.memory();
        (memory.entries.len() as u64, memory.bytes)
    }

    /// Rewrites the file when more of it is dead than lives, least recently used first, as `open` wants it.
    fn compact(&self) -> io::Result<()> {
        let mut file = self.file();
        let live: Vec<(String, Bytes)> = {
            let memory = self.memory();
            if file.len() <= memory.bytes.saturating_mul(2).saturating_add(SLACK) {
                return Ok(());
            }
            memory
                .uses
                .values()
                .filter_map(|key| memory.entries.get(key).map(|slot| (key.clone(), slot.json.clone())))
                .collect()
        };
        let mut content = Vec::new();
        for (key, json) in &live {
            let text = std::str::from_utf8(json).map_err(io::Error::other)?;
            let entry: &RawValue = serde_json::from_str(text)?;
            serde_json::to_writer(&mut content, &Put { key, entry })?;
            content.push(b'\n');
        }
        durable::replace(&self.path, &content)?;
        *file = Lines::open(&self.path)?;
        Ok(())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> MutexGuard<'_, Lines> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn get(&mut self, key: &str, now_s: u64) -> Option<Bytes> {
        let slot = self.entries.get_mut(key)?;
        if slot.expires_s <= now_s {
            self.remove(key);
            return None;
        }
        self.clock += 1;
        if let Some(name) = self.uses.remove(&slot.used) {
            self.uses.insert(self.clock, name);
        }
        slot.used = self.clock;
        Some(slot.json.clone())
    }

    fn put(&mut self, key: &str, json: Bytes, entry: &Entry, now_s: u64) {
        let size = size(key, &json);
        // One answer may not empty the cache.
        if entry.expires_s <= now_s || size > self.max_bytes / 8 || self.is_current(key, entry) {
            return;
        }
        self.remove(key);
        while self.bytes + size > self.max_bytes {
            let Some(oldest) = self.uses.values().next().cloned() else { break };
            self.remove(&oldest);
        }
        self.clock += 1;
        self.bytes += size;
        self.uses.insert(self.clock, key.to_owned());
        let slot = Slot { json, created_s: entry.created_s, expires_s: entry.expires_s, used: self.clock };
        self.entries.insert(key.to_owned(), slot);
    }

    /// Whether an entry at least as new is there: a replay must not bring an old answer back.
    fn is_current(&self, key: &str, entry: &Entry) -> bool {
        self.entries.get(key).is_some_and(|slot| (slot.created_s, slot.expires_s) >= (entry.created_s, entry.expires_s))
    }

    fn remove(&mut self, key: &str) {
        if let Some(slot) = self.entries.remove(key) {
            self.uses.remove(&slot.used);
            self.bytes -= size(key, &slot.json);
        }
    }
}

fn size(key: &str, json: &Bytes) -> u64 {
    (key.len() * 2 + json.len()) as u64 + OVERHEAD
}

#[cfg(test)]
mod tests {
    use parapet_engine::record::Answered;

    use super::*;

    fn key(n: u32) -> String {
        format!("{n:064x}")
    }

    fn entry(created_s: u64, text: &str) -> Entry {
        Entry {
            created_s,
            expires_s: created_s + 10,
            answers: vec![Answered { content: text.to_owned(), ..Answered::default() }],
            ..Entry::default()
        }
    }

    fn text(store: &Embedded, key: &str, now_s: u64) -> Option<String> {
        let json = store.get(key, now_s)?;
        let entry: Entry = serde_json::from_slice(&json).unwrap();
        Some(entry.answers[0].content.clone())
    }

    #[test]
    fn an_entry_lives_until_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("c"), 1 << 20, 100).unwrap();
        store.put(&[(key(1), entry(100, "a"))], 100).unwrap();
        assert_eq!(text(&store, &key(1), 109).as_deref(), Some("a"));
        assert_eq!(text(&store, &key(1), 110), None);
        assert_eq!(store.size(), (0, 0));
        store.put(&[(key(2), entry(100, "late"))], 110).unwrap();
        assert_eq!(text(&store, &key(2), 105), None);
    }

    #[test]
    fn a_newer_entry_wins_and_a_replay_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let store = Embedded::open(&path, 1 << 20, 100).unwrap();
        store.put(&[(key(1), entry(100, "old"))], 100).unwrap();
        store.put(&[(key(1), entry(101, "new"))], 101).unwrap();
        let len = std::fs::metadata(&path).unwrap().len();
        store.put(&[(key(1), entry(100, "old")), (key(1), entry(101, "new"))], 101).unwrap();
        assert_eq!(text(&store, &key(1), 102).as_deref(), Some("new"));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), len);
    }

    #[test]
    fn the_least_recently_used_leaves_when_it_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let max = 10 * (size(&key(0), &Bytes::from(serde_json::to_vec(&entry(100, "x")).unwrap())));
        let store = Embedded::open(&dir.path().join("c"), max, 100).unwrap();
        for n in 0..10 {
            store.put(&[(key(n), entry(100, "x"))], 100).unwrap();
        }
        assert_eq!(store.size(), (10, max));
        assert!(store.get(&key(0), 100).is_some());
        store.put(&[(key(10), entry(100, "x"))], 100).unwrap();
        assert_eq!(store.size(), (10, max));
        assert!(store.get(&key(0), 100).is_some() && store.get(&key(1), 100).is_none());
        store.put(&[(key(11), entry(100, &"x".repeat(4096)))], 100).unwrap();
        assert!(store.get(&key(11), 100).is_none());
    }

    #[test]
    fn a_restart_keeps_the_entries_and_forgets_the_dead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        {
            let store = Embedded::open(&path, 1 << 20, 100).unwrap();
            store.put(&[(key(1), entry(100, "a")), (key(2), entry(95, "b"))], 100).unwrap();
        }
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(b"garbage\n{\"key\":\"to");
        std::fs::write(&path, torn).unwrap();
        let store = Embedded::open(&path, 1 << 20, 106).unwrap();
        assert_eq!(text(&store, &key(1), 106).as_deref(), Some("a"));
        assert_eq!(store.size().0, 1);
    }

    #[test]
    fn the_file_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let store = Embedded::open(&path, 1 << 20, 100).unwrap();
        for n in 0..200 {
            store.put(&[(key(n % 3), entry(100 + u64::from(n), &"x".repeat(50_000)))], 100).unwrap();
        }
        assert!(std::fs::metadata(&path).unwrap().len() < SLACK + 600_000);
        drop(store);
        assert_eq!(Embedded::open(&path, 1 << 20, 100).unwrap().size().0, 3);
    }
}
