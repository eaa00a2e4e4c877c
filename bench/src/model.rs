//! The fake model's and the fake guard's side of one connection.

use crate::http::{self, Framing};
use crate::load::{Pace, Plan};
use crate::messages::{self, Stamp};
use crate::wire::{Closed, Wire};

/// What is always the same.
#[derive(Debug)]
pub(crate) struct Answers {
    answer: Vec<u8>,
    verdict: Vec<u8>,
    start: Vec<u8>,
    end: Vec<u8>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            answer: messages::answer(),
            verdict: messages::verdict(),
            start: messages::stream_start(),
            end: messages::stream_end(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    /// The next event's number, while a stream is under way.
    next: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    Verdict,
    Answer,
    Token,
}

/// When something is to be done next for this connection, from the moment that the last thing was due.
pub(crate) type After = Option<(u64, Due)>;

impl Model {
    /// Takes a whole request from what was read.
    pub(crate) fn read(wire: &mut Wire) -> Option<Due> {
        let head = http::head(&wire.unread)?;
        let Framing::Length(length) = head.body else { return None };
        let end = head.bytes.saturating_add(length);
        if wire.unread.len() < end {
            return None;
        }
        let guard = wire.unread.starts_with(b"POST /v1/completions");
        wire.unread.drain(..end);
        Some(if guard { Due::Verdict } else { Due::Answer })
    }

    pub(crate) fn act(
        &mut self,
        due: Due,
        wire: &mut Wire,
        token: usize,
        now_us: u64,
        plan: &Plan,
        answers: &Answers,
    ) -> Result<After, Closed> {
        match due {
            Due::Verdict => wire.write(&answers.verdict).map(|()| None),
            Due::Answer if plan.stream => {
                self.next = Some(0);
                wire.write(&answers.start)?;
                self.token(wire, token, now_us, plan, answers)
            }
            Due::Answer => wire.write(&answers.answer).map(|()| None),
            Due::Token => self.token(wire, token, now_us, plan, answers),
        }
    }

    fn token(
        &mut self,
        wire: &mut Wire,
        token: usize,
        now_us: u64,
        plan: &Plan,
        answers: &Answers,
    ) -> Result<After, Closed> {
        let Some(sequence) = self.next else { return Ok(None) };
        if plan.pace == Pace::Burst && !wire.is_flushed() {
            return Ok(Some((200, Due::Token)));
        }
        if sequence >= plan.chunks {
            self.next = None;
            return wire.write(&answers.end).map(|()| None);
        }
        self.next = Some(sequence.saturating_add(1));
        wire.write(&messages::stream_token(Stamp { token, sequence, sent_us: now_us }))?;
        Ok(match plan.pace {
            Pace::Paced => Some((plan.interval_us, Due::Token)),
            Pace::Burst => Some((0, Due::Token)),
            Pace::Lockstep => None,
        })
    }
}
