//! The effects of the access log's lines, in the order that lets a kill at any point be repaired by reading on from the
//! saved position: spool, audit, cache, position, and only then the upload's view of the spool and the counters.
//!
//! What was done before a kill is known after it: the spool's ids, the audit log's own lines, the cache's entries. A
//! disk that is full stops the pipeline where it is; the file waits.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::line::{self, Line, Skipped};
use super::position::PositionFile;
use super::rotate::Rotator;
use super::tail::{Polled, Tail};
use crate::als::arrivals::Arrivals;
use crate::audit::Audit;
use crate::cache::{self, Store};
use crate::dashboard::Board;
use crate::langsmith::order::Order;
use crate::metrics::Metrics;
use crate::spool::Spool;
use crate::spool::index::Index;

/// Read at a time; the pipeline's memory is a small multiple.
const BATCH_BYTES: usize = 4 << 20;
/// Between looks at a file that had nothing new. Envoy itself writes every 100 ms or so.
const IDLE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Records without runs that are remembered: the two sources are seconds apart.
pub const OTHERS: usize = 16_384;
/// Lines that could not be used are logged at most so often.
const SAMPLE: Duration = Duration::from_secs(10);

/// Tells the pipeline's thread to end.
#[derive(Debug, Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits so long unless told to end; true when told.
    pub fn wait(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) =
            self.changed.wait_timeout_while(stopped, time, |stopped| !*stopped).unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}

pub struct Pipeline {
    pub tail: Tail,
    /// Lines that come over the network; they have no position.
    pub arrivals: Option<Arrivals>,
    pub position: PositionFile,
    pub spool: Arc<Spool>,
    pub index: Arc<Mutex<Index>>,
    /// Records that make no runs: nobody looks them up, but both sources may bring them.
    pub others: Index,
    pub audit: Audit,
    pub cache: Arc<Store>,
    pub metrics: Arc<Metrics>,
    pub board: Arc<Board>,
    pub rotator: Option<Rotator>,
    pub stop: Arc<Stop>,
    pub sampled: Option<Instant>,
}

impl Pipeline {
    /// Follows the file until told to end. Everything read by then is durable and the position is saved, or will be
    /// read again.
    pub fn run(mut self) {
        let mut housekept = Instant::now();
        while !self.stop.wait(Duration::ZERO) {
            match self.step() {
                Ok(true) => {}
                Ok(false) => {
                    if housekept.elapsed() >= HOUSEKEEPING {
                        housekept = Instant::now();
                        self.housekeep();
                    }
                    self.stop.wait(IDLE);
                }
                Err(error) => {
                    tracing::error!("the access log cannot be read: {error}; trying again");
                    self.stop.wait(RETRY);
                }
            }
        }
        // What came over the network is nowhere else.
        while self.receive() == Some(true) {}
    }

    /// One read and all its effects. False when there was nothing new, or when told to end in the middle.
    pub fn step(&mut self) -> io::Result<bool> {
        let Some(received) = self.receive() else { return Ok(false) };
        let polled = self.tail.poll(BATCH_BYTES)?;
        self.metrics.backlog(self.tail.backlog());
        if polled.is_idle() {
            return Ok(received);
        }
        Ok(self.take(&polled).is_some())
    }

    /// Takes what has arrived; whether there was anything, none when told to end in the middle.
    fn receive(&mut self) -> Option<bool> {
        let arrived = self.arrivals.as_mut().map(|arrivals| arrivals.take(BATCH_BYTES)).unwrap_or_default();
        if arrived.is_empty() {
            return Some(false);
        }
        let mut polled = Polled::default();
        let mut rooms = Vec::with_capacity(arrived.len());
        for one in arrived {
            let (line, room) = one.split();
            polled.lines.push(line);
            rooms.push(room);
        }
        self.take(&polled).map(|()| true)
    }

