//! What LangSmith has been told, in bounded memory.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Mutex,
};

use serde_json::Value;
use uuid::Uuid;

use super::{
    batch::Batch,
    lock,
    run::{Object, text},
};

/// The oldest are forgotten beyond.
const MAX_RUNS: usize = 200_000;
const MAX_FEEDBACK: usize = 200_000;
/// No more are made beyond.
const MAX_SESSIONS: usize = 1000;

#[derive(Default)]
pub(super) struct Store(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    runs: HashMap<String, Run>,
    order: VecDeque<String>,
    feedback: VecDeque<Value>,
    /// UUIDs of the projects, by name.
    sessions: BTreeMap<String, String>,
}

struct Run {
    object: Object,
    /// A patch may come before its post; only a second post is a duplicate.
    posted: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    All,
    /// Posts whose id an earlier request had posted.
    ExceptDuplicates(Vec<String>),
}

impl Store {
    /// A duplicate keeps nothing else of its request from being stored: clients take 409 for success.
    pub(super) fn ingest(&self, batch: Batch) -> Stored {
        let mut kept = lock(&self.0);
        let id_of = |run: &Object| text(run, "id").unwrap_or_default().to_owned();
        let (new, duplicates): (Vec<Object>, Vec<Object>) =
            batch.posts.into_iter().partition(|run| !kept.runs.get(&id_of(run)).is_some_and(|known| known.posted));
        for post in new {
            let session = text(&post, "session_name").unwrap_or("default");
            if kept.sessions.len() < MAX_SESSIONS && !kept.sessions.contains_key(session) {
                kept.sessions.insert(session.to_owned(), Uuid::now_v7().to_string());
            }
            let run = kept.entry(id_of(&post));
            run.posted = true;
            let patched = std::mem::replace(&mut run.object, post);
            run.object.extend(patched);
        }
        for patch in batch.patches {
            kept.entry(id_of(&patch)).object.extend(patch);
        }
        kept.feedback.extend(batch.feedback);
        kept.evict();
        if duplicates.is_empty() {
            Stored::All
        } else {
            Stored::ExceptDuplicates(duplicates.iter().map(id_of).collect())
        }
    }

    /// Whether a run has this id or trace.
    pub(super) fn has(&self, id: &str) -> bool {
        lock(&self.0).runs.contains_key(id)
    }

    /// Whether a feedback has this id.
    pub(super) fn has_feedback(&self, id: &str) -> bool {
        let has_id = |feedback: &Value| feedback.get("id").and_then(Value::as_str) == Some(id);
        !id.is_empty() && lock(&self.0).feedback.iter().any(has_id)
    }

    /// Projects with their UUIDs; of one name, if there is one.
    pub(super) fn sessions(&self, name: Option<&str>) -> BTreeMap<String, String> {
        let mut sessions = lock(&self.0).sessions.clone();
        sessions.retain(|known, _| name.is_none_or(|name| name == known));
        sessions
    }

    pub(super) fn runs(&self, trace_id: Option<&str>) -> Vec<Value> {
        let kept = lock(&self.0);
        let runs = kept.order.iter().filter_map(|id| kept.runs.get(id));
        let wanted = runs.filter(|run| trace_id.is_none_or(|trace_id| text(&run.object, "trace_id") == Some(trace_id)));
        wanted.map(|run| Value::Object(run.object.clone())).collect()
    }

    pub(super) fn feedback(&self, trace_id: Option<&str>) -> Vec<Value> {
        let of_trace = |feedback: &&Value| {
            trace_id.is_none_or(|trace_id| feedback.get("trace_id").and_then(Value::as_str) == Some(trace_id))
        };
        lock(&self.0).feedback.iter().filter(of_trace).cloned().collect()
    }

    pub(super) fn clear(&self) {
        *lock(&self.0) = Kept::default();
    }
}

impl Kept {
    fn entry(&mut self, id: String) -> &mut Run {
        let order = &mut self.order;
        self.runs.entry(id).or_insert_with_key(|id| {
            order.push_back(id.clone());
            Run { object: Object::new(), posted: false }
        })
    }

    fn evict(&mut self) {
        while self.order.len() > MAX_RUNS {
            let Some(oldest) = self.order.pop_front() else { break };
            self.runs.remove(&oldest);
        }
        while self.feedback.len() > MAX_FEEDBACK {
            self.feedback.pop_front();
        }
    }
}
