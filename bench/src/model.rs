//! The fake model's and the fake guard's side of one connection.

use crate::guard::{Guard, Said};
use crate::http::{self, Framing};
use crate::load::{Pace, Plan};
use crate::messages::{self, Stamp};
use crate::wire::{Closed, Wire};

/// What is always the same.
#[derive(Debug)]
pub(crate) struct Answers {
    answer: Vec<u8>,
    safe: Vec<u8>,
    not_safe: Vec<u8>,
    categories: Vec<u8>,
    start: Vec<u8>,
    end: Vec<u8>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            answer: messages::answer(),
            safe: messages::verdict("safe", "unsafe"),
            not_safe: messages::verdict("unsafe", "safe"),
            categories: messages::categories(),
            start: messages::stream_start(),
            end: messages::stream_end(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    /// The next event's number, while a stream is under way.
    next: Option<u32>,
    /// The event whose text is unsafe.
    offence: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    Verdict(Said),
    Answer,
    Token,
    /// A client's first request.
    Request,
}

/// When something is to be done next for this connection, from the moment that the last thing was due.
pub(crate) type After = Option<(u64, Due)>;

impl Model {
    pub(crate) const fn is_streaming(&self) -> bool {
        self.next.is_some()
    }

    /// The next stream's unsafe event.
    pub(crate) const fn offends_at(&mut self, offence: Option<u32>) {
        self.offence = offence;
    }

    /// Takes a whole request from what was read. Without `guard` no prompt is read, and every verdict is safe.
    pub(crate) fn read(wire: &mut Wire, guard: Option<&mut Guard>) -> Option<Due> {
        let head = http::head(&wire.unread)?;
        let Framing::Length(length) = head.body else { return None };
        let end = head.bytes.saturating_add(length);
        if wire.unread.len() < end {
            return None;
        }
        let due = if wire.unread.starts_with(b"POST /v1/completions") {
            let body = wire.unread.get(head.bytes..end).unwrap_or_default();
            Due::Verdict(guard.and_then(|guard| guard.read(body)).unwrap_or(Said::Safe))
        } else {
            Due::Answer
        };
        wire.unread.drain(..end);
        Some(due)
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
            Due::Verdict(said) => {
                let bytes = match said {
                    Said::Safe => &answers.safe,
                    Said::Unsafe(_) => &answers.not_safe,
                    Said::Categories(_) => &answers.categories,
                };
                wire.write(bytes).map(|()| None)
            }
            Due::Request => Ok(None),
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
        let stamp = Stamp { token, sequence, sent_us: now_us };
        wire.write(&if plan.reads {
            messages::stream_word(stamp, plan.sentence, self.offence == Some(sequence))
        } else {
            messages::stream_token(stamp)
        })?;
        Ok(match plan.pace {
            Pace::Paced => Some((plan.interval_us, Due::Token)),
            Pace::Burst => Some((0, Due::Token)),
            Pace::Lockstep => None,
        })
    }
}
