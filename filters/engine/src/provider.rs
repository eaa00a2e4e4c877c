//! One attempt at a provider: what its request must look like, and whether its answer counts.

use crate::answer::Delta;
use crate::config::{Config, Link, Provider};
use crate::hedge::Terms;
use crate::openai::{self, Chunk};
use crate::record::Attempt;
use crate::sse::Decoder;

/// What the gateway filter tells the provider filter of a request, in filter state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Index in the configuration's models.
    pub model: usize,
    /// Index in the model's chain of the provider that is asked first, and that the body was written for.
    pub link: usize,
    /// Length of the body as the gateway filter wrote it.
    pub body_bytes: usize,
    /// Events were asked for.
    pub stream: bool,
    pub terms: Terms,
}

impl Ask {
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let Self { model, link, body_bytes, stream, terms: Terms { request, limit_ms, hedge_percent, give_up_ms } } =
            self;
        // Hedging at 0 %, and no time at all, are none.
        let numbers = [
            request,
            model as u64,
            link as u64,
            body_bytes as u64,
            limit_ms,
            hedge_percent.map_or(0, u64::from),
            give_up_ms.unwrap_or(0),
            u64::from(stream),
        ];
        numbers.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut numbers =
            bytes.chunks_exact(8).filter_map(|number| number.first_chunk()).map(|n| u64::from_le_bytes(*n));
        let request = numbers.next()?;
        let mut index = || usize::try_from(numbers.next()?).ok();
        let (model, link, body_bytes) = (index()?, index()?, index()?);
        let (limit_ms, percent) = (numbers.next()?, u32::try_from(numbers.next()?).ok()?);
        let hedge_percent = (percent > 0).then_some(percent);
        let give_up_ms = numbers.next().filter(|ms| *ms > 0);
        let stream = numbers.next()? == 1;
        Some(Self { model, link, body_bytes, stream, terms: Terms { request, limit_ms, hedge_percent, give_up_ms } })
    }
}

/// Where an attempt goes.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub provider: &'a Provider,
    pub link: &'a Link,
    /// The body as the gateway filter wrote it names the model as this provider does.
    pub body_fits: bool,
    /// Nobody else is there: a retry would come back here.
    pub is_only: bool,
}

/// The target of an attempt at a host of `provider`; `None` if the model's chain does not have it.
#[must_use]
pub fn target<'a>(config: &'a Config, ask: Ask, provider: &str) -> Option<Target<'a>> {
    let model = config.models.get(ask.model)?;
    let position = model.chain.iter().position(|link| link.provider == provider)?;
    let link = model.chain.get(position)?;
    let first = model.chain.get(ask.link)?;
    Some(Target {
        provider: config.provider(provider)?,
        link,
        body_fits: first.model == link.model,
        is_only: ask.link.saturating_add(1) == model.chain.len(),
    })
}

impl Target<'_> {
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/chat/completions", self.provider.base_path)
    }
}

/// A provider that is over its limit, or has no quota left, says the same a millisecond later: another one may be asked,
/// the same one may not.
#[must_use]
pub const fn retry_is_vain(status: u16) -> bool {
    status == 429
}

/// What a client would be told as its own fault, while another attempt may still answer: it waits for that one.
#[must_use]
pub fn shown_in_company(status: u16) -> u16 {
    if (400..500).contains(&status) { 502 } else { status }
}

/// What only the operator can mend: our key is refused, or the model's name there is not known.
#[must_use]
pub const fn is_misconfigured(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 407)
}

/// The body with the model's name at this provider.
#[must_use]
pub fn body_for(body: &[u8], model: &str) -> Option<Vec<u8>> {
    openai::with_model_in(body, model)
}

/// The failures noted of one request at most: more attempts than any retry policy makes.
const MAX_NOTED: usize = 16;

/// What the provider filter tells the gateway filter of failed attempts, in filter state: a line for each, its fields
/// apart by tabs. (As JSON it took 20 KB of the module to read.)
pub fn note_failed(noted: &mut Vec<u8>, attempt: &Attempt) {
    if memchr::memchr_iter(b'\n', noted).count() >= MAX_NOTED {
        return;
    }
    let Attempt { provider, model, start_us, end_us, status, outcome, .. } = attempt;
    let end_us = end_us.unwrap_or_default();
    let line =
        [provider, model, &*start_us.to_string(), &*end_us.to_string(), &*status.to_string(), outcome].join("\t");
    noted.extend_from_slice(line.as_bytes());
    noted.push(b'\n');
}

