//! The way of one request through the gateway: a step function over its states. Events in, effects out.
//!
//! The shell translates Envoy's callbacks to [`Event`]s, carries out the [`Effect`]s in order, and asks whether the
//! request or the response has to wait. Quota is the one question that it answers at once, with [`Event::Reserved`].

mod attempts;
mod calls;
mod exchange;
mod finish;
mod head;
mod plan;
mod request;
mod respond;
mod response;
mod send;
mod stream;
mod verdict;

use crate::config::{Config, Limits};
use crate::guard::Side;
use crate::memory::Memory;
use crate::quota::Decision;
use crate::reason::{Reason, Refusal};
use crate::record::{self, Record};
pub use attempts::ATTEMPT;
pub use exchange::Exchange;
pub use head::Head;
use stream::Stream;

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// `ends`: no body follows. `entropy` makes the trace id.
    RequestHead {
        head: Head<'a>,
        ends: bool,
        entropy: [u8; 10],
    },
    /// The body is larger than the configuration allows.
    RequestTooLarge,
    /// The whole body.
    RequestBody(&'a [u8]),
    /// The answer to [`Effect::Reserve`].
    Reserved(Decision),
    /// A callout came back; `status` is 0 when the connection broke.
    Answered {
        call: Call,
        status: u16,
        body: &'a [u8],
    },
    ResponseHead {
        head: Head<'a>,
        ends: bool,
    },
    /// Bytes that were not seen before.
    ResponseBody {
        bytes: &'a [u8],
        ends: bool,
    },
    /// The stream is over, whatever its end was.
    Ended(End<'a>),
}

/// What Envoy knows of the end.
#[derive(Debug, Default)]
pub struct End<'a> {
    /// What the provider filter wrote of failed attempts: see [`crate::provider::note_failed`].
    pub failed_attempts: Option<&'a [u8]>,
    /// Envoy's response code details.
    pub details: Option<&'a [u8]>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Reserve {
        bucket: String,
        limits: Limits,
        tokens: u64,
    },
    Settle {
        bucket: String,
        limits: Limits,
        reserved: u64,
        used: u64,
    },
    Call(Callout),
    /// Replaces the request head but for its pseudo-headers: nothing of the client's goes on that is not in here.
    SetRequestHead(Vec<(&'static str, String)>),
    SetRequestBody(Vec<u8>),
    /// For the provider filter: a [`crate::provider::Ask`] in filter state. And the trace id, for answers that Envoy makes
    /// where the filter has no word any more.
    Share {
        ask: Vec<u8>,
        trace_id: String,
    },
    SetResponseHeader(&'static str, String),
    RemoveResponseHeader(String),
    /// Parapet's own answer instead of any other.
    Reply(Reply),
    /// The record, for the access log.
    Record(Vec<u8>),
}

/// A call to another cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callout {
    pub call: Call,
    pub cluster: String,
    pub method: &'static str,
    pub authority: String,
    pub path: String,
    /// The environment variable that holds the bearer key.
    pub api_key_env: Option<String>,
    pub body: Vec<u8>,
    pub timeout_ms: u64,
}

/// Which call: a request makes each kind at most once at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Verdict(Side),
    Categories(Side),
    CacheLookup,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

/// From a blocked stream's ending to the cut, in microseconds: it has left Envoy by then. Envoy lets no filter end a
/// response before its provider does, so what is cut then ends irregularly.
const GRACE_US: u64 = 5_000;

/// The same of a stream that failed: most providers end one by themselves.
const FAILED_GRACE_US: u64 = 100_000;

/// How the shell treats a response's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyMode {
    /// None of the gateway's business.
    Untouched,
    /// Wanted in one piece, when it has ended.
    Whole,
    /// Wanted as it comes.
    Stream,
}

/// What a step needs from outside.
pub struct Context<'a> {
    pub config: &'a Config,
    pub memory: &'a mut Memory,
    /// Microseconds since the Unix epoch.
    pub now_us: u64,
    pub effects: &'a mut Vec<Effect>,
}

impl Context<'_> {
    const fn now_s(&self) -> u64 {
        self.now_us / 1_000_000
    }
}

/// Where a request stands. Each state carries what is legal in it.
#[derive(Debug)]
enum State {
    Start,
    /// The head is known and held; the body is awaited.
    Reading(Box<request::Caller>),
    /// The conversation is known; the quota is being asked.
    Reserving(Box<Exchange>, plan::Plan),
    Exchanging(Box<Exchange>),
    /// Answered by Parapet, or passed on to the sidecar: what follows is not touched.
    Settled,
}

/// See [`Flow::end_questions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndQuestions {
    pub failed_attempts: bool,
    pub details: bool,
}

/// One request.
#[derive(Debug)]
pub struct Flow {
    state: State,
    record: Record,
    /// Attempts that were sent; `None` before an answer came, and where Envoy is not configured to say.
    attempts: Option<u32>,
    sent: Option<send::Sent>,
    /// When the attempt that answered was sent, where others ran beside it.
    raced_from_us: Option<u64>,
    /// Tells this request from the others that the worker has under way.
    request: u64,
}

