//! From the queue to one LangSmith, once the trace is known to be the caller's own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;
use uuid::Uuid;

use super::queue::Item;
use super::{Feedback, lock};
use crate::langsmith::client::{Client, Outcome, Project};
use crate::langsmith::config::Config;
use crate::langsmith::dead_letter::{DeadLetters, Letter};
use crate::langsmith::deliver::now_us;
use crate::langsmith::order::iso;
use crate::langsmith::retry::{Backoff, Policy};
use crate::spool::index::Known;

/// A trace that nobody has seen by then does not exist, or its line waits behind very many others.
const UNSEEN: Duration = Duration::from_secs(10 * 60);
/// The project is made by the first run in it. If LangSmith does not name it by then, feedback goes without.
const PROJECT: Duration = Duration::from_secs(60);
/// A run that LangSmith does not show for so long was refused or removed there.
pub const INVISIBLE: Duration = Duration::from_secs(24 * 3600);
const LOOK: Duration = Duration::from_millis(250);
/// Between two looks for dead letters that are to be sent again, and two questions that LangSmith does not answer.
const SELDOM: Duration = Duration::from_secs(1);
const UNSAID: Duration = Duration::from_secs(3600);

/// A LangSmith that gets feedback.
pub struct Destination {
    pub name: String,
    pub client: Arc<Client>,
    pub dead_letters: Arc<DeadLetters>,
}

pub struct Sender {
    pub feedback: Arc<Feedback>,
    /// None without an upload: feedback then ends where it is.
    pub destination: Option<Destination>,
    pub config: Arc<Config>,
    pub policy: Policy,
    /// How long a run may stay unknown to LangSmith before its feedback is a dead letter.
    pub invisible: Duration,
    pub stop: watch::Receiver<bool>,
}

