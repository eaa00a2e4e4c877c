//! The gateway filter: one downstream stream.

use std::rc::Rc;

use parapet_engine::bytes::is_same;
use parapet_engine::flow::{BodyMode, Call, Callout, Context as Step, Effect, End, Event, Flow, Head};
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::clock::Act;
use crate::host::{self, Buffer, Headers, Map};
use crate::shared::Shared;

pub(crate) struct GatewayStream {
    shared: Rc<Shared>,
    flow: Flow,
    /// The client's head, until it is replaced.
    client_head: Rc<Headers>,
    /// Callouts in flight: the host's token, the engine's name.
    calls: Vec<(u32, Call)>,
    id: u32,
    request_paused: bool,
    response_paused: bool,
    buffer: Held,
    /// Both connections are to be cut; the clock knows when.
    abandoned: bool,
    replied: bool,
}

/// Whether the response's buffer can be written outside of a body callback.
#[derive(Debug)]
enum Held {
    /// No: it is of the head only, or was let go by a body callback.
    Out,
    /// Yes. These bytes of it may go on; with `lingers` the clock lets them go.
    In { free: Vec<u8>, lingers: bool },
    /// Yes: it was let go since, by a callout's answer or the clock, and is empty.
    Empty,
}

/// Where Envoy keeps what the provider filter noted of failed attempts.
pub(crate) const FAILED_ATTEMPTS: &str = "parapet.failed_attempts";
/// Where Envoy keeps what the provider filter has to know.
pub(crate) const ASK: &str = "parapet.ask";
/// For the heads of answers that Envoy makes on its own.
const TRACE_ID: &str = "parapet.trace_id";
/// What the access log writes.
const RECORD: &str = "parapet.record";

impl GatewayStream {
    pub(crate) fn new(shared: Rc<Shared>, id: u32) -> Self {
        Self {
            shared,
            id,
            flow: Flow::default(),
            client_head: Rc::default(),
            calls: Vec::new(),
            request_paused: false,
            response_paused: false,
            buffer: Held::Out,
            abandoned: false,
            replied: false,
        }
    }

    fn step(&mut self, event: Event<'_>) {
        let mut effects = Vec::with_capacity(8);
        self.run(event, &mut effects);
        // Effects can raise events (a reservation's answer) whose effects follow their own.
        let mut next = 0;
        while let Some(effect) = effects.get_mut(next) {
            let effect = core::mem::replace(effect, Effect::RemoveResponseHeader(String::new()));
            next = next.saturating_add(1);
            if let Some(event) = self.carry_out(effect) {
                let mut more = Vec::with_capacity(8);
                self.run(event, &mut more);
                effects.extend(more);
            }
        }
    }

    fn run(&mut self, event: Event<'_>, effects: &mut Vec<Effect>) {
        let mut memory = self.shared.memory.borrow_mut();
        let mut step = Step { config: &self.shared.config, memory: &mut memory, now_us: host::now_us(), effects };
        self.flow.step(event, &mut step);
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Event<'static>> {
        match effect {
            Effect::Reserve { bucket, limits, tokens } => {
                return Some(Event::Reserved(Shared::reserve(&bucket, &limits, tokens)));
            }
            Effect::Settle { bucket, limits, reserved, used } => Shared::settle(&bucket, &limits, reserved, used),
            Effect::Call(callout) => return self.call(&callout),
            Effect::SetRequestHead(headers) => self.replace_request_head(&headers),
            Effect::SetRequestBody(body) => {
                host::set_buffer(Buffer::Request, &body);
            }
            Effect::Share { ask, trace_id } => {
                host::set_property(ASK, &ask);
                host::set_property(TRACE_ID, trace_id.as_bytes());
            }
            Effect::SetResponseHeader(name, value) => {
                host::set_header(Map::Response, name, &value);
            }
            Effect::RemoveResponseHeader(name) => {
                if !name.is_empty() {
                    host::remove_header(Map::Response, &name);
                }
            }
            Effect::Reply(reply) => {
                self.replied = true;
                host::send_reply(reply.status, &reply.headers, &reply.body);
            }
            Effect::Record(bytes) => {
                host::set_property(RECORD, &bytes);
            }
        }
        None
    }

