//! From the spool to LangSmith. The spool's cursor moves only when every run before it was accepted or parked, so a
//! kill at any point repeats requests and loses nothing; the runs' ids make a repeated one a duplicate.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::client::{Client, Limits, Outcome};
use super::config::Config;
use super::dead_letter::DeadLetters;
use super::retry::{Backoff, Policy};
use super::run::Run;
use super::tree;
use crate::accesslog::line;
use crate::metrics::Metrics;
use crate::spool::Queue;

/// Runs that a record makes, about: a batch of the spool is then about one request, which is what a kill repeats.
const RUNS_PER_LINE: usize = 4;
/// Bytes of records turned into runs at a time: the upload's memory is a small multiple.
const BATCH_BYTES: usize = 8 << 20;

pub struct Uploader {
    pub client: Arc<Client>,
    pub config: Config,
    pub queue: Queue,
    pub dead_letters: DeadLetters,
    pub metrics: Arc<Metrics>,
    pub policy: Policy,
    /// True when the process is to end.
    pub stop: watch::Receiver<bool>,
}

/// The process ends; what was not delivered is in the spool.
#[derive(Debug)]
struct Stopped;

impl Uploader {
    /// Uploads until the process is to end. The batch in work is finished unless the server makes it wait.
    pub async fn run(mut self) {
        let limits = self.client.limits().await;
        while !*self.stop.borrow() {
            let lines = (limits.runs / RUNS_PER_LINE).max(1);
            let batch = match self.queue.read(lines, BATCH_BYTES).await {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::error!("the spool cannot be read: {error}; trying again");
                    if self.pause(self.policy.operator).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            if batch.lines.is_empty() {
                tokio::select! {
                    () = self.queue.changed() => {}
                    _ = self.stop.changed() => {}
                }
                continue;
            }
            let runs = self.runs(&batch.lines);
            if self.deliver(&runs, limits).await.is_err() {
                return;
            }
            while let Err(error) = self.queue.advance(&batch) {
                tracing::error!("the spool's cursor cannot be saved: {error}; trying again");
                if self.pause(Duration::from_secs(1)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn runs(&self, lines: &[Vec<u8>]) -> Vec<Run> {
        let mut runs = Vec::new();
        for bytes in lines {
            match line::parse(bytes) {
                Ok((line, _)) if self.config.samples(tree::root_order(&line).trace_id) => {
                    runs.extend(tree::tree(&line, &self.config.shape));
                }
                Ok(_) => self.metrics.uploaded("not_sampled", 1),
                // The spool took only lines that could be read: another version wrote it, or the disk is bad.
                Err(why) => {
                    tracing::error!("a line of the spool cannot be read and is passed over: {why}");
                    self.metrics.uploaded("unreadable", 1);
                }
            }
        }
        runs
    }

    async fn deliver(&mut self, runs: &[Run], limits: Limits) -> Result<(), Stopped> {
        // Ranges still to send, the next one last.
        let mut pending = chunks(runs, limits);
        pending.reverse();
        let mut backoff = Backoff::new(self.policy);
        let mut complained = false;
        while let Some(range) = pending.pop() {
            let part = runs.get(range.clone()).unwrap_or_default();
            let outcome = self.client.post_runs(part).await;
            self.metrics.upload_request(&outcome);
            if !matches!(outcome, Outcome::Retry { .. }) {
                backoff = Backoff::new(self.policy);
            }
            let wait = match outcome {
                Outcome::Accepted => {
                    self.metrics.uploaded("accepted", part.len() as u64);
                    if std::mem::take(&mut complained) {
                        tracing::info!("LangSmith accepts runs again");
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
                    self.metrics.uploaded("duplicate", 1);
                    continue;
                }
                Outcome::TooLarge => {
                    self.park(part, 413, "too large").await?;
                    continue;
                }
                Outcome::Rejected { status, response } => {
                    self.park(part, status, &response).await?;
                    continue;
                }
                Outcome::NotFound => self.complain(&mut complained, 404),
                Outcome::Misconfigured { status } => self.complain(&mut complained, status),
                Outcome::Retry { why, after } => {
                    let wait = backoff.wait(after);
                    tracing::warn!("LangSmith did not take {} runs ({why}); next try in {wait:?}", part.len());
                    wait
                }
            };
            pending.push(range);
            self.pause(wait).await?;
        }
        Ok(())
    }

    fn complain(&self, complained: &mut bool, status: u16) -> Duration {
        if !std::mem::replace(complained, true) {
            tracing::error!(
                "LangSmith refuses with status {status}: check LANGSMITH_API_KEY, LANGSMITH_ENDPOINT and \
                 LANGSMITH_WORKSPACE_ID. Runs are kept in the spool and tried again every {:?}",
                self.policy.operator
            );
        }
        self.policy.operator
    }

    async fn park(&mut self, runs: &[Run], status: u16, response: &str) -> Result<(), Stopped> {
        for run in runs {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
            while let Err(error) = self.dead_letters.park(run, status, response, u64::try_from(now).unwrap_or(u64::MAX))
            {
                tracing::error!("the dead-letter file cannot be written: {error}; trying again");
                self.pause(Duration::from_secs(1)).await?;
            }
            tracing::error!("LangSmith refused run {} with status {status}; it is in the dead-letter file", run.id);
            self.metrics.uploaded("parked", 1);
        }
        Ok(())
    }

    /// Waits, unless the process is to end.
    async fn pause(&mut self, wait: Duration) -> Result<(), Stopped> {
        if *self.stop.borrow() {
            return Err(Stopped);
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            // Nobody holds the sender any more, or it says stop: the same here.
            _ = self.stop.changed() => Err(Stopped),
        }
    }
}

/// Consecutive ranges within the limits; a run too big for them is alone.
fn chunks(runs: &[Run], limits: Limits) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, run) in runs.iter().enumerate() {
        let size = run.size();
        if index > start && (index - start >= limits.runs || bytes + size > limits.bytes) {
            chunks.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    if start < runs.len() {
        chunks.push(start..runs.len());
    }
    chunks
}

#[cfg(test)]
mod tests;
