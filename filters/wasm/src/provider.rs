//! The provider filter: one attempt at a provider. It runs upstream, once for each host that Envoy's router chose.

use std::rc::Rc;

use parapet_engine::affinity;
use parapet_engine::config::Affinity;
use parapet_engine::flow::{ATTEMPT, Head};
use parapet_engine::hedge::Start;
use parapet_engine::provider::{self, Ask, FirstToken, Gate, Target};
use parapet_engine::record::Attempt;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::gateway::{ASK, FAILED_ATTEMPTS};
use crate::host::{self, Buffer, Headers, Map};
use crate::shared::Shared;

const HOST_PROVIDER: [&str; 5] = ["xds", "upstream_host_metadata", "filter_metadata", "parapet", "provider"];

pub(crate) const NO_ANSWER: &[u8] =
    br#"{"error":{"message":"No model could answer.","type":"server_error","param":null,"code":"upstream_error"}}"#;

/// What an attempt sets in the shared head, or removes from it.
pub(crate) type AttemptHead = Vec<(&'static str, Option<String>)>;

pub(crate) struct ProviderStream {
    shared: Rc<Shared>,
    /// The host's number of this attempt.
    context: u32,
    /// The gateway filter's number of the request, once it is known.
    request: Option<u64>,
    attempt: Option<Attempt>,
    /// It may not be sent yet.
    held: bool,
    /// A retry would come back to this provider.
    is_only: bool,
    /// The model's name here, if the body has to be rewritten for it.
    rename: Option<String>,
    gate: FirstToken,
    /// The head of an answer came.
    head_came: bool,
    /// Bytes of the held body that the gate has seen.
    seen: usize,
    refused: bool,
    /// It failed, and another may still answer: nothing of it goes on.
    muted: bool,
}

impl ProviderStream {
    pub(crate) fn new(shared: Rc<Shared>, context: u32) -> Self {
        Self {
            shared,
            context,
            request: None,
            attempt: None,
            held: false,
            is_only: false,
            rename: None,
            gate: FirstToken::default(),
            head_came: false,
            seen: 0,
            refused: false,
            muted: false,
        }
    }

    /// The head map is one for all attempts: everything is set, nothing is added to.
    fn head(&self, target: &Target<'_>, ask: Ask) -> AttemptHead {
        let authorization = self.shared.authorization(target.provider.api_key_env.as_deref());
        let mut head = vec![
            (":path", Some(target.path())),
            (":authority", Some(target.provider.authority.clone())),
            ("authorization", authorization.map(str::to_owned)),
        ];
        // What chose the replica is nobody's business there.
        if self.shared.config.models.get(ask.model).is_some_and(|model| model.affinity != Affinity::None) {
            head.push((affinity::HEADER, None));
        }
        if target.body_fits {
            head.push(("content-length", Some(ask.body_bytes.to_string())));
        }
        head
    }

    /// It waits for its turn: its head is written again then, since another attempt may have written its own meanwhile.
    fn hold(&mut self, head: AttemptHead) {
        self.held = true;
        self.shared.held.borrow_mut().push((self.context, head));
    }

    /// A host of no provider of this model, or a request that the gateway filter has not seen: never let through.
    fn refuse(&mut self) -> Action {
        self.refused = true;
        log::error!("parapet: an attempt without the gateway filter's word, or at a host without `provider` metadata");
        host::send_reply(503, &[("content-type", "application/json".to_owned())], NO_ANSWER);
        Action::Pause
    }

    /// The whole body is there: it gets the model's name at this provider.
    fn rename(&mut self, body: impl FnOnce() -> Vec<u8>) -> Action {
        if let Some(model) = self.rename.take() {
            let Some(renamed) = provider::body_for(&body(), &model) else { return self.refuse() };
            let length = renamed.len().to_string();
            host::set_header(Map::Request, "content-length", &length);
            host::set_buffer(Buffer::Request, &renamed);
            let mut held = self.shared.held.borrow_mut();
            if let Some((_, head)) = held.iter_mut().find(|(context, _)| *context == self.context) {
                head.push(("content-length", Some(length)));
            }
        }
        self.request_action()
    }

    fn request_action(&self) -> Action {
        let waits = self.held && self.shared.held.borrow().iter().any(|(context, _)| *context == self.context);
        if waits { Action::Pause } else { Action::Continue }
    }

    fn apply(&mut self, gate: Gate, status: u16, in_body: bool) -> Action {
        match gate {
            Gate::Hold => return Action::Pause,
            Gate::Open if status < 400 => self.win(),
            Gate::Open => {
                if self.is_only && provider::retry_is_vain(status) {
                    // To the router: not again.
                    host::set_header(Map::Response, "x-envoy-ratelimited", "true");
                }
                self.fail(status, "status", status, in_body);
            }
            Gate::Fail { status: shown, outcome } => self.fail(status, outcome, shown, in_body),
        }
        if self.muted { Self::mute() } else { Action::Continue }
    }

    fn win(&mut self) {
        self.attempt = None;
        let raced = self.request.and_then(|request| self.shared.races.borrow_mut().won(request, self.context));
        if let Some((held, sent_us)) = raced {
            host::set_header(Map::Response, ATTEMPT, &format!("{held} {sent_us}"));
        }
    }

    /// What comes of it is dropped, its head stays where it is.
    fn mute() -> Action {
        host::set_buffer(Buffer::Response, b"");
        Action::Pause
    }

    /// What came does not count; the router sees it as `shown`.
    fn fail(&mut self, status: u16, outcome: &str, shown: u16, in_body: bool) {
        if provider::is_misconfigured(status)
            && let Some(attempt) = &self.attempt
        {
            self.shared.complain(attempt, status);
        }
        let has_company = self.request.is_some_and(|request| {
            let mut races = self.shared.races.borrow_mut();
            let has_company = races.has_company(request, self.context);
            // Its head is held, and some of its body has come.
            self.muted = has_company && in_body;
            if self.muted {
                races.mute(request, self.context);
            } else {
                races.failed(request, self.context);
            }
            has_company
        });
        self.shared.tick(self.context);
        let shown = if has_company { provider::shown_in_company(shown) } else { shown };
        if shown != status {
            host::set_header(Map::Response, ":status", &shown.to_string());
        }
        self.note_failure(status, outcome);
    }

    fn note_failure(&mut self, status: u16, outcome: &str) {
        let Some(mut attempt) = self.attempt.take() else { return };
        if self.held {
            let races = self.shared.races.borrow();
            let sent_us = self.request.and_then(|request| races.sent_us(request, self.context));
            attempt.start_us = sent_us.unwrap_or(attempt.start_us);
        }
        attempt.status = status;
        attempt.outcome = outcome.to_owned();
        attempt.end_us = Some(host::now_us());
        let mut noted = host::property(&[FAILED_ATTEMPTS]).unwrap_or_default();
        provider::note_failed(&mut noted, &attempt);
        host::set_property(FAILED_ATTEMPTS, &noted);
    }
}

impl Context for ProviderStream {
    fn on_done(&mut self) -> bool {
        let Some(request) = self.request else { return true };
        if self.held {
            self.shared.take_held(self.context);
        }
        if self.attempt.is_some() {
            // Nothing that counts came before the attempt was over: refused, reset, beaten by another, or the client left.
            let (was_sent, lost) = self.shared.races.borrow().standing(request, self.context);
            let status = if self.head_came { 200 } else { 0 };
            match (was_sent, lost, self.head_came) {
                (false, ..) => self.attempt = None,
                (true, true, _) => self.note_failure(status, "lost"),
                (true, false, true) => self.note_failure(status, "no_first_token"),
                (true, false, false) => self.note_failure(status, "reset"),
            }
        }
        self.shared.races.borrow_mut().left(request, self.context);
        true
    }
}

impl HttpContext for ProviderStream {
    fn on_http_request_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        let shared = Rc::clone(&self.shared);
        let ask = host::property(&[ASK]).and_then(|bytes| Ask::from_bytes(&bytes));
        let provider = host::property(&HOST_PROVIDER);
        let provider = provider.as_deref().and_then(|name| core::str::from_utf8(name).ok()).unwrap_or_default();
        let Some((ask, target)) = ask.and_then(|ask| Some((ask, provider::target(&shared.config, ask, provider)?)))
        else {
            return self.refuse();
        };
        let now_us = host::now_us();
        let head = self.head(&target, ask);
        host::edit_head(&head);
        self.request = Some(ask.terms.request);
        self.is_only = target.is_only;
        self.gate = FirstToken::new(ask.stream);
        self.attempt = Some(Attempt {
            provider: target.provider.name.clone(),
            model: target.link.model.clone(),
            start_us: now_us,
            ..Attempt::default()
        });
        let start = self.shared.races.borrow_mut().begin(ask.terms, self.context, now_us);
        if start == Start::Wait {
            self.hold(head);
        }
        self.shared.tick(self.context);
        if !target.body_fits && !end_of_stream {
            self.rename = Some(target.link.model.clone());
            return Action::Pause;
        }
        self.request_action()
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.refused {
            return Action::Pause;
        }
        if !end_of_stream && self.rename.is_some() {
            return Action::Pause;
        }
        self.rename(|| host::buffer(Buffer::Request, 0, size))
    }

    fn on_http_request_trailers(&mut self, _count: usize) -> Action {
        if self.refused {
            return Action::Pause;
        }
        self.rename(|| host::buffer_from(Buffer::Request, 0))
    }

    fn on_http_response_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        if self.refused {
            return Action::Continue;
        }
        self.head_came = true;
        // Two headers read one by one would cost twice as much as all of them at once.
        let headers = Headers::of(Map::Response);
        let pairs = headers.pairs();
        let head = Head(&pairs);
        let (status, is_event_stream) = (head.status(), head.is_event_stream());
        if let Some(attempt) = &self.attempt {
            host::set_header(Map::Response, "x-parapet-provider", &attempt.provider);
        }
        let gate = self.gate.on_head(status, is_event_stream, end_of_stream);
        self.apply(gate, status, false)
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.muted {
            return Self::mute();
        }
        if self.refused || self.gate.is_decided() || self.attempt.is_none() {
            return Action::Continue;
        }
        if self.gate.wants_whole() && !end_of_stream {
            return Action::Pause;
        }
        let bytes = host::buffer(Buffer::Response, self.seen, size.saturating_sub(self.seen));
        self.seen = size;
        let gate = self.gate.on_body(&bytes, end_of_stream);
        self.apply(gate, 200, true)
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        if self.muted {
            return Self::mute();
        }
        if self.refused || self.gate.is_decided() || self.attempt.is_none() {
            return Action::Continue;
        }
        let bytes = host::buffer_from(Buffer::Response, self.seen);
        let gate = self.gate.on_body(&bytes, true);
        self.apply(gate, 200, true)
    }
}
