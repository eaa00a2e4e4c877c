//! What is known of a request between its body and the end of its answer.

use std::collections::VecDeque;

use super::BodyMode;
use super::send::Timing;
use super::stream::Stream;
use crate::answer::Answer;
use crate::cache::{self, Directives};
use crate::guard;
use crate::guard::passage::Passage;
use crate::identity::Principal;
use crate::quota::Decision;
use crate::reason::Reason;

#[derive(Debug)]
pub struct Exchange {
    pub(super) principal: Principal,
    pub(super) wire: Wire,
    pub(super) stream: bool,
    /// Index in the configuration's models.
    pub(super) model: usize,
    /// Index in its chain of the provider that is asked first.
    pub(super) link: usize,
    /// What the client called it: the name in every answer.
    pub(super) public_model: String,
    /// For the provider; taken when it is sent.
    pub(super) body: Vec<u8>,
    pub(super) request_id: Option<String>,
    /// What chooses a replica.
    pub(super) affinity: Option<String>,
    pub(super) timing: Timing,
    pub(super) input: Input,
    /// It has parts that no guard is shown, and its policy lets them through.
    pub(super) unseen: bool,
    /// What the client says now, where its policy has judged texts audited.
    pub(super) said: Option<String>,
    /// The conversation rendered for the output guard; `None`: the output is not judged.
    pub(super) output_context: Option<String>,
    pub(super) lookup: Lookup,
    /// Present when the answer may come from the cache or go into it.
    pub(super) key: Option<cache::Key>,
    pub(super) directives: Directives,
    pub(super) reservation: Reservation,
    /// Estimated.
    pub(super) prompt_tokens: u64,
    pub(super) quota: Option<Decision>,
    pub(super) sent_us: Option<u64>,
    /// The length that the head of a whole answer tells.
    pub(super) told_bytes: Option<usize>,
    pub(super) phase: Phase,
    /// The stream broke off while the input's verdict was out, which has the first word: what the client is told then.
    pub(super) broken: Option<Reason>,
}

/// The client's wire form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    OpenAi { include_usage: bool },
    Chat,
}

/// The input guard.
#[derive(Debug)]
pub(super) enum Input {
    /// Not asked, or passed.
    Off,
    /// `first`: the request waits for the verdict, else the response does.
    /// `rest`: what of a long conversation is to be asked about after `prompt`.
    Pending { first: bool, prompt: String, rest: VecDeque<String>, key: guard::Key },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    None,
    Pending,
}

#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) bucket: String,
    pub(super) tokens: u64,
    /// The policy has limits.
    pub(super) limited: bool,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Held: the verdict or the cache has to answer first.
    Asking,
    /// With the provider.
    Sent,
    /// The answer comes as events.
    Streaming(Box<Stream>),
    /// The answer is awaited whole.
    Collecting(Collecting),
    /// The answer is whole and waits for a verdict.
    Judging(Whole),
    /// The answer may leave.
    Releasing { body: Option<Vec<u8>> },
}

/// What kind of body is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collecting {
    Answer,
    /// An error with this status.
    Failure {
        status: u16,
        retry_after_s: Option<u64>,
    },
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) answer: Answer,
    /// What leaves if the answer passes; `None`: the body as it came.
    pub(super) body: Option<Vec<u8>>,
    /// Length of the body as it came.
    pub(super) came_bytes: usize,
    /// What the output guard is reading.
    pub(super) passage: Option<Passage>,
    pub(super) prompt: Option<String>,
}

impl Exchange {
    pub(super) const fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Asking)
    }

    pub(super) const fn input_is_pending(&self) -> bool {
        matches!(self.input, Input::Pending { .. })
    }

    pub(super) fn response_waits(&self) -> bool {
        match &self.phase {
            Phase::Asking | Phase::Sent => false,
            Phase::Collecting(_) | Phase::Judging(_) => true,
            Phase::Releasing { .. } => self.input_is_pending(),
            Phase::Streaming(stream) => self.input_is_pending() || stream.waits(),
        }
    }

    /// The answer has come to its end.
    pub(super) fn is_complete(&self) -> bool {
        !self.input_is_pending()
            && match &self.phase {
                Phase::Releasing { .. } => true,
                Phase::Streaming(stream) => stream.is_complete(),
                _ => false,
            }
    }

    pub(super) const fn body_mode(&self) -> BodyMode {
        match &self.phase {
            Phase::Streaming(_) => BodyMode::Stream,
            _ => BodyMode::Whole,
        }
    }

    pub(super) fn take_body(&mut self) -> Option<Vec<u8>> {
        match &mut self.phase {
            Phase::Streaming(stream) => Some(stream.take_ready()),
            Phase::Releasing { body } => body.take(),
            _ => None,
        }
    }
}
