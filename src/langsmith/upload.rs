//! From the spool to one destination. Its cursor moves only when every run before it was accepted or parked, so a kill at
//! any point repeats requests and loses nothing; the runs' ids make a repeated one a duplicate.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::config::Config;
use super::dead_letter::Letter;
use super::deliver::{Delivery, Stopped};
use super::run::Run;
use super::tree::{self, Shape};
use crate::accesslog::line;
use crate::feedback::Feedback;
use crate::spool::{Batch, Cursor, Queue};

/// Runs that a record makes, about: a batch of the spool is then about one request, which is what a kill repeats.
const RUNS_PER_LINE: usize = 4;
/// Bytes of records turned into runs at a time: with what may be on its way it bounds the upload's memory.
const BATCH_BYTES: usize = 4 << 20;
/// Between two looks for dead letters that are to be sent again.
const LOOK: Duration = Duration::from_secs(1);
/// The cursor is saved at most so often; what a kill repeats is what was delivered since.
const SAVE: Duration = Duration::from_millis(100);

pub struct Uploader {
    pub delivery: Arc<Delivery>,
    pub config: Arc<Config>,
    pub shape: Shape,
    pub queue: Queue,
    /// Blocks become feedback.
    pub feedback: Arc<Feedback>,
}

/// A batch on its way.
struct Sent {
    number: u64,
    next: Cursor,
    lines: u64,
    done: bool,
}

impl Uploader {
    /// Uploads until the process is to end. The batches on their way are finished unless the server makes them wait.
    pub async fn run(mut self) {
        // Either way the process ends, and the spool has what is missing.
        let _: Result<(), Stopped> = self.work().await;
    }

