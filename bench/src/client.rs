//! The load's side of one connection: a request, its answer, the next request.

use crate::http::{self, Chunked, Framing};
use crate::load::{Outcome, Pace, Plan};
use crate::messages::{STAMP, Stamp};
use crate::wire::Wire;

#[derive(Debug)]
pub(crate) struct Client {
    reading: Reading,
    sent_us: u64,
    status: u16,
    /// Of an event that is not whole yet.
    text: Vec<u8>,
    /// The number that the next event should have.
    next: u32,
    done: bool,
}

#[derive(Debug, Clone, Copy)]
enum Reading {
    /// No request is under way.
    Idle,
    Head,
    Length(usize),
    Chunked(Chunked),
}

/// What the rig does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Wait,
    Answered,
}

impl Client {
    pub(crate) const fn new() -> Self {
        Self { reading: Reading::Idle, sent_us: 0, status: 0, text: Vec::new(), next: 0, done: false }
    }

    pub(crate) const fn is_idle(&self) -> bool {
        matches!(self.reading, Reading::Idle)
    }

    pub(crate) fn sent(&mut self, now_us: u64) {
        self.text.clear();
        (self.reading, self.sent_us, self.next, self.done) = (Reading::Head, now_us, 0, false);
    }

    /// Uses what was read. `advance` collects the streams whose next event may leave.
    pub(crate) fn read(
        &mut self,
        wire: &mut Wire,
        now_us: u64,
        plan: &Plan,
        outcome: &mut Outcome,
        advance: &mut Vec<usize>,
    ) -> Next {
        let unread = core::mem::take(&mut wire.unread);
        let mut at = 0;
        if let Reading::Head = self.reading {
            let Some(head) = http::head(&unread) else {
                wire.unread = unread;
                return Next::Wait;
            };
            self.status = http::status(&unread);
            at = head.bytes;
            self.reading = match head.body {
                Framing::Length(length) => Reading::Length(length),
                Framing::Chunked => Reading::Chunked(Chunked::new()),
            };
        }
        let rest = unread.get(at..).unwrap_or_default();
        let ended = match &mut self.reading {
            Reading::Idle | Reading::Head => false,
            Reading::Length(left) => {
                *left = left.saturating_sub(rest.len());
                *left == 0
            }
            Reading::Chunked(chunked) => {
                let text = &mut self.text;
                chunked.feed(rest, |data| {
                    if plan.stream {
                        text.extend_from_slice(data);
                    }
                });
                *chunked == Chunked::Done
            }
        };
        if plan.stream {
            self.read_events(now_us, plan, outcome, advance);
        }
        // The buffer is used again.
        wire.unread = unread;
        wire.unread.clear();
        if !ended {
            return Next::Wait;
        }
        self.reading = Reading::Idle;
        *outcome.statuses.entry(self.status).or_default() += 1;
        if plan.stream {
            outcome.lost += u64::from(plan.chunks.saturating_sub(self.next));
            outcome.failed += u64::from(!self.done);
        } else {
            outcome.latency_us.note(now_us.saturating_sub(self.sent_us));
        }
        Next::Answered
    }

    fn read_events(&mut self, now_us: u64, plan: &Plan, outcome: &mut Outcome, advance: &mut Vec<usize>) {
        let mut from = 0;
        while let Some(rest) = self.text.get(from..)
            && let Some(end) = http::find(rest, b"\n\n")
        {
            let event = rest.get(..end).unwrap_or_default();
            from = from.saturating_add(end).saturating_add(2);
            let stamp = http::find(event, STAMP)
                .and_then(|at| Stamp::parse(event.get(at.saturating_add(STAMP.len())..).unwrap_or_default()));
            let Some(stamp) = stamp else {
                self.done |= event == b"data: [DONE]";
                continue;
            };
            outcome.chunks += 1;
            outcome.lost += u64::from(stamp.sequence != self.next);
            if stamp.sequence == 0 {
                outcome.latency_us.note(now_us.saturating_sub(self.sent_us));
            }
            self.next = stamp.sequence.saturating_add(1);
            let took_us = now_us.saturating_sub(stamp.sent_us);
            outcome.late += u64::from(plan.pace == Pace::Paced && took_us > plan.interval_us);
            outcome.chunk_us.note(took_us);
            if plan.pace == Pace::Lockstep {
                advance.push(stamp.token);
            }
        }
        self.text.drain(..from);
    }
}