/// What is to be done with an item now.
#[derive(Debug, PartialEq)]
enum Step {
    Wait,
    End(&'static str),
    GiveUp(&'static str),
    Send(Known),
}

/// What came of sending one.
enum Sent {
    End(&'static str),
    GiveUp {
        status: u16,
        why: String,
    },
    /// The run is not there yet.
    NotYet,
    /// Nothing can be sent for so long.
    Hold(Option<Duration>),
}

/// An item that LangSmith has no run for yet.
struct Missing {
    since: Instant,
    next: Instant,
    backoff: Backoff,
}

impl Sender {
    /// Sends until the process is to end.
    pub async fn run(mut self) {
        let mut missing: HashMap<Uuid, Missing> = HashMap::new();
        let mut arrived = self.feedback.arrived.subscribe();
        let mut backoff = Backoff::new(self.policy);
        let (mut hold, mut looked, mut unsaid) = (None::<Instant>, None::<Instant>, None::<Instant>);
        while !*self.stop.borrow() {
            arrived.borrow_and_update();
            if looked.is_none_or(|at| at.elapsed() > SELDOM) {
                looked = Some(Instant::now());
                self.take_retries();
            }
            let now = Instant::now();
            let due = if hold.is_some_and(|until| now < until) { Vec::new() } else { self.due(&mut missing, now) };
            for item in due {
                if *self.stop.borrow() {
                    return;
                }
                let sent = match self.step(&item) {
                    Step::Wait => continue,
                    Step::End(outcome) => Sent::End(outcome),
                    Step::GiveUp(why) => Sent::GiveUp { status: 0, why: why.to_owned() },
                    Step::Send(known) => self.send(&item, &known, &mut unsaid).await,
                };
                match sent {
                    Sent::End(outcome) => self.end(item.id, outcome),
                    Sent::GiveUp { status, why } => self.give_up(&item, status, why),
                    Sent::NotYet => {
                        let entry = missing.entry(item.id).or_insert_with(|| Missing {
                            since: Instant::now(),
                            next: Instant::now(),
                            backoff: Backoff::new(self.policy),
                        });
                        entry.next = Instant::now() + entry.backoff.wait(None);
                        if entry.since.elapsed() > self.invisible {
                            self.give_up(&item, 404, "LangSmith has no such run".to_owned());
                        }
                    }
                    Sent::Hold(wait) => {
                        hold = Some(Instant::now() + backoff.wait(wait));
                        break;
                    }
                }
                backoff = Backoff::new(self.policy);
            }
            self.feedback.metrics.feedback_pending(self.feedback.pending());
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = arrived.changed() => {}
                _ = self.stop.changed() => {}
            }
        }
    }

    fn due(&self, missing: &mut HashMap<Uuid, Missing>, now: Instant) -> Vec<Item> {
        let queue = lock(&self.feedback.queue);
        missing.retain(|id, _| queue.pending().contains_key(id));
        let pending = queue.pending().values().filter(|pending| match &self.destination {
            Some(destination) => pending.is_for(&destination.name),
            None => true,
        });
        let is_due = |item: &&Item| missing.get(&item.id).is_none_or(|entry| entry.next <= now);
        pending.map(|pending| &pending.item).filter(is_due).cloned().collect()
    }

    fn step(&self, item: &Item) -> Step {
        let known = match &item.verdict {
            Some(verdict) => Some(Known {
                tenant: item.tenant.as_str().into(),
                trace_id: verdict.root,
                start_us: verdict.start_us,
                sampled: true,
            }),
            None => lock(&self.feedback.index).get(item.trace_id).cloned(),
        };
        let age = Duration::from_micros(now_us().saturating_sub(item.received_us));
        match known {
            None if age > UNSEEN => Step::GiveUp("no request with this trace id was seen"),
            None => Step::Wait,
            Some(known) if *known.tenant != *item.tenant => Step::End("foreign"),
            Some(_) if self.destination.is_none() => Step::End("local"),
            Some(known) if !known.sampled || !self.config.samples(known.trace_id) => Step::End("not_sampled"),
            Some(known) => Step::Send(known),
        }
    }

    async fn send(&self, item: &Item, known: &Known, unsaid: &mut Option<Instant>) -> Sent {
        let Some(Destination { client, .. }) = &self.destination else { return Sent::End("local") };
        let project =
            if unsaid.is_some_and(|at| at.elapsed() < UNSAID) { Project::Unsaid } else { client.project().await };
        let project = match project {
            Project::Known(id) => Some(id),
            Project::NotThere if now_us().saturating_sub(item.received_us) < PROJECT.as_micros() as u64 => {
                return Sent::NotYet;
            }
            Project::NotThere => None,
            Project::Unsaid => {
                unsaid.get_or_insert_with(Instant::now);
                None
            }
            Project::Failed(Outcome::Retry { after, .. }) => return Sent::Hold(after),
            Project::Failed(_) => None,
        };
        match client.post_feedback(self.body(item, known, project)).await {
            Outcome::Accepted | Outcome::Duplicate => Sent::End("sent"),
            Outcome::TooLarge => Sent::GiveUp { status: 413, why: "too large".to_owned() },
            Outcome::Rejected { status, response } => Sent::GiveUp { status, why: response },
            // The run may be on its way yet.
            Outcome::NotFound => Sent::NotYet,
            Outcome::Misconfigured { .. } => Sent::Hold(Some(self.policy.operator)),
            Outcome::Retry { after, .. } => Sent::Hold(after),
        }
    }

    /// Newer LangSmiths find a run by its id, its project and its start together.
    fn body(&self, item: &Item, known: &Known, project: Option<String>) -> Vec<u8> {
        let mut metadata = json!({});
        if !self.config.shape.hide_metadata {
            metadata["tenant"] = item.tenant.clone().into();
            metadata["user"] = item.user.clone().into();
            if let Some(verdict) = &item.verdict {
                metadata["guard_model"] = verdict.guard_model.clone().into();
            }
        }
        let kind = if item.verdict.is_some() { "model" } else { "api" };
        let mut body = json!({
            "id": item.id.to_string(), "run_id": item.trace_id.to_string(), "trace_id": known.trace_id.to_string(),
            "start_time": iso(known.start_us), "created_at": iso(item.received_us),
            "key": item.key, "score": item.score, "value": item.value, "comment": item.comment,
            "feedback_source": { "type": kind, "metadata": metadata },
        });
        if let Some(project) = project {
            body["session_id"] = project.into();
        }
        // A verdict is no reason to keep the trace longer, at a higher price; a person's vote is.
        if item.verdict.is_some() {
            body["extend_trace_retention"] = false.into();
        }
        body.to_string().into_bytes()
    }

    /// Takes up feedback that was a dead letter.
    fn take_retries(&self) {
        const AT_ONCE: usize = 100;
        let Some(destination) = &self.destination else { return };
        let letters = &destination.dead_letters;
        let taken = letters.retries_of_feedback(AT_ONCE, |letter| {
            let item = letter.feedback.as_ref().and_then(|item| serde_json::from_str::<Item>(item.get()).ok());
            let Some(mut item) = item else { return Ok(()) };
            item.received_us = now_us();
            item.to = Some(letter.destination.clone());
            lock(&self.feedback.queue).accept(item)
        });
        if let Err(error) = taken {
            tracing::error!("dead letters cannot be taken up: {error}; looked at again later");
        }
    }

    fn give_up(&self, item: &Item, status: u16, why: String) {
        let Some(destination) = &self.destination else { return self.end(item.id, "unseen") };
        let letter = Letter {
            id: item.id.to_string(),
            time: iso(now_us()),
            destination: destination.name.clone(),
            status,
            response: why,
            run: None,
            line: None,
            feedback: serde_json::to_string(item).ok().and_then(|item| RawValue::from_string(item).ok()),
        };
        match destination.dead_letters.park(&letter) {
            Ok(()) => {
                tracing::error!("feedback {} could not be delivered; it is a dead letter now", item.id);
                self.end(item.id, "parked");
            }
            // It is pending still, and comes here again.
            Err(error) => tracing::error!("feedback cannot be put aside: {error}; trying again"),
        }
    }

    fn end(&self, id: Uuid, outcome: &'static str) {
        let at = self.destination.as_ref().map(|destination| destination.name.as_str());
        match lock(&self.feedback.queue).end(id, at, outcome) {
            Ok(()) => self.feedback.metrics.feedback(outcome),
            // It is pending still, and is looked at again.
            Err(error) => tracing::error!("the end of a feedback cannot be stored: {error}; trying again"),
        }
    }
}
