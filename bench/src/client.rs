//! The load's side of one connection: a request, its answer, the next request.

use crate::guard::OFFENCE;
use crate::http::{self, Chunked, Framing};
use crate::load::{Outcome, Pace, Plan};
use crate::messages::Stamp;
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
    /// The model's connection, as its last event told.
    stream: usize,
    /// When text was last read, and the longest time between two such reads.
    text_us: Option<u64>,
    stall_us: u64,
    /// The offending event's number, once it was read.
    offence: Option<u32>,
    /// The answer ends with a refusal.
    refused: bool,
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
        Self {
            reading: Reading::Idle,
            sent_us: 0,
            status: 0,
            text: Vec::new(),
            next: 0,
            done: false,
            stream: 0,
            text_us: None,
            stall_us: 0,
            offence: None,
            refused: false,
        }
    }

    pub(crate) const fn is_idle(&self) -> bool {
        matches!(self.reading, Reading::Idle)
    }

    pub(crate) fn sent(&mut self, now_us: u64) {
        let mut text = core::mem::take(&mut self.text);
        text.clear();
        *self = Self { reading: Reading::Head, sent_us: now_us, text, ..Self::new() };
    }

    /// The stream is whole although its connection broke: a refused one ends so.
    pub(crate) const fn is_refused(&self) -> bool {
        self.refused && self.done
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
        self.answered(now_us, plan, outcome);
        Next::Answered
    }

    /// The answer is over.
    pub(crate) fn answered(&mut self, now_us: u64, plan: &Plan, outcome: &mut Outcome) {
        self.reading = Reading::Idle;
        *outcome.statuses.entry(self.status).or_default() += 1;
        if !plan.stream {
            return outcome.latency_us.note(now_us.saturating_sub(self.sent_us));
        }
        outcome.failed += u64::from(!self.done);
        outcome.total_us.note(now_us.saturating_sub(self.sent_us));
        outcome.stall_us.note(self.stall_us);
        if self.refused {
            outcome.cut += 1;
            let behind = self.offence.map_or(0, |offence| self.next.saturating_sub(offence).saturating_sub(1));
            outcome.exposure.note(u64::from(behind));
        } else {
            outcome.missed += u64::from(plan.offence.is_some());
            outcome.lost += u64::from(plan.chunks.saturating_sub(self.next));
        }
    }

    fn read_events(&mut self, now_us: u64, plan: &Plan, outcome: &mut Outcome, advance: &mut Vec<usize>) {
        let text = core::mem::take(&mut self.text);
        let mut from = 0;
        while let Some(rest) = text.get(from..)
            && let Some(end) = http::find(rest, b"\n\n")
        {
            let event = rest.get(..end).unwrap_or_default();
            from = from.saturating_add(end).saturating_add(2);
            let Some(stamp) = Stamp::of(event) else {
                self.on_unstamped(event, now_us, outcome);
                continue;
            };
            outcome.chunks += 1;
            self.stream = stamp.token;
            if let Some(before_us) = self.text_us.replace(now_us) {
                self.stall_us = self.stall_us.max(now_us.saturating_sub(before_us));
            }
            if plan.offence.is_some() && http::find(event, OFFENCE.as_bytes()).is_some() {
                self.offence = Some(stamp.sequence);
            }
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
        self.text = text;
        self.text.drain(..from);
    }

    fn on_unstamped(&mut self, event: &[u8], now_us: u64, outcome: &mut Outcome) {
        self.refused |= http::find(event, b"content_filter").is_some();
        if event != b"data: [DONE]" {
            return;
        }
        self.done = true;
        let judged = outcome.judged.get(&self.stream).filter(|_| self.refused);
        if let Some(categories_us) = judged.and_then(|judged| judged.categories_us) {
            outcome.categories_to_done_us.note(now_us.saturating_sub(categories_us));
        }
    }
}