    async fn work(&mut self) -> Result<(), Stopped> {
        let mut stop = self.delivery.stop.clone();
        let mut deliveries: JoinSet<(u64, Result<(), Stopped>)> = JoinSet::new();
        let mut sent: VecDeque<Sent> = VecDeque::new();
        let mut read_to = self.queue.cursor();
        let (mut saved, mut looked) = (Instant::now(), None);
        for number in 0.. {
            let batch = if !*stop.borrow() && sent.len() < self.delivery.pace.in_flight() {
                self.read(read_to).await?
            } else {
                Batch { lines: Vec::new(), next: read_to }
            };
            let found = !batch.lines.is_empty();
            if found {
                read_to = batch.next;
                sent.push_back(Sent { number, next: batch.next, lines: batch.lines.len() as u64, done: false });
                deliveries.spawn(self.deliver(number, batch));
            } else if sent.is_empty() {
                if *stop.borrow() {
                    return Ok(());
                }
                if looked.is_none_or(|at: Instant| at.elapsed() > LOOK) {
                    looked = Some(Instant::now());
                    self.send_again().await?;
                }
                tokio::select! {
                    () = self.queue.changed() => {}
                    _ = stop.changed() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
                continue;
            }
            let may_send_more = found && sent.len() < self.delivery.pace.in_flight();
            let ended = if may_send_more {
                deliveries.try_join_next()
            } else {
                tokio::select! {
                    ended = deliveries.join_next() => ended,
                    () = self.queue.changed(), if sent.len() < self.delivery.pace.in_flight() && !*stop.borrow() => None,
                }
            };
            if let Some(ended) = ended {
                let (number, result) = ended.map_err(|_| Stopped)?;
                if result.is_err() {
                    // What is done need not be repeated.
                    self.advance(&mut sent).await?;
                    return result;
                }
                sent.iter_mut().filter(|batch| batch.number == number).for_each(|batch| batch.done = true);
            }
            if saved.elapsed() >= SAVE || sent.iter().all(|batch| batch.done) {
                self.advance(&mut sent).await?;
                saved = Instant::now();
            }
        }
        Ok(())
    }

    fn name(&self) -> &str {
        &self.delivery.destination
    }

    async fn read(&mut self, from: Cursor) -> Result<Batch, Stopped> {
        let lines = (self.delivery.client.limits().await.runs / RUNS_PER_LINE).max(1);
        loop {
            match self.queue.read_from(from, lines, BATCH_BYTES).await {
                Ok(batch) => return Ok(batch),
                Err(error) => self.wait_out("the spool cannot be read", &error).await?,
            }
        }
    }

    /// Everything that is to be done for the batch, and its number.
    fn deliver(&self, number: u64, batch: Batch) -> impl Future<Output = (u64, Result<(), Stopped>)> + use<> {
        let (delivery, config, shape) = (Arc::clone(&self.delivery), Arc::clone(&self.config), self.shape.clone());
        let feedback = Arc::clone(&self.feedback);
        async move {
            let metrics = Arc::clone(&delivery.metrics);
            // Megabytes of JSON: not on a thread that serves requests.
            let made = tokio::task::spawn_blocking(move || {
                let mut made = Made::default();
                batch.lines.iter().for_each(|bytes| made.add(bytes, &config, &shape));
                made
            });
            let Ok(made) = made.await else { return (number, Err(Stopped)) };
            for (outcome, count) in [("not_sampled", made.left_out), ("unreadable", made.unreadable)] {
                if count > 0 {
                    metrics.uploaded(&delivery.destination, outcome, count);
                }
            }
            let mut result = delivery.runs(&made.runs).await;
            for block in made.blocks {
                if result.is_ok() {
                    result = feedback.blocked(&delivery, block).await;
                }
            }
            (number, result)
        }
    }

    /// Saves how far everything is done, in order.
    async fn advance(&self, sent: &mut VecDeque<Sent>) -> Result<(), Stopped> {
        let mut reached = None;
        let mut lines = 0;
        while let Some(batch) = sent.pop_front_if(|batch| batch.done) {
            reached = Some(batch.next);
            lines += batch.lines;
        }
        let Some(to) = reached else { return Ok(()) };
        loop {
            match self.queue.advance_to(to, lines).await {
                Ok(()) => return Ok(()),
                Err(error) => self.wait_out("the spool's cursor cannot be saved", &error).await?,
            }
        }
    }

    /// Delivers the dead letters that an operator wants to be sent again.
    async fn send_again(&self) -> Result<(), Stopped> {
        const AT_ONCE: usize = 100;
        loop {
            let letters = Arc::clone(&self.delivery.dead_letters);
            let name = self.name().to_owned();
            let retries = match tokio::task::spawn_blocking(move || letters.retries(&name, AT_ONCE)).await {
                Ok(Ok(retries)) if retries.is_empty() => return Ok(()),
                Ok(Ok(retries)) => retries,
                Ok(Err(error)) => {
                    tracing::error!("dead letters cannot be read: {error}; looked at again later");
                    return Ok(());
                }
                Err(_) => return Err(Stopped),
            };
            let run = |letter: &Letter| letter.run.as_ref().and_then(|run| Run::read(run).ok());
            let runs: Vec<Run> = retries.letters.iter().filter_map(run).collect();
            self.delivery.runs(&runs).await?;
            loop {
                match self.delivery.dead_letters.retried(self.name(), &retries) {
                    Ok(()) => break,
                    Err(error) => self.wait_out("retried dead letters cannot be removed", &error).await?,
                }
            }
        }
    }

    async fn wait_out(&self, what: &str, error: &io::Error) -> Result<(), Stopped> {
        tracing::error!("{what}: {error}; trying again");
        self.delivery.pause(Duration::from_secs(1)).await
    }
}

/// What a batch of lines becomes.
#[derive(Default)]
struct Made {
    runs: Vec<Run>,
    blocks: Vec<crate::feedback::Block>,
    left_out: u64,
    unreadable: u64,
}

impl Made {
    fn add(&mut self, bytes: &[u8], config: &Config, shape: &Shape) {
        let Ok((line, _)) = line::parse(bytes) else {
            // The spool took only lines that could be read: another version wrote it, or the disk is bad.
            tracing::error!("a line of the spool cannot be read and is passed over");
            self.unreadable += 1;
            return;
        };
        let root = tree::root_order(&line);
        if line.record.unsampled || !config.samples(root.trace_id) {
            self.left_out += 1;
            return;
        }
        self.runs.extend(tree::tree(&line, shape));
        self.blocks.extend(crate::feedback::Block::of(&line, &root));
    }
}

#[cfg(test)]
mod tests;
