//! From the queue to LangSmith, once the trace is known to be the caller's own.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;

use super::queue::Item;
use super::{Feedback, now_us};
use crate::langsmith::client::{Client, Outcome};
use crate::langsmith::config::Config;
use crate::langsmith::order::iso;
use crate::langsmith::retry::{Backoff, Policy};
use crate::spool::index::Known;

/// A trace that nobody has seen by then does not exist: the access log is milliseconds behind.
const UNSEEN: Duration = Duration::from_secs(10 * 60);
/// A run that LangSmith does not show by then was refused or removed there.
const INVISIBLE: Duration = Duration::from_secs(24 * 3600);
const LOOK: Duration = Duration::from_millis(250);

pub struct Sender {
    pub feedback: Arc<Feedback>,
    /// None without an upload: feedback then ends where it is.
    pub client: Option<Arc<Client>>,
    pub config: Config,
    pub policy: Policy,
    pub stop: watch::Receiver<bool>,
}

/// What is to be done with an item now.
#[derive(Debug, PartialEq)]
enum Step {
    Wait,
    End(&'static str),
    Send(Known),
}

impl Sender {
    /// Sends until the process is to end.
    pub async fn run(mut self) {
        let mut waits: HashMap<Uuid, (Instant, Backoff)> = HashMap::new();
        while !*self.stop.borrow() {
            let due: Vec<Item> = {
                let queue = self.feedback.queue.lock().unwrap_or_else(PoisonError::into_inner);
                waits.retain(|id, _| queue.pending().contains_key(id));
                let now = Instant::now();
                let is_due = |item: &&Item| waits.get(&item.id).is_none_or(|(at, _)| *at <= now);
                queue.pending().values().filter(is_due).cloned().collect()
            };
            for item in due {
                if *self.stop.borrow() {
                    return;
                }
                let ended = match self.step(&item) {
                    Step::Wait => None,
                    Step::End(outcome) => Some(outcome),
                    Step::Send(known) => match self.send(&item, &known).await {
                        Ok(outcome) => Some(outcome),
                        Err(after) => {
                            let (at, backoff) =
                                waits.entry(item.id).or_insert_with(|| (Instant::now(), Backoff::new(self.policy)));
                            *at = Instant::now() + backoff.wait(after);
                            None
                        }
                    },
                };
                if let Some(outcome) = ended {
                    self.end(item.id, outcome);
                }
            }
            self.feedback.metrics.feedback_pending(self.feedback.pending());
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.feedback.arrived.notified() => {}
                _ = self.stop.changed() => {}
            }
        }
    }

    fn step(&self, item: &Item) -> Step {
        let known = {
            let index = self.feedback.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.get(item.trace_id).cloned()
        };
        let age = Duration::from_micros(now_us().saturating_sub(item.received_us));
        match known {
            None if age > UNSEEN => Step::End("unseen"),
            None => Step::Wait,
            Some(known) if *known.tenant != *item.tenant => Step::End("foreign"),
            Some(_) if self.client.is_none() => Step::End("local"),
            Some(known) if !self.config.samples(known.trace_id) => Step::End("not_sampled"),
            Some(_) if age > INVISIBLE => Step::End("expired"),
            Some(known) => Step::Send(known),
        }
    }

    /// The end, or how long the server asks to wait.
    async fn send(&self, item: &Item, known: &Known) -> Result<&'static str, Option<Duration>> {
        let Some(client) = &self.client else { return Ok("local") };
        let body = json!({
            "id": item.id.to_string(), "run_id": item.trace_id.to_string(), "trace_id": known.trace_id.to_string(),
            "start_time": iso(known.start_us), "created_at": iso(item.received_us),
            "key": item.key, "score": item.score, "value": item.value, "comment": item.comment,
            "feedback_source": { "type": "api", "metadata": { "tenant": item.tenant, "user": item.user } },
        });
        match client.post_feedback(body.to_string().into_bytes()).await {
            Outcome::Accepted | Outcome::Duplicate => Ok("sent"),
            Outcome::TooLarge => Ok("refused_by_langsmith"),
            Outcome::Rejected { status, .. } => {
                tracing::error!("LangSmith refused feedback {} with status {status}; it is dropped", item.id);
                Ok("refused_by_langsmith")
            }
            // The run may be on its way yet.
            Outcome::NotFound => Err(None),
            Outcome::Misconfigured { .. } => Err(Some(self.policy.operator)),
            Outcome::Retry { after, .. } => Err(after),
        }
    }

    fn end(&self, id: Uuid, outcome: &'static str) {
        let mut queue = self.feedback.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match queue.end(id, outcome) {
            Ok(()) => self.feedback.metrics.feedback(outcome),
            // It is pending still, and is looked at again.
            Err(error) => tracing::error!("the end of a feedback cannot be stored: {error}; trying again"),
        }
    }
}
