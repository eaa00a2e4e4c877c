//! What all streams of a root share: the configuration, the keys, the memory of the worker, randomness.

use core::cell::{Cell, RefCell};
use core::hash::BuildHasher as _;
use core::time::Duration;
use std::hash::RandomState;

use parapet_engine::config::{Config, ConfigError, Limits};
use parapet_engine::hedge::{Due, Races};
use parapet_engine::memory::Memory;
use parapet_engine::quota::{Buckets, Decision};
use parapet_engine::record::Attempt;

use crate::clock::Clock;
use crate::gateway::FAILED_ATTEMPTS;
use crate::host;
use crate::provider::{AttemptHead, NO_ANSWER};

/// Compare-and-swap rounds before a reservation gives up. Each lost round is another worker's success.
const MAX_CAS_ROUNDS: usize = 64;

/// Between two complaints about providers.
const COMPLAINT_PERIOD_US: u64 = 60_000_000;

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) memory: RefCell<Memory>,
    pub(crate) clock: Clock,
    root: u32,
    /// The attempts under way.
    pub(crate) races: RefCell<Races>,
    /// The heads of those that wait for their turn, by context.
    pub(crate) held: RefCell<Vec<(u32, AttemptHead)>>,
    complained_us: Cell<u64>,
    /// The timer's period as the attempts need it; 0: it does not run.
    tick_ms: Cell<u64>,
    /// `Bearer KEY` by environment variable.
    authorizations: Vec<(String, String)>,
    random: RandomState,
    drawn: Cell<u64>,
}

impl Shared {
    pub(crate) fn new(config: Config, root: u32) -> Result<Self, ConfigError> {
        let mut authorizations = Vec::new();
        for variable in config.key_variables() {
            match std::env::var(variable) {
                Ok(key) if key.is_empty() => {}
                Ok(key) if key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                    authorizations.push((variable.to_owned(), format!("Bearer {key}")));
                }
                Ok(_) => {
                    return Err(ConfigError {
                        path: format!("api_key_env ({variable})"),
                        message: "the variable's value cannot stand in a header".to_owned(),
                    });
                }
                Err(_) => {}
            }
        }
        Ok(Self {
            config,
            memory: RefCell::new(Memory::default()),
            clock: Clock::new(root),
            root,
            races: RefCell::new(Races::default()),
            held: RefCell::new(Vec::new()),
            complained_us: Cell::new(0),
            tick_ms: Cell::new(0),
            authorizations,
            random: RandomState::new(),
            drawn: Cell::new(0),
        })
    }

    pub(crate) fn authorization(&self, variable: Option<&str>) -> Option<&str> {
        let variable = variable?;
        self.authorizations.iter().find(|(known, _)| known == variable).map(|(_, value)| value.as_str())
    }

    /// A provider says what only its operator can mend: loud, but not once per request.
    pub(crate) fn complain(&self, attempt: &Attempt, status: u16) {
        let now_us = host::now_us();
        if now_us.saturating_sub(self.complained_us.get()) < COMPLAINT_PERIOD_US {
            return;
        }
        self.complained_us.set(now_us);
        let Attempt { provider, model, .. } = attempt;
        log::error!(
            "parapet: the provider `{provider}` answers {status} for the model `{model}`: check its key (`api_key_env`), \
             `base_path` and the model's name in `chain`"
        );
    }

    pub(crate) fn take_held(&self, context: u32) -> Option<AttemptHead> {
        let mut held = self.held.borrow_mut();
        let at = held.iter().position(|(known, _)| *known == context)?;
        Some(held.swap_remove(at).1)
    }

    /// The attempts whose turn has come are sent, or told to have failed.
    pub(crate) fn tend_attempts(&self) {
        let due = self.races.borrow_mut().due(host::now_us());
        for due in due {
            match due {
                Due::Send(context) => {
                    let head = self.take_held(context);
                    if let Some(head) = head.filter(|_| host::act_as(context)) {
                        host::edit_head(&head);
                        host::resume_request();
                    }
                }
                Due::GiveUp(context, status, attempts) => {
                    if host::act_as(context) {
                        let json = ("content-type", "application/json".to_owned());
                        // The router adds its count to its own answers only. Those that failed have a line each.
                        let noted = host::property(&[FAILED_ATTEMPTS]).unwrap_or_default();
                        let failed = noted.iter().filter(|byte| **byte == b'\n').count();
                        let count = ("x-envoy-attempt-count", attempts.saturating_add(failed).to_string());
                        host::send_reply(status, &[json, count], NO_ANSWER);
                    }
                }
            }
        }
        self.tick(self.root);
    }

    /// Sets the timer as the attempts under way need it; `context` is the caller's.
    pub(crate) fn tick(&self, context: u32) {
        let period_ms = self.races.borrow().period_ms().unwrap_or(0);
        if self.tick_ms.replace(period_ms) != period_ms && host::act_as(self.root) {
            host::tick_every(Duration::from_millis(period_ms));
            host::act_as(context);
        }
    }

    /// Ten bytes nobody can foretell: SipHash with the VM's secret random key over a counter.
    pub(crate) fn entropy(&self) -> [u8; 10] {
        let draw = || {
            let count = self.drawn.get();
            self.drawn.set(count.wrapping_add(1));
            self.random.hash_one(count).to_le_bytes()
        };
        let mut bytes = [0; 10];
        bytes.iter_mut().zip(draw().into_iter().chain(draw())).for_each(|(byte, random)| *byte = random);
        bytes
    }

    /// Writes every limited user's buckets once, so that each later write can be a compare-and-swap: the first write of
    /// a key cannot be one.
    pub(crate) fn prepare_quota(&self) {
        let now_us = host::now_us();
        for key in &self.config.keys {
            let Some(policy) = self.config.policies.get(&key.policy) else { continue };
            let name = format!("quota/{}/{}", key.tenant, key.user);
            if host::shared_data(&name).0.is_none() {
                host::set_shared_data(&name, &Buckets::full(&policy.limits, now_us).to_bytes(), None);
            }
        }
    }

    pub(crate) fn reserve(bucket: &str, limits: &Limits, tokens: u64) -> Decision {
        let mut refused = None;
        for _ in 0..MAX_CAS_ROUNDS {
            let (bytes, cas) = host::shared_data(bucket);
            let now_us = host::now_us();
            let (after, decision) =
                Buckets::from_bytes(bytes.as_deref(), limits, now_us).reserve(limits, tokens, now_us);
            if !decision.granted || host::set_shared_data(bucket, &after.to_bytes(), cas) {
                return decision;
            }
            refused = Some(Decision { granted: false, retry_after_s: 1, ..decision });
        }
        refused.unwrap_or(Decision { granted: false, retry_after_s: 1, requests: None, tokens: None })
    }

    pub(crate) fn settle(bucket: &str, limits: &Limits, reserved: u64, used: u64) {
        for _ in 0..MAX_CAS_ROUNDS {
            let (bytes, cas) = host::shared_data(bucket);
            let now_us = host::now_us();
            let after = Buckets::from_bytes(bytes.as_deref(), limits, now_us).settle(limits, reserved, used, now_us);
            if host::set_shared_data(bucket, &after.to_bytes(), cas) {
                return;
            }
        }
        log::warn!("parapet: a settlement of {used} tokens lost {MAX_CAS_ROUNDS} rounds; its reservation stands");
    }
}