/// What [`note_failed`] wrote; a line that is none of it is left out.
#[must_use]
pub fn failed(noted: &[u8]) -> Vec<Attempt> {
    let line = |line: &[u8]| {
        let mut fields = core::str::from_utf8(line).ok()?.split('\t');
        let attempt = Attempt {
            provider: fields.next()?.to_owned(),
            model: fields.next()?.to_owned(),
            start_us: fields.next()?.parse().ok()?,
            end_us: Some(fields.next()?.parse().ok()?),
            status: fields.next()?.parse().ok()?,
            outcome: fields.next()?.to_owned(),
            ..Attempt::default()
        };
        fields.next().is_none().then_some(attempt)
    };
    noted.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// What is to be done with an answer's head or body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Not decided: hold it.
    Hold,
    /// It counts: let it go.
    Open,
    /// It does not: its status becomes `status`, so that Envoy's retry policy sees the truth.
    Fail { status: u16, outcome: &'static str },
}

/// The first-token gate of one attempt.
#[derive(Debug, Default)]
pub struct FirstToken {
    kind: Kind,
    /// Events were asked for, or JSON; `None`: either will do.
    streams: Option<bool>,
}

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Unknown,
    Events(Decoder),
    /// A JSON answer, read when it is whole.
    Whole,
    Decided,
}

impl FirstToken {
    #[must_use]
    pub fn new(streams: bool) -> Self {
        Self { kind: Kind::Unknown, streams: Some(streams) }
    }

    /// The head came.
    pub fn on_head(&mut self, status: u16, is_event_stream: bool, ends: bool) -> Gate {
        let gate = match status {
            200 if ends => Gate::Fail { status: 502, outcome: "empty" },
            // A client that reads events finds none in a JSON answer, and the other way round.
            200 if self.streams.is_some_and(|streams| streams != is_event_stream) => {
                Gate::Fail { status: 502, outcome: "error_event" }
            }
            200 => Gate::Hold,
            // The provider refuses our key: the client's request is not at fault.
            401 | 403 | 407 => Gate::Fail { status: 502, outcome: "status" },
            408 => Gate::Fail { status: 504, outcome: "status" },
            // Redirects and other oddities are no answers.
            100..=399 => Gate::Fail { status: 502, outcome: "status" },
            _ => Gate::Open,
        };
        self.kind = match gate {
            Gate::Hold if is_event_stream => Kind::Events(Decoder::default()),
            Gate::Hold => Kind::Whole,
            _ => Kind::Decided,
        };
        gate
    }

    /// A JSON answer is wanted in one piece.
    #[must_use]
    pub const fn wants_whole(&self) -> bool {
        matches!(self.kind, Kind::Whole)
    }

    #[must_use]
    pub const fn is_decided(&self) -> bool {
        matches!(self.kind, Kind::Decided)
    }

    /// Bytes of the body that were not seen before.
    pub fn on_body(&mut self, bytes: &[u8], ends: bool) -> Gate {
        let gate = match &mut self.kind {
            Kind::Events(decoder) => events(decoder, bytes, ends),
            Kind::Whole if !ends => Gate::Hold,
            Kind::Whole => whole(bytes),
            Kind::Unknown | Kind::Decided => Gate::Open,
        };
        if gate != Gate::Hold {
            self.kind = Kind::Decided;
        }
        gate
    }
}

fn events(decoder: &mut Decoder, bytes: &[u8], ends: bool) -> Gate {
    let mut gate = Gate::Hold;
    let mut judge = |event: crate::sse::Event| {
        if gate == Gate::Hold
            && let Some(data) = event.data()
        {
            gate = first_event(data);
        }
    };
    let fed = decoder.feed(bytes, &mut judge);
    if ends && let Some(event) = decoder.finish() {
        judge(event);
    }
    match gate {
        Gate::Hold if fed.is_err() => Gate::Fail { status: 502, outcome: "error_event" },
        Gate::Hold if ends => Gate::Fail { status: 502, outcome: "empty" },
        gate => gate,
    }
}

/// A token opens the gate, a failure shuts it; roles, comments and usage are neither.
fn first_event(data: &[u8]) -> Gate {
    match openai::parse_chunk(data) {
        Chunk::Deltas { deltas, .. } => {
            // An answer may rightly be empty of text where its length was the limit or a filter cut it.
            let explained = |delta: &Delta| matches!(delta.finish_reason.as_deref(), Some("length" | "content_filter"));
            if deltas.iter().any(|delta| delta.has_text() || explained(delta)) { Gate::Open } else { Gate::Hold }
        }
        Chunk::Done => Gate::Fail { status: 502, outcome: "empty" },
        Chunk::Error { .. } => Gate::Fail { status: 503, outcome: "error_event" },
        Chunk::Unreadable => Gate::Fail { status: 502, outcome: "error_event" },
    }
}

fn whole(body: &[u8]) -> Gate {
    match openai::parse_answer(body) {
        Ok((answer, _)) => {
            let explained = |reason: &str| matches!(reason, "length" | "content_filter");
            let counts = answer.choices.iter().any(|choice| {
                !choice.content.is_empty()
                    || !choice.reasoning.is_empty()
                    || !choice.refusal.is_empty()
                    || !choice.tool_calls.is_empty()
                    || choice.finish_reason.as_deref().is_some_and(explained)
            });
            if counts { Gate::Open } else { Gate::Fail { status: 502, outcome: "empty" } }
        }
        Err(Chunk::Error { .. }) => Gate::Fail { status: 503, outcome: "error_event" },
        Err(_) => Gate::Fail { status: 502, outcome: "error_event" },
    }
}

#[cfg(test)]
mod tests;
