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

pub(crate) struct Root {
    id: u32,
    /// Whoever takes this first of all workers makes the check: once for each configuration.
    canary: String,
    shared: Option<(Kind, Rc<Shared>)>,
    check: Check,
    /// When the providers' load is asked for next, in microseconds, and the question that is under way.
    load_us: u64,
    load_call: Option<u32>,
}

/// The guard's self-check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Over,
    /// Due at this time, in microseconds; so many calls were made.
    Due {
        at_us: u64,
        calls: u32,
    },
}

/// From a configuration to the first try of the guard's self-check, and between two tries.
const FIRST_CHECK: Duration = Duration::from_millis(50);
const CANARY_PERIOD_US: u64 = 5_000_000;
const CANARY_TIMEOUT_MS: u64 = 4_000;

#[derive(Clone, Copy)]
enum Kind {
    Gateway,
    Provider,
}

impl Root {
    pub(crate) const fn new(id: u32) -> Self {
        Self { id, canary: String::new(), shared: None, check: Check::Over, load_us: 0, load_call: None }
    }

    fn watches_load(&self) -> bool {
        matches!(&self.shared, Some((Kind::Gateway, shared)) if shared.config.watches_load())
    }

    /// Off the way of any request: what this brings is what the next ones find.
    fn ask_load(&mut self, now_us: u64) {
        let Some((_, shared)) = self.shared.as_ref().filter(|_| self.watches_load() && now_us >= self.load_us) else {
            return;
        };
        let Some(sidecar) = &shared.config.sidecar else { return };
        let headers = [(":method", "GET"), (":path", admission::PATH), (":authority", &*sidecar.authority)];
        self.load_call = host::call(&sidecar.cluster, &headers, b"", admission::PERIOD_MS);
        self.load_us = now_us.saturating_add(admission::PERIOD_MS.saturating_mul(1000));
    }

    /// Until the next thing that the root itself does.
    fn next_tick(&self, now_us: u64) -> Duration {
        let check_us = match self.check {
            Check::Over => None,
            Check::Due { at_us, .. } => Some(at_us),
        };
        let next_us = check_us.into_iter().chain(self.watches_load().then_some(self.load_us)).min();
        // Rounded up: a period of zero would end the ticking.
        next_us.map_or(Duration::ZERO, |at_us| {
            Duration::from_millis((at_us.saturating_sub(now_us) / 1000).saturating_add(1))
        })
    }

    /// Asks the guard, if it is time; the first try only in one of all workers.
    fn check_guard(&mut self, now_us: u64) {
        let Check::Due { at_us, calls } = self.check else { return };
        if now_us < at_us {
            return;
        }
        if calls == 0 && !host::take_once(&self.canary) {
            self.check = Check::Over;
            return;
        }
        self.check = Check::Due { at_us: now_us.saturating_add(CANARY_PERIOD_US), calls: calls.saturating_add(1) };
        self.send_canary();
    }

    fn send_canary(&self) {
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
        let Check::Due { calls, .. } = self.check else { return };
        let dialect = self.shared.as_ref().map(|(_, shared)| shared.config.dialect()).unwrap_or_default();
        match canary::outcome(dialect, status, &body) {
            Outcome::Judges => log::info!("parapet: guard self-check passed"),
            Outcome::Blind => log::error!(
                "parapet: GUARD SELF-CHECK FAILED: the guard calls a known-unsafe text safe; its verdicts are worth nothing. \
                 Check `guard.model`, and that the server shows the conversation to the model"
            ),
            Outcome::Silent if calls < canary::MAX_TRIES => {
                if calls == 1 {
                    log::warn!("parapet: guard self-check: no verdict (status {status}); trying again every 5 s");
                }
                return;
            }
            Outcome::Silent => {
                log::error!("parapet: GUARD SELF-CHECK GIVEN UP: no verdict in {} tries", canary::MAX_TRIES);
            }
        }
        self.check = Check::Over;
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
        match Config::parse(&json).and_then(|config| Shared::new(config, self.id)) {
            Ok(shared) => {
                if let Kind::Gateway = kind {
                    shared.prepare_quota();
                    if shared.config.guard.is_some() {
                        let sum =
                            json.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
                        self.canary = format!("canary/{sum:x}");
                        host::offer_once(&self.canary);
                        self.check = Check::Due { at_us: 0, calls: 0 };
                    }
                    if shared.config.guard.is_some() || shared.config.watches_load() {
                        host::tick_every(FIRST_CHECK);
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
        let now_us = host::now_us();
        self.check_guard(now_us);
        self.ask_load(now_us);
        let Some((_, shared)) = &self.shared else { return };
        if !shared.clock.tick(now_us) {
            host::tick_every(self.next_tick(now_us));
        }
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        let (kind, shared) = self.shared.as_ref()?;
        Some(match kind {
            Kind::Gateway => Box::new(GatewayStream::new(Rc::clone(shared), context_id)),
            Kind::Provider => Box::new(ProviderStream::new(Rc::clone(shared), context_id)),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
