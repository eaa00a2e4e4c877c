//! Delivers runs to one destination, whatever it answers: each is accepted, was there already, or is parked.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::value::RawValue;
use tokio::sync::watch;

use super::client::{Client, Outcome};
use super::dead_letter::{DeadLetters, Letter};
use super::info::Limits;
use super::multipart;
use super::order::iso;
use super::retry::{Backoff, Policy};
use super::run::Run;
use crate::metrics::Metrics;

/// Batches on their way at a time while the server takes them; LangSmith's SDK goes up to 16.
const MAX_IN_FLIGHT: usize = 8;

pub struct Delivery {
    pub destination: String,
    pub client: Arc<Client>,
    pub dead_letters: Arc<DeadLetters>,
    pub metrics: Arc<Metrics>,
    pub policy: Policy,
    /// True when the process is to end.
    pub stop: watch::Receiver<bool>,
    pub pace: Pace,
}

/// How many batches may be on their way: one more after each success, one alone after a failure.
#[derive(Debug)]
pub struct Pace {
    in_flight: AtomicUsize,
    complained: AtomicBool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { in_flight: AtomicUsize::new(1), complained: AtomicBool::new(false) }
    }
}

impl Pace {
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn succeeded(&self) {
        let more = |now: usize| (now < MAX_IN_FLIGHT).then_some(now + 1);
        // An error says that it is the most already.
        let _ = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn failed(&self) {
        self.in_flight.store(1, Ordering::Relaxed);
    }
}

/// The process ends; what was not delivered is in the spool.
#[derive(Debug, PartialEq, Eq)]
pub struct Stopped;

impl Delivery {
    pub async fn runs(&self, runs: &[Run]) -> Result<(), Stopped> {
        // Ranges still to send, the next one last.
        let mut pending = chunks(runs, self.client.limits().await);
        pending.reverse();
        let mut backoff = Backoff::new(self.policy);
        while let Some(range) = pending.pop() {
            let part: Arc<[Run]> = runs.get(range.clone()).unwrap_or_default().into();
            let outcome = self.client.post_runs(&part).await;
            self.metrics.upload_request(&self.destination, &outcome);
            if !matches!(outcome, Outcome::Retry { .. }) {
                backoff = Backoff::new(self.policy);
            }
            let wait = match outcome {
                Outcome::Accepted => {
                    self.metrics.uploaded(&self.destination, "accepted", part.len() as u64);
                    self.pace.succeeded();
                    if self.pace.complained.swap(false, Ordering::Relaxed) {
                        tracing::info!("{} accepts runs again", self.destination);
                    }
                    continue;
                }
                // Which ones are new is only known one by one: none of them may be lost.
                Outcome::Duplicate | Outcome::TooLarge | Outcome::Rejected { .. } if part.len() > 1 => {
                    let middle = range.start + part.len() / 2;
                    pending.push(middle..range.end);
                    pending.push(range.start..middle);
                    continue;
                }
                Outcome::Duplicate => {
                    self.metrics.uploaded(&self.destination, "duplicate", 1);
                    continue;
                }
                Outcome::TooLarge => {
                    self.park(&part, 413, "too large").await?;
                    continue;
                }
                Outcome::Rejected { status, response } => {
                    self.park(&part, status, &response).await?;
                    continue;
                }
                Outcome::NotFound => self.complain(404),
                Outcome::Misconfigured { status } => self.complain(status),
                Outcome::Retry { why, after } => {
                    let wait = backoff.wait(after);
                    let runs = part.len();
                    tracing::warn!("{} did not take {runs} runs ({why}); next try in {wait:?}", self.destination);
                    wait
                }
            };
            self.pace.failed();
            pending.push(range);
            self.pause(wait).await?;
        }
        Ok(())
    }

    fn complain(&self, status: u16) -> Duration {
        if !self.pace.complained.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "{} refuses with status {status}: check LANGSMITH_API_KEY, LANGSMITH_ENDPOINT, LANGSMITH_WORKSPACE_ID or \
                 LANGSMITH_RUNS_ENDPOINTS. Runs are kept in the spool and tried again every {:?}",
                self.destination,
                self.policy.operator
            );
        }
        self.policy.operator
    }

    async fn park(&self, runs: &[Run], status: u16, response: &str) -> Result<(), Stopped> {
        for run in runs {
            let letter = Letter {
                id: run.id.to_string(),
                time: iso(now_us()),
                destination: self.destination.clone(),
                status,
                response: response.to_owned(),
                run: run.whole().ok().and_then(|whole| RawValue::from_string(String::from_utf8(whole).ok()?).ok()),
                feedback: None,
                line: None,
            };
            loop {
                let (letters, letter) = (Arc::clone(&self.dead_letters), letter.clone());
                let error = match tokio::task::spawn_blocking(move || letters.park(&letter)).await {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) => error,
                    Err(_) => return Err(Stopped),
                };
                tracing::error!(
                    "a refused run cannot be put aside: {error}. Trying again every {:?}",
                    self.policy.operator
                );
                self.pause(self.policy.operator).await?;
            }
            tracing::error!(
                "{} refused run {} with status {status}; it is a dead letter now",
                self.destination,
                run.id
            );
            self.metrics.uploaded(&self.destination, "parked", 1);
        }
        Ok(())
    }

    /// Waits, unless the process is to end.
    pub async fn pause(&self, wait: Duration) -> Result<(), Stopped> {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            // Nobody holds the sender any more, or it says stop: the same here.
            _ = stop.wait_for(|stop| *stop) => Err(Stopped),
        }
    }
}

pub fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    u64::try_from(now).unwrap_or(u64::MAX)
}

/// Consecutive ranges within the limits; a run too big for them is alone.
fn chunks(runs: &[Run], limits: Limits) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, multipart::FRAME);
    for (index, run) in runs.iter().enumerate() {
        let size = run.size();
        if index > start && (index - start >= limits.runs || bytes + size > limits.bytes) {
            chunks.push(start..index);
            (start, bytes) = (index, multipart::FRAME);
        }
        bytes += size;
    }
    if start < runs.len() {
        chunks.push(start..runs.len());
    }
    chunks
}