impl Default for Flow {
    fn default() -> Self {
        let record = Record { v: record::VERSION, ..Record::default() };
        Self { state: State::Start, record, attempts: None, sent: None, raced_from_us: None, request: 0 }
    }
}

impl Flow {
    /// Takes an event in.
    pub fn step(&mut self, event: Event<'_>, context: &mut Context<'_>) {
        let state = core::mem::replace(&mut self.state, State::Settled);
        self.state = match (state, event) {
            (State::Start, Event::RequestHead { head, ends, entropy }) => self.on_head(&head, ends, entropy, context),
            (State::Reading(caller), Event::RequestBody(body)) => self.on_body(*caller, body, context),
            (State::Reading(_), Event::RequestTooLarge) => self.refuse(request::too_large(context.config), context),
            (State::Reserving(exchange, plan), Event::Reserved(decision)) => {
                self.on_reserved(exchange, plan, &decision, context)
            }
            (State::Exchanging(exchange), Event::Answered { call, status, body }) => {
                self.on_answered(exchange, call, status, body, context)
            }
            (State::Exchanging(exchange), Event::ResponseHead { head, ends }) => {
                self.on_response_head(exchange, &head, ends, context)
            }
            (State::Exchanging(exchange), Event::ResponseBody { bytes, ends }) => {
                self.on_response_body(exchange, bytes, ends, context)
            }
            (state, Event::ResponseHead { head, .. }) => {
                self.note_foreign_head(&head, context);
                state
            }
            (state, Event::Ended(end)) => {
                self.on_ended(&state, &end, context);
                State::Settled
            }
            (state, _) => state,
        };
    }

    /// The request's body is awaited.
    #[must_use]
    pub const fn wants_body(&self) -> bool {
        matches!(self.state, State::Reading(_))
    }

    /// What the host has to be asked for [`End`]: only what this end needs, since properties are the dearest calls.
    #[must_use]
    pub fn end_questions(&self) -> EndQuestions {
        let exchanging = matches!(self.state, State::Exchanging(_));
        let answered = self.record.attempts.last().is_some_and(|attempt| matches!(&*attempt.outcome, "ok" | "cut"));
        let sent = self.sent.is_some();
        EndQuestions {
            failed_attempts: sent && !(answered && self.attempts == Some(1)),
            details: exchanging && !self.is_complete(),
        }
    }

    fn is_complete(&self) -> bool {
        matches!(&self.state, State::Exchanging(exchange) if exchange.is_complete())
    }

    /// The request must not go on yet.
    #[must_use]
    pub fn request_waits(&self) -> bool {
        match &self.state {
            State::Start | State::Settled => false,
            State::Reading(_) | State::Reserving(..) => true,
            State::Exchanging(exchange) => exchange.is_asking(),
        }
    }

    /// The response (head and body) must not go on yet.
    #[must_use]
    pub fn response_waits(&self) -> bool {
        matches!(&self.state, State::Exchanging(exchange) if exchange.response_waits())
    }

    /// The response may go on, but a verdict is under way that may add to it before the provider says anything more: its
    /// buffer should stay within reach.
    #[must_use]
    pub fn lingers(&self) -> bool {
        matches!(&self.state, State::Exchanging(exchange) if exchange.streaming().is_some_and(Stream::lingers))
    }

    /// The client has got its ending and the provider goes on: so many microseconds from now both connections are to be cut.
    #[must_use]
    pub fn abandons_in(&self) -> Option<u64> {
        let State::Exchanging(exchange) = &self.state else { return None };
        let blocked = self.record.reason.as_deref() == Some(Reason::OutputBlocked.code());
        exchange
            .streaming()
            .filter(|stream| stream.abandons())
            .map(|_| if blocked { GRACE_US } else { FAILED_GRACE_US })
    }

    #[must_use]
    pub fn body_mode(&self) -> BodyMode {
        match &self.state {
            State::Exchanging(exchange) => exchange.body_mode(),
            _ => BodyMode::Untouched,
        }
    }

    /// What leaves now instead of the body that the shell holds; `None`: the body as it is.
    #[must_use]
    pub fn take_body(&mut self) -> Option<Vec<u8>> {
        match &mut self.state {
            State::Exchanging(exchange) => exchange.take_body(),
            _ => None,
        }
    }

    /// Ends the request with a refusal.
    fn refuse(&mut self, refusal: Refusal, context: &mut Context<'_>) -> State {
        self.record.reason = Some(refusal.reason.code().to_owned());
        self.record.status = refusal.reason.status();
        let headers = respond::refusal_headers(&refusal, &self.record.id);
        context.effects.push(Effect::Reply(Reply { status: refusal.reason.status(), headers, body: refusal.body() }));
        State::Settled
    }

    /// A head that comes while no exchange is under way: our own reply on its way out, or the sidecar's answer.
    fn note_foreign_head(&mut self, head: &Head<'_>, context: &mut Context<'_>) {
        if self.record.status != 0 {
            return;
        }
        self.record.status = head.status();
        for name in head.names().filter(|name| name.starts_with("x-envoy-")) {
            context.effects.push(Effect::RemoveResponseHeader(name.to_owned()));
        }
        context.effects.push(Effect::SetResponseHeader("x-parapet-trace-id", self.record.id.clone()));
    }
}
