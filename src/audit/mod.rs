//! The audit log: what the guards blocked, flagged or failed to judge. Append-only JSON lines, each holding the hash of
//! the one before and its own, so that a changed, removed or inserted line shows. Of the text a keyed hash,
//! and the text itself only where the policy says so.
//!
//! What a chain alone cannot show is a whole end that was cut off: who needs that ships the newest hash elsewhere.

pub mod chain;
pub mod key;

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::Path;

use parapet_engine::record::GuardRecord;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use chain::{Broken, Verified, Why, tail, verify};
use key::Key;

use crate::accesslog::line::Line;
use crate::langsmith::order::iso;
use crate::spool::durable::{self, Lines};

/// Events remembered to tell a replay by.
const REMEMBERED: usize = 65_536;
/// How much of the file's end is read for it at the start.
const RECOVERED_BYTES: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Input,
    Output,
}

impl Side {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }
}

/// One line, without the two hashes that chain it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When the verdict was in, ISO 8601 in UTC.
    pub time: String,
    pub trace_id: String,
    pub tenant: String,
    pub user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_user: Option<String>,
    pub side: Side,
    pub verdict: String,
    pub action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    pub categories: Vec<String>,
    pub policy: String,
    pub guard_model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// HMAC-SHA256 of the text's SHA-256 under the data directory's key, in hexadecimal: equal texts can be told, and
    /// a guessed one cannot be checked without the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_hmac: Option<String>,
    /// The text itself, where the policy says `audit: {text: true}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

#[derive(Debug)]
pub struct Audit {
    lines: Lines,
    key: Key,
    /// The hash of the newest line.
    head: String,
    written: HashSet<(Uuid, Side)>,
    order: VecDeque<(Uuid, Side)>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the audit log cannot be opened: {0}")]
    Io(#[from] io::Error),
    #[error("the audit log's last line is damaged ({0}); run `parapet audit verify` and move the file away")]
    Damaged(Why),
}

impl Audit {
    /// Opens `audit.jsonl` and its key in the directory, making what is missing.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        durable::private_dir(dir)?;
        let key = Key::load_or_make(&dir.join("key"))?;
        let lines = Lines::open(&dir.join("audit.jsonl"))?;
        let recent = lines.read_tail(RECOVERED_BYTES)?;
        let mut audit =
            Self { lines, key, head: chain::GENESIS.to_owned(), written: HashSet::new(), order: VecDeque::new() };
        let recent: Vec<&[u8]> = recent.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
        if let Some(last) = recent.last() {
            audit.head = chain::read(last).map_err(OpenError::Damaged)?.hash;
        }
        for line in recent.iter().skip(recent.len().saturating_sub(REMEMBERED)) {
            // A damaged line in the middle is for `verify` to find; going on is better than losing what comes.
            if let Ok(link) = chain::read(line)
                && let Ok(id) = Uuid::try_parse(&link.event.trace_id)
            {
                audit.remember((id, link.event.side));
            }
        }
        Ok(audit)
    }

    /// Appends the events that the records call for and that are not written yet; durable when it returns. Gives the
    /// sides written.
    pub fn append(&mut self, records: &[Line]) -> io::Result<Vec<Side>> {
        let mut content = Vec::new();
        let mut fresh = Vec::new();
        let mut head = self.head.clone();
        for record in records {
            for (side, guard) in
                [(Side::Input, &record.record.input_guard), (Side::Output, &record.record.output_guard)]
            {
                let name = (record.id, side);
                let Some(guard) = guard.as_ref().filter(|guard| is_audited(guard)) else { continue };
                if self.written.contains(&name) || fresh.contains(&name) {
                    continue;
                }
                let event = self.event(record, side, guard);
                head = chain::write(&mut content, &event, &head)?;
                fresh.push(name);
            }
        }
        if fresh.is_empty() {
            return Ok(Vec::new());
        }
        self.lines.append(&content)?;
        self.head = head;
        for &name in &fresh {
            self.remember(name);
        }
        Ok(fresh.into_iter().map(|(_, side)| side).collect())
    }

    fn event(&self, line: &Line, side: Side, guard: &GuardRecord) -> Event {
        let record = &line.record;
        let latency_us = guard.start_us.zip(guard.end_us).map(|(start, end)| end.saturating_sub(start));
        Event {
            time: iso(guard.end_us.unwrap_or(record.end_us)),
            trace_id: line.id.to_string(),
            tenant: record.tenant.clone(),
            user: record.user.clone(),
            end_user: record.end_user.clone(),
            side,
            verdict: guard.verdict.clone(),
            action: guard.action.clone(),
            score: guard.score,
            categories: guard.categories.clone(),
            policy: record.policy.clone(),
            guard_model: guard.model.clone(),
            latency_ms: latency_us.map(|us| us as f64 / 1e3),
            text_hmac: guard.text_digest.as_ref().map(|hash| self.key.hmac(hash.as_bytes())),
            text: guard.text.clone(),
        }
    }

    fn remember(&mut self, name: (Uuid, Side)) {
        while self.order.len() >= REMEMBERED {
            let Some(oldest) = self.order.pop_front() else { break };
            self.written.remove(&oldest);
        }
        if self.written.insert(name) {
            self.order.push_back(name);
        }
    }
}

fn is_audited(guard: &GuardRecord) -> bool {
    matches!(guard.action.as_str(), "block" | "flag") || guard.verdict == "failed"
}

#[cfg(test)]
mod tests;