    /// The map is written whole: what is not in it does not go on. Of the client's head the pseudo-headers stay, and
    /// `x-forwarded-proto`, without which the router finds no route (measured on 1.40).
    fn replace_request_head(&mut self, headers: &[(&'static str, String)]) {
        let client_head = core::mem::take(&mut self.client_head);
        let kept =
            client_head.pairs().into_iter().filter(|(name, _)| name.starts_with(':') || *name == "x-forwarded-proto");
        let set = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        host::set_headers(Map::Request, &kept.chain(set).collect::<Vec<_>>());
    }

    fn call(&mut self, callout: &Callout) -> Option<Event<'static>> {
        let mut headers = vec![
            (":method", callout.method),
            (":path", &callout.path),
            (":authority", &callout.authority),
            ("content-type", "application/json"),
        ];
        if let Some(authorization) = self.shared.authorization(callout.api_key_env.as_deref()) {
            headers.push(("authorization", authorization));
        }
        match host::call(&callout.cluster, &headers, &callout.body, callout.timeout_ms) {
            Some(token) => {
                self.calls.push((token, callout.call));
                None
            }
            // The cluster is not there: as if the connection had broken at once.
            None => Some(Event::Answered { call: callout.call, status: 0, body: b"" }),
        }
    }

    fn request_action(&mut self) -> Action {
        self.request_paused = !self.replied && self.flow.request_waits();
        if self.replied || self.request_paused { Action::Pause } else { Action::Continue }
    }

    /// Takes in what is in the response's buffer, and leaves in it what may go on.
    fn on_response_bytes(&mut self, bytes: &[u8], ends: bool) -> Action {
        let streams = self.flow.body_mode() == BodyMode::Stream;
        let mut out = self.take_lingering();
        let bytes = bytes.get(out.len()..).unwrap_or_default();
        self.step(Event::ResponseBody { bytes, ends });
        let action = self.response_action();
        if self.replied {
            return action;
        }
        let waits = self.response_paused;
        let mut changed = !out.is_empty() || (streams && waits && !bytes.is_empty());
        if !waits && let Some(body) = self.flow.take_body() {
            changed |= !is_same(&body, bytes);
            out.extend_from_slice(&body);
        } else if !waits {
            out.extend_from_slice(bytes);
        }
        if changed {
            host::set_buffer(Buffer::Response, &out);
        }
        self.abandon();
        // Let go by the clock, a stream whose provider is done would be over.
        let lingers = streams && !ends && !out.is_empty() && (waits || self.flow.lingers());
        if lingers {
            self.shared.clock.set(self.id, host::now_us(), Act::Resume);
        }
        if waits || lingers {
            self.response_paused = true;
            self.buffer = Held::In { free: out, lingers };
            return Action::Pause;
        }
        self.buffer = Held::Out;
        action
    }

    /// What stands in the buffer and may go on: nothing, if the clock has let it go.
    fn take_lingering(&mut self) -> Vec<u8> {
        let Held::In { free, lingers } = &mut self.buffer else { return Vec::new() };
        let free = core::mem::take(free);
        if core::mem::take(lingers) {
            if !self.shared.clock.is_set(self.id, Act::Resume) {
                self.buffer = Held::Empty;
                self.response_paused = false;
                return Vec::new();
            }
            self.shared.clock.cancel(self.id, Act::Resume);
        }
        free
    }

    /// After a callout's answer: what may leave now does, where the buffer is within reach.
    fn let_go(&mut self) {
        if self.flow.response_waits() {
            return;
        }
        let mut out = self.take_lingering();
        let goes = match self.buffer {
            Held::Out => self.response_paused,
            Held::In { .. } => {
                let body = self.flow.take_body();
                if let Some(body) = body {
                    out.extend_from_slice(&body);
                    host::set_buffer(Buffer::Response, &out);
                }
                true
            }
            // Envoy sends on what is in the buffer of a stream that is not stopped, too (measured on 1.40).
            // Somebody else's bytes in it would be sent twice.
            Held::Empty if host::buffer_from(Buffer::Response, 0).is_empty() => {
                let body = self.flow.take_body().unwrap_or_default();
                !body.is_empty() && host::set_buffer(Buffer::Response, &body)
            }
            Held::Empty => false,
        };
        if goes {
            if !matches!(self.buffer, Held::Out) {
                self.buffer = Held::Empty;
            }
            self.response_paused = false;
            host::resume_response();
        }
        self.abandon();
    }

    /// The client has its ending: the provider is cut off, and this stream with it, unless either ends first.
    fn abandon(&mut self) {
        if !self.abandoned
            && let Some(grace_us) = self.flow.abandons_in()
        {
            self.abandoned = true;
            self.shared.clock.set(self.id, host::now_us().saturating_add(grace_us), Act::Reset);
        }
    }

    fn response_action(&mut self) -> Action {
        self.response_paused = !self.replied && self.flow.response_waits();
        if self.replied || self.response_paused { Action::Pause } else { Action::Continue }
    }
}

impl Context for GatewayStream {
    fn on_http_call_response(&mut self, token: u32, headers: usize, body_size: usize, _trailers: usize) {
        let Some(position) = self.calls.iter().position(|(known, _)| *known == token) else { return };
        let (_, call) = self.calls.swap_remove(position);
        // A connection that broke after its head comes back without any header.
        let status = if headers == 0 { 0 } else { host::status(Map::Callout) };
        let body = host::buffer(Buffer::Callout, 0, body_size);
        self.step(Event::Answered { call, status, body: &body });
        if self.replied {
            return;
        }
        if self.request_paused && !self.flow.request_waits() {
            self.request_paused = false;
            host::resume_request();
        }
        self.let_go();
    }
}

impl HttpContext for GatewayStream {
    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        let head = Rc::new(Headers::of(Map::Request));
        self.client_head = Rc::clone(&head);
        let entropy = self.shared.entropy();
        self.step(Event::RequestHead { head: Head(&head.pairs()), ends: end_of_stream, entropy });
        self.request_action()
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.replied {
            return Action::Pause;
        }
        if self.flow.wants_body() {
            if size > self.shared.config.max_request_bytes {
                self.step(Event::RequestTooLarge);
            } else if end_of_stream {
                let body = host::buffer(Buffer::Request, 0, size);
                self.step(Event::RequestBody(&body));
            }
        }
        self.request_action()
    }

