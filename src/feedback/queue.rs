//! The durable queue: a file of accepted items and of ends; what has no end yet is pending.

use std::collections::BTreeMap;
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
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Accepted(Item),
    Ended {
        #[serde(serialize_with = "text", deserialize_with = "uuid")]
        id: Uuid,
        outcome: String,
    },
}

#[derive(Debug)]
pub struct Queue {
    path: PathBuf,
    lines: Lines,
    pending: BTreeMap<Uuid, Item>,
}

impl Queue {
    pub fn open(path: &Path) -> io::Result<Self> {
        let lines = Lines::open(path)?;
        let mut pending = BTreeMap::new();
        for line in lines.read_tail(u64::MAX)?.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(Entry::Accepted(item)) => {
                    pending.insert(item.id, item);
                }
                Ok(Entry::Ended { id, .. }) => {
                    pending.remove(&id);
                }
                Err(_) => tracing::error!("a line of {} cannot be read and is passed over", path.display()),
            }
        }
        let mut queue = Self { path: path.to_owned(), lines, pending };
        queue.rewrite()?;
        Ok(queue)
    }

    /// By id, which is by time.
    pub const fn pending(&self) -> &BTreeMap<Uuid, Item> {
        &self.pending
    }

    /// Takes an item; it is on the disk when this returns.
    pub fn accept(&mut self, item: Item) -> io::Result<()> {
        let entry = Entry::Accepted(item);
        self.append(&entry)?;
        if let Entry::Accepted(item) = entry {
            self.pending.insert(item.id, item);
        }
        Ok(())
    }

    /// Ends an item.
    pub fn end(&mut self, id: Uuid, outcome: &str) -> io::Result<()> {
        self.append(&Entry::Ended { id, outcome: outcome.to_owned() })?;
        self.pending.remove(&id);
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
        for item in self.pending.values() {
            serde_json::to_writer(&mut content, &Entry::Accepted(item.clone()))?;
            content.push(b'\n');
        }
        durable::replace(&self.path, &content)?;
        self.lines = Lines::open(&self.path)?;
        Ok(())
    }
}

fn text<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    let text = String::deserialize(deserializer)?;
    Uuid::try_parse(&text).map_err(serde::de::Error::custom)
}