    fn take(&mut self, polled: &Polled) -> Option<()> {
        self.note(polled);
        let mut lines = Vec::with_capacity(polled.lines.len());
        let mut texts: Vec<&[u8]> = Vec::with_capacity(polled.lines.len());
        for text in &polled.lines {
            match line::parse(text) {
                Ok((line, start)) => {
                    if start > 0 {
                        self.skip(&Skipped::NotOurs { at: start }, 1);
                    }
                    lines.push(line);
                    texts.push(text.get(start..).unwrap_or_default());
                }
                Err(why) => self.skip(&why, 1),
            }
        }
        let fresh = self.fresh(&lines);
        let waiting = Waiting { stop: &self.stop, metrics: &self.metrics, spool: &self.spool };

        let spooled: Vec<&[u8]> = texts
            .iter()
            .zip(&lines)
            .zip(&fresh)
            .filter(|((_, line), fresh)| **fresh && line.is_run())
            .map(|((text, _), _)| *text)
            .collect();
        let mut rest = spooled.as_slice();
        while !rest.is_empty() {
            let stored = waiting.retry("spool", || self.spool.append_some(rest))?;
            rest = rest.get(stored..).unwrap_or_default();
            if !rest.is_empty() {
                // Their upload is what makes room for the others. A kill before the position is saved has them read again,
                // and known by their ids.
                self.spool.publish();
            }
        }
        remember_all(&self.index, &mut self.others, &lines, &fresh);

        let audited = waiting.retry("audit log", || self.audit.append(&lines))?;
        audited.into_iter().for_each(|side| self.metrics.audited(side.name()));

        let entries: Vec<_> = lines.iter().filter_map(|line| cache::storable(&line.record)).collect();
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // A cache may forget: an entry that cannot be written is no reason to hold the log.
        if let Err(error) = self.cache.put(&entries, now_s) {
            self.metrics.write_failed();
            tracing::warn!("{} answers could not be cached: {error}", entries.len());
        }

        if let Some(position) = &polled.position {
            waiting.retry("access log position", || self.position.save(position))?;
        }
        self.spool.publish();
        for (line, fresh) in lines.iter().zip(fresh) {
            if fresh {
                self.metrics.record(&line.record);
                self.board.add(line.id, &line.record);
            } else {
                self.metrics.duplicate();
            }
        }
        Some(())
    }

    /// Which of the lines were not seen before, here or earlier in the batch.
    fn fresh(&self, lines: &[Line]) -> Vec<bool> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch: HashSet<Uuid> = HashSet::new();
        let known = |id| index.get(id).is_some() || self.others.get(id).is_some();
        lines.iter().map(|line| !known(line.id) && batch.insert(line.id)).collect()
    }

    fn note(&mut self, polled: &Polled) {
        if polled.switched {
            self.metrics.file_event("switched");
        }
        if polled.truncated {
            self.metrics.file_event("truncated");
            tracing::warn!("the access log was cut; reading it from its start");
        }
        if polled.lost {
            self.metrics.file_event("lost");
            tracing::error!(
                "the access log file that was read last ({}) is gone, with whatever was not read of it",
                self.position.path().display()
            );
        }
        if polled.too_long > 0 {
            self.skip(&Skipped::TooLong, polled.too_long);
        }
    }

    fn skip(&mut self, why: &Skipped, lines: u64) {
        self.metrics.skipped(why, lines);
        if *why != Skipped::Unrecorded && self.sampled.is_none_or(|at| at.elapsed() > SAMPLE) {
            self.sampled = Some(Instant::now());
            tracing::warn!("a line of the access log near byte {} is skipped: {why}", self.tail.offset());
        }
    }

    fn housekeep(&mut self) {
        if let Some(rotator) = &mut self.rotator
            && let Err(error) = rotator.tick(&self.tail, &self.spool)
        {
            self.metrics.file_event("rotate_failed");
            tracing::warn!("the access log could not be rotated: {error}; trying again");
        }
        if let Err(error) = self.spool.remove_expired() {
            tracing::warn!("old spool segments could not be removed: {error}; trying again");
        }
    }
}

/// Fills the index and the dashboard from what the spool kept.
pub fn rebuild(spool: &Spool, index: &mut Index, board: &Board) -> io::Result<()> {
    spool.for_each(|bytes| {
        if let Ok((line, _)) = line::parse(bytes) {
            remember(index, &line);
            board.add(line.id, &line.record);
        }
    })
}

fn remember_all(index: &Mutex<Index>, others: &mut Index, lines: &[Line], fresh: &[bool]) {
    let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
    for (line, _) in lines.iter().zip(fresh).filter(|(_, fresh)| **fresh) {
        remember(if line.is_run() { &mut index } else { others }, line);
    }
}

fn remember(index: &mut Index, line: &Line) {
    let record = &line.record;
    let (trace_id, start_us) = Order::place(line.id, record.start_us, record.langsmith_parent.as_deref());
    index.insert(line.id, &record.tenant, trace_id, start_us, !record.unsampled);
}

/// What a write that fails has to do with.
struct Waiting<'a> {
    stop: &'a Stop,
    metrics: &'a Metrics,
    spool: &'a Spool,
}

impl Waiting<'_> {
    /// Does it until it is done; none when told to end before.
    fn retry<T>(&self, what: &str, mut act: impl FnMut() -> io::Result<T>) -> Option<T> {
        let mut wait = Duration::from_millis(100);
        loop {
            let error = match act() {
                Ok(done) => return Some(done),
                Err(error) => error,
            };
            self.metrics.write_failed();
            tracing::error!("the {what} cannot be written: {error}; nothing is lost, trying again in {wait:?}");
            if error.kind() == io::ErrorKind::StorageFull
                && let Err(error) = self.spool.relieve()
            {
                tracing::error!("the spool cannot make room: {error}");
            }
            if self.stop.wait(wait) {
                return None;
            }
            wait = (wait * 2).min(Duration::from_secs(10));
        }
    }
}

#[cfg(test)]
mod tests;
