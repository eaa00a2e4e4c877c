//! What all streams of a root share: the configuration, the keys, the memory of the worker, randomness.

use core::cell::{Cell, RefCell};
use core::hash::BuildHasher as _;
use std::hash::RandomState;

use parapet_engine::config::{Config, ConfigError, Limits};
use parapet_engine::memory::Memory;
use parapet_engine::quota::{Buckets, Decision};

use crate::clock::Clock;
use crate::host;

/// Compare-and-swap rounds before a reservation gives up. Each lost round is another worker's success.
const MAX_CAS_ROUNDS: usize = 64;

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) memory: RefCell<Memory>,
    pub(crate) clock: Clock,
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
            authorizations,
            random: RandomState::new(),
            drawn: Cell::new(0),
        })
    }

    pub(crate) fn authorization(&self, variable: Option<&str>) -> Option<&str> {
        let variable = variable?;
        self.authorizations.iter().find(|(known, _)| known == variable).map(|(_, value)| value.as_str())
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
