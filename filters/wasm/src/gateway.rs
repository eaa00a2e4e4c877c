//! The gateway filter: one downstream stream.

use std::rc::Rc;

use parapet_engine::flow::{BodyMode, Call, Callout, Context as Step, Effect, End, Event, Flow, Head};
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::host::{self, Buffer, Map};
use crate::shared::Shared;

pub(crate) struct GatewayStream {
    shared: Rc<Shared>,
    flow: Flow,
    /// What the router needs of the client's head, until it is replaced.
    routing_head: Vec<(String, Vec<u8>)>,
    /// Callouts in flight: the host's token, the engine's name.
    calls: Vec<(u32, Call)>,
    request_paused: bool,
    response_paused: bool,
    /// The response's body is paused, so its buffer can be replaced outside a body callback.
    body_paused: bool,
    replied: bool,
}

/// Where Envoy keeps what the provider filter noted of failed attempts.
pub(crate) const FAILED_ATTEMPTS: &str = "parapet.failed_attempts";
/// Where Envoy keeps what the provider filter has to know.
pub(crate) const ASK: &str = "parapet.ask";
/// What the access log writes.
const RECORD: &str = "parapet.record";

impl GatewayStream {
    pub(crate) fn new(shared: Rc<Shared>) -> Self {
        Self {
            shared,
            flow: Flow::default(),
            routing_head: Vec::new(),
            calls: Vec::new(),
            request_paused: false,
            response_paused: false,
            body_paused: false,
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
            Effect::Share(bytes) => {
                host::set_property(ASK, &bytes);
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
            Effect::Abort => {
                // As after a reply: nothing that still comes is of interest.
                self.replied = true;
                host::reset_response();
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
        let routing = core::mem::take(&mut self.routing_head);
        let kept = routing.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
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
        if self.response_paused && !self.flow.response_waits() {
            self.response_paused = false;
            if core::mem::take(&mut self.body_paused)
                && let Some(body) = self.flow.take_body()
            {
                host::set_buffer(Buffer::Response, &body);
            }
            host::resume_response();
        }
    }
}

impl HttpContext for GatewayStream {
    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        let head = host::headers(Map::Request);
        let routes = |name: &str| name.starts_with(':') || name == "x-forwarded-proto";
        self.routing_head = head.iter().filter(|(name, _)| routes(name)).cloned().collect();
        let entropy = self.shared.entropy();
        self.step(Event::RequestHead { head: Head(&head), ends: end_of_stream, entropy });
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
        let head = host::headers(Map::Response);
        self.step(Event::ResponseHead { head: Head(&head), ends: end_of_stream });
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
        let streams = self.flow.body_mode() == BodyMode::Stream;
        let bytes = host::buffer(Buffer::Response, 0, size);
        self.step(Event::ResponseBody { bytes: &bytes, ends: end_of_stream });
        let action = self.response_action();
        if self.replied {
            return action;
        }
        self.body_paused = self.response_paused;
        if self.body_paused {
            if streams && size > 0 {
                host::set_buffer(Buffer::Response, b"");
            }
        } else if let Some(body) = self.flow.take_body().filter(|body| *body != bytes) {
            host::set_buffer(Buffer::Response, &body);
        }
        action
    }

    fn on_log(&mut self) {
        let questions = self.flow.end_questions();
        let failed_attempts = questions.failed_attempts.then(|| host::property(&[FAILED_ATTEMPTS])).flatten();
        let details = questions.details.then(|| host::property(&["response", "code_details"])).flatten();
        let end = End { failed_attempts: failed_attempts.as_deref(), details: details.as_deref() };
        self.step(Event::Ended(end));
    }
}