    fn on_http_request_trailers(&mut self, _count: usize) -> Action {
        // Trailers end a body whose last piece did not say so.
        if self.flow.wants_body() {
            let body = host::buffer(Buffer::Request, 0, self.shared.config.max_request_bytes);
            self.step(Event::RequestBody(&body));
        }
        self.request_action()
    }

    fn on_http_response_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        if self.replied {
            return Action::Continue;
        }
        let head = Headers::of(Map::Response);
        self.step(Event::ResponseHead { head: Head(&head.pairs()), ends: end_of_stream });
        self.response_action()
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.replied {
            return Action::Continue;
        }
        match self.flow.body_mode() {
            BodyMode::Untouched => return Action::Continue,
            BodyMode::Whole if !end_of_stream => {
                self.response_paused = true;
                return Action::Pause;
            }
            BodyMode::Whole | BodyMode::Stream => {}
        }
        // While paused the buffer is emptied each time, so what is in it is new.
        let bytes = host::buffer(Buffer::Response, 0, size);
        self.on_response_bytes(&bytes, end_of_stream)
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        if self.replied {
            return Action::Continue;
        }
        // No body callback has told the end, and Continue lets go of everything that is held.
        let bytes = match self.flow.body_mode() {
            BodyMode::Untouched => return Action::Continue,
            BodyMode::Whole => host::buffer_from(Buffer::Response, 0),
            BodyMode::Stream => Vec::new(),
        };
        self.on_response_bytes(&bytes, true)
    }

    fn on_log(&mut self) {
        self.shared.clock.forget(self.id);
        let questions = self.flow.end_questions();
        let failed_attempts = questions.failed_attempts.then(|| host::property(&[FAILED_ATTEMPTS])).flatten();
        let details = questions.details.then(|| host::property(&["response", "code_details"])).flatten();
        let end = End { failed_attempts: failed_attempts.as_deref(), details: details.as_deref() };
        self.step(Event::Ended(end));
    }
}
