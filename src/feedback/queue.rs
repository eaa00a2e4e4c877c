//! The durable queue: a file of accepted items and of ends; what has no end yet at one of its destinations is pending.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use crate::spool::durable::{self, Lines};

/// Past this size the file is rewritten with the pending items alone.
const REWRITE: u64 = 8 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The feedback's own id: LangSmith knows a repeated one by it.
    #[serde(serialize_with = "text", deserialize_with = "uuid")]
    pub id: Uuid,
    /// The run it is about, as the caller knows it.
    #[serde(serialize_with = "text", deserialize_with = "uuid")]
    pub trace_id: Uuid,
    pub tenant: String,
    pub user: String,
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    pub received_us: u64,
    /// A guard's verdict, not a caller's vote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// For one destination alone; none: for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// What a vote is looked up for: it was known when the verdict was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub guard_model: String,
    /// Of the run's root.
    #[serde(serialize_with = "text", deserialize_with = "uuid")]
    pub root: Uuid,
    pub start_us: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Accepted(Box<Item>),
    Ended {
        #[serde(serialize_with = "text", deserialize_with = "uuid")]
        id: Uuid,
        /// Absent where nothing is uploaded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<String>,
        outcome: String,
    },
}

#[derive(Debug, Clone)]
pub struct Pending {
    pub item: Item,
    /// Destinations that it has ended at.
    ended: BTreeSet<String>,
}

impl Pending {
    pub fn is_for(&self, destination: &str) -> bool {
        self.item.to.as_ref().is_none_or(|to| to == destination) && !self.ended.contains(destination)
    }

    fn has_ended(&self, destinations: &[String]) -> bool {
        !destinations.is_empty() && !destinations.iter().any(|destination| self.is_for(destination))
    }
}

#[derive(Debug)]
pub struct Queue {
    path: PathBuf,
    lines: Lines,
    destinations: Vec<String>,
    pending: BTreeMap<Uuid, Pending>,
}

impl Queue {
    /// Opens the queue for these destinations; what was for others alone is given up.
    pub fn open(path: &Path, destinations: &[String]) -> io::Result<Self> {
        let lines = Lines::open(path)?;
        let pending = read(&lines.read_all()?, path, destinations);
        let mut queue = Self { path: path.to_owned(), lines, destinations: destinations.to_vec(), pending };
        match queue.rewrite() {
            // It is as it was, and is rewritten when it has grown.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::error!("the feedback queue cannot be rewritten: {error}; going on");
            }
            done => done?,
        }
        Ok(queue)
    }

    /// By id, which is by time.
    pub const fn pending(&self) -> &BTreeMap<Uuid, Pending> {
        &self.pending
    }

    /// Takes an item; it is on the disk when this returns. One that is pending already stays as it is.
    pub fn accept(&mut self, item: Item) -> io::Result<()> {
        if self.pending.contains_key(&item.id) {
            return Ok(());
        }
        let entry = Entry::Accepted(Box::new(item));
        self.append(&entry)?;
        if let Entry::Accepted(item) = entry {
            self.pending.insert(item.id, Pending { item: *item, ended: BTreeSet::new() });
        }
        Ok(())
    }

    /// Ends an item at a destination, or for good where there is none.
    pub fn end(&mut self, id: Uuid, at: Option<&str>, outcome: &str) -> io::Result<()> {
        self.append(&Entry::Ended { id, at: at.map(str::to_owned), outcome: outcome.to_owned() })?;
        let over = match (self.pending.get_mut(&id), at) {
            (Some(pending), Some(at)) => {
                pending.ended.insert(at.to_owned());
                pending.has_ended(&self.destinations)
            }
            _ => true,
        };
        if over {
            self.pending.remove(&id);
        }
        if self.lines.len() > REWRITE && self.pending.len() < 1000 {
            self.rewrite()?;
        }
        Ok(())
    }

    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.lines.append(&line)
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let mut content = Vec::new();
        for pending in self.pending.values() {
            serde_json::to_writer(&mut content, &Entry::Accepted(Box::new(pending.item.clone())))?;
            content.push(b'\n');
            for at in &pending.ended {
                let ended = Entry::Ended { id: pending.item.id, at: Some(at.clone()), outcome: "ended".to_owned() };
                serde_json::to_writer(&mut content, &ended)?;
                content.push(b'\n');
            }
        }
        durable::replace(&self.path, &content)?;
        self.lines = Lines::open(&self.path)?;
        Ok(())
    }
}

/// How many wait, read from the file of a queue that another may have open.
pub fn count(path: &Path, destinations: &[String]) -> io::Result<usize> {
    match durable::read_tail(path, u64::MAX) {
        Ok(content) => Ok(read(&content, path, destinations).len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn read(content: &[u8], path: &Path, destinations: &[String]) -> BTreeMap<Uuid, Pending> {
    let mut pending: BTreeMap<Uuid, Pending> = BTreeMap::new();
    for line in content.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Entry::Accepted(item)) => {
                pending.insert(item.id, Pending { item: *item, ended: BTreeSet::new() });
            }
            Ok(Entry::Ended { id, at: Some(at), .. }) => {
                if let Some(pending) = pending.get_mut(&id) {
                    pending.ended.insert(at);
                }
            }
            Ok(Entry::Ended { id, at: None, .. }) => {
                pending.remove(&id);
            }
            Err(_) => tracing::error!("a line of {} cannot be read and is passed over", path.display()),
        }
    }
    pending.retain(|_, item| !item.has_ended(destinations));
    pending
}

fn text<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    let text = String::deserialize(deserializer)?;
    Uuid::try_parse(&text).map_err(serde::de::Error::custom)
}
