//! The root context: takes a configuration in, makes a stream of the kind that its plugin's `root_id` names, and checks
//! once that the guard judges at all.

use core::time::Duration;
use std::rc::Rc;

use parapet_engine::admission;
use parapet_engine::config::Config;
use parapet_engine::guard::canary::{self, Outcome};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::ContextType;

use crate::gateway::GatewayStream;
use crate::host::{self, Buffer, Map};
use crate::provider::ProviderStream;
use crate::shared::Shared;

#[derive(Default)]
pub(crate) struct Root {
    shared: Option<(Kind, Rc<Shared>)>,
    /// Calls made to the guard for its self-check.
    canaries: u32,
    /// When the next is made, in microseconds since the Unix epoch; `None`: none is.
    next_canary_us: Option<u64>,
    /// The question about the providers' load that is under way.
    load_call: Option<u32>,
}

/// Between two tries of the guard's self-check.
const CANARY_PERIOD: Duration = Duration::from_secs(5);
const CANARY_TIMEOUT_MS: u64 = 4_000;
/// Whoever writes this first of all workers makes the check.
const CANARY_TAKEN: &str = "canary";

#[derive(Clone, Copy)]
enum Kind {
    Gateway,
    Provider,
}

impl Root {
    fn watches_load(&self) -> bool {
        self.shared.as_ref().is_some_and(|(_, shared)| shared.config.watches_load())
    }

    /// Off the way of any request: what this brings is what the next ones find.
    fn ask_load(&mut self) {
        let Some((_, shared)) = &self.shared else { return };
        let Some(sidecar) = &shared.config.sidecar else { return };
        let headers = [(":method", "GET"), (":path", admission::PATH), (":authority", &*sidecar.authority)];
        self.load_call = host::call(&sidecar.cluster, &headers, b"", admission::PERIOD_MS);
    }

    fn set_timer(&self) {
        host::set_tick_period(if self.watches_load() {
            Duration::from_millis(admission::PERIOD_MS)
        } else if self.next_canary_us.is_some() {
            CANARY_PERIOD
        } else {
            Duration::ZERO
        });
    }

    fn send_canary(&mut self) {
        let Some((_, shared)) = &self.shared else { return };
        let Some(guard) = &shared.config.guard else { return };
        let path = format!("{}/completions", guard.base_path);
        let mut headers = vec![
            (":method", "POST"),
            (":path", &*path),
            (":authority", &*guard.authority),
            ("content-type", "application/json"),
        ];
        if let Some(authorization) = shared.authorization(guard.api_key_env.as_deref()) {
            headers.push(("authorization", authorization));
        }
        self.canaries = self.canaries.saturating_add(1);
        host::call(&guard.cluster, &headers, &canary::request(guard), CANARY_TIMEOUT_MS);
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, body_size: usize, _trailers: usize) {
        let status = if headers == 0 { 0 } else { host::status(Map::Callout) };
        let body = host::buffer(Buffer::Callout, 0, body_size);
        if self.load_call == Some(token) {
            self.load_call = None;
            if let (200, Some((_, shared))) = (status, &self.shared) {
                shared.memory.borrow_mut().loads.hear(&String::from_utf8_lossy(&body), host::now_us());
            }
            return;
        }
        let dialect = self.shared.as_ref().map(|(_, shared)| shared.config.dialect()).unwrap_or_default();
        match canary::outcome(dialect, status, &body) {
            Outcome::Judges => log::info!("parapet: guard self-check passed"),
            Outcome::Blind => log::error!(
                "parapet: GUARD SELF-CHECK FAILED: the guard calls a known-unsafe text safe; its verdicts are worth nothing. \
                 Check `guard.model`, and that the server shows the conversation to the model"
            ),
            Outcome::Silent if self.canaries < canary::MAX_TRIES => {
                if self.canaries == 1 {
                    log::warn!("parapet: guard self-check: no verdict (status {status}); trying again every 5 s");
                }
                return;
            }
            Outcome::Silent => {
                log::error!("parapet: GUARD SELF-CHECK GIVEN UP: no verdict in {} tries", canary::MAX_TRIES);
            }
        }
        self.next_canary_us = None;
        self.set_timer();
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let kind = match host::property(&["plugin_root_id"]).as_deref() {
            Some(b"gateway") => Kind::Gateway,
            Some(b"provider") => Kind::Provider,
            other => {
                let name = String::from_utf8_lossy(other.unwrap_or_default()).into_owned();
                log::error!("parapet: root_id: expected `gateway` or `provider`; got `{name}`");
                return false;
            }
        };
        let json = self.get_plugin_configuration().unwrap_or_default();
        match Config::parse(&json).and_then(Shared::new) {
            Ok(shared) => {
                if let Kind::Gateway = kind {
                    shared.prepare_quota();
                    self.next_canary_us = shared.config.guard.as_ref().map(|_| 0);
                    if self.next_canary_us.is_some() || shared.config.watches_load() {
                        host::set_tick_period(Duration::from_millis(50));
                    }
                }
                self.shared = Some((kind, Rc::new(shared)));
                true
            }
            Err(error) => {
                log::error!("parapet: configuration refused: {error}");
                false
            }
        }
    }

    fn on_tick(&mut self) {
        if let Some((Kind::Provider, shared)) = &self.shared {
            return shared.tend_attempts();
        }
        if self.watches_load() {
            self.ask_load();
        }
        let now_us = host::now_us();
        // Without another use for the timer it is the canary's own.
        let is_due = |at_us: u64| !self.watches_load() || now_us >= at_us;
        if self.next_canary_us.is_some_and(is_due) {
            if self.canaries == 0 && !host::take_once(CANARY_TAKEN) {
                self.next_canary_us = None;
            } else {
                self.next_canary_us = Some(now_us.saturating_add(CANARY_PERIOD.as_micros() as u64));
                self.send_canary();
            }
        }
        self.set_timer();
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        let (kind, shared) = self.shared.as_ref()?;
        Some(match kind {
            Kind::Gateway => Box::new(GatewayStream::new(Rc::clone(shared))),
            Kind::Provider => Box::new(ProviderStream::new(Rc::clone(shared), context_id)),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
