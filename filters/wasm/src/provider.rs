//! The provider filter: one attempt at a provider. It runs upstream, once for each host that Envoy's router chose.

use std::rc::Rc;

use parapet_engine::affinity;
use parapet_engine::provider::{self, Ask, FirstToken, Gate, Target};
use parapet_engine::record::Attempt;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::gateway::{ASK, FAILED_ATTEMPTS};
use crate::host::{self, Buffer, Map};
use crate::shared::Shared;

const HOST_PROVIDER: [&str; 5] = ["xds", "upstream_host_metadata", "filter_metadata", "parapet", "provider"];

/// The failures noted of one request at most: more attempts than any retry policy makes.
const MAX_NOTED: usize = 16;

pub(crate) struct ProviderStream {
    shared: Rc<Shared>,
    attempt: Option<Attempt>,
    /// The model's name here, if the body has to be rewritten for it.
    rename: Option<String>,
    gate: FirstToken,
    /// The head of an answer came.
    head_came: bool,
    /// Bytes of the held body that the gate has seen.
    seen: usize,
    refused: bool,
}

impl ProviderStream {
    pub(crate) const fn new(shared: Rc<Shared>) -> Self {
        Self {
            shared,
            attempt: None,
            rename: None,
            gate: FirstToken::new(false),
            head_came: false,
            seen: 0,
            refused: false,
        }
    }

    /// The head map is one for all attempts: everything is set, nothing is added to.
    fn write_head(&self, target: &Target<'_>, ask: Ask) {
        host::set_header(Map::Request, ":path", &target.path());
        host::set_header(Map::Request, ":authority", &target.provider.authority);
        match self.shared.authorization(target.provider.api_key_env.as_deref()) {
            Some(authorization) => host::set_header(Map::Request, "authorization", authorization),
            None => host::remove_header(Map::Request, "authorization"),
        };
        // The router's own notes, written after the gateway filter's turn, and what it chose the replica by.
        for name in ["x-envoy-attempt-count", "x-envoy-expected-rq-timeout-ms", affinity::HEADER] {
            host::remove_header(Map::Request, name);
        }
        if target.body_fits {
            host::set_header(Map::Request, "content-length", &ask.body_bytes.to_string());
        }
    }

    /// A host of no provider of this model, or a request that the gateway filter has not seen: never let through.
    fn refuse(&mut self) -> Action {
        self.refused = true;
        log::error!("parapet: an attempt without the gateway filter's word, or at a host without `provider` metadata");
        let headers = [("content-type", "application/json".to_owned())];
        host::send_reply(503, &headers, br#"{"error":{"message":"No model could answer.","type":"server_error","param":null,"code":"upstream_error"}}"#);
        Action::Pause
    }

    /// The whole body is there: it gets the model's name at this provider.
    fn rename(&mut self, body: impl FnOnce() -> Vec<u8>) -> Action {
        let Some(model) = self.rename.take() else { return Action::Continue };
        let Some(renamed) = provider::body_for(&body(), &model) else { return self.refuse() };
        host::set_header(Map::Request, "content-length", &renamed.len().to_string());
        host::set_buffer(Buffer::Request, &renamed);
        Action::Continue
    }

    fn apply(&mut self, gate: Gate, status: u16) -> Action {
        match gate {
            Gate::Hold => Action::Pause,
            Gate::Open => {
                if status >= 400 {
                    self.note_failure(status, "status");
                }
                self.attempt = None;
                Action::Continue
            }
            Gate::Fail { status: shown, outcome } => {
                host::set_header(Map::Response, ":status", &shown.to_string());
                self.note_failure(status, outcome);
                Action::Continue
            }
        }
    }

    fn note_failure(&mut self, status: u16, outcome: &str) {
        let Some(mut attempt) = self.attempt.take() else { return };
        attempt.status = status;
        attempt.outcome = outcome.to_owned();
        attempt.end_us = Some(host::now_us());
        let noted = host::property(&[FAILED_ATTEMPTS]);
        let mut attempts: Vec<Attempt> = noted.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
        if attempts.len() < MAX_NOTED {
            attempts.push(attempt);
        }
        if let Ok(json) = serde_json::to_vec(&attempts) {
            host::set_property(FAILED_ATTEMPTS, &json);
        }
    }
}

impl Context for ProviderStream {
    fn on_done(&mut self) -> bool {
        // Nothing that counts came before the attempt was over: refused, reset, timed out, or the client left.
        let (status, outcome) = if self.head_came { (200, "no_first_token") } else { (0, "reset") };
        self.note_failure(status, outcome);
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
        self.write_head(&target, ask);
        self.gate = FirstToken::new(target.is_last);
        self.attempt = Some(Attempt {
            provider: target.provider.name.clone(),
            model: target.link.model.clone(),
            start_us: host::now_us(),
            ..Attempt::default()
        });
        if target.body_fits || end_of_stream {
            return Action::Continue;
        }
        self.rename = Some(target.link.model.clone());
        Action::Pause
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.refused {
            return Action::Pause;
        }
        if self.rename.is_some() && !end_of_stream {
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
        let status = host::status(Map::Response);
        let content_type = host::header(Map::Response, "content-type").unwrap_or_default();
        let is_event_stream =
            content_type.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"));
        if let Some(attempt) = &self.attempt {
            host::set_header(Map::Response, "x-parapet-provider", &attempt.provider);
        }
        let gate = self.gate.on_head(status, is_event_stream, end_of_stream);
        self.apply(gate, status)
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.refused || self.gate.is_decided() || self.attempt.is_none() {
            return Action::Continue;
        }
        if self.gate.wants_whole() && !end_of_stream {
            return Action::Pause;
        }
        let bytes = host::buffer(Buffer::Response, self.seen, size.saturating_sub(self.seen));
        self.seen = size;
        let gate = self.gate.on_body(&bytes, end_of_stream);
        self.apply(gate, 200)
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        if self.refused || self.gate.is_decided() || self.attempt.is_none() {
            return Action::Continue;
        }
        let bytes = host::buffer_from(Buffer::Response, self.seen);
        let gate = self.gate.on_body(&bytes, true);
        self.apply(gate, 200)
    }
}
