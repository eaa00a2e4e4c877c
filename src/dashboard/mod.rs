//! The pages at the sidecar's `/`: the service levels, what happens now, one request's waterfall. Rendered here, without
//! scripts; what they show is kept in bounded memory, and read again from the spool after a restart.

pub mod history;
pub mod hosts;
mod limits;
mod live;
mod page;
mod recent;
mod routes;
mod usage;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use parapet_engine::record::Record;
use uuid::Uuid;

use crate::metrics::slo::Observation;
use history::{Extra, History};
pub use limits::Source as LimitsSource;
pub use live::Envoy;
use recent::Recent;
pub use routes::{Shared, oldest_age_s, routes};
use usage::Usage;

/// What the pages remember of the requests that are over.
#[derive(Debug)]
pub struct Board {
    seen: Mutex<Seen>,
    /// Seconds since the Unix epoch.
    started_s: u64,
}

#[derive(Debug, Default)]
struct Seen {
    history: History,
    recent: Recent,
    usage: Usage,
}

impl Default for Board {
    fn default() -> Self {
        Self { seen: Mutex::default(), started_s: now_s() }
    }
}

impl Board {
    /// Counts a request that is over.
    pub fn add(&self, id: Uuid, record: &Record) {
        self.add_at(id, record, now_s());
    }

    fn add_at(&self, id: Uuid, record: &Record, now_s: u64) {
        let Some(observation) = Observation::of(record) else { return };
        // A clock that is ahead must not take the place of minutes to come.
        let minute = (record.end_us / 60_000_000).min(now_s / 60);
        let sent = !record.attempts.is_empty();
        let extra = Extra {
            cached: record.cache.as_ref().and_then(|cache| match cache.outcome.as_str() {
                "hit" => Some(true),
                "miss" => Some(false),
                _ => None,
            }),
            tokens: record.usage.filter(|_| sent).map_or(0, |usage| usage.total()),
            cost_nanousd: if sent { record.cost_nanousd } else { 0 },
        };
        let mut seen = self.lock();
        seen.history.add(minute, &observation, extra);
        seen.usage.add(minute, record);
        seen.recent.add(id, record);
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the pages find what they do not remember themselves.
pub fn limits_source(file: std::path::PathBuf) -> Arc<LimitsSource> {
    Arc::new(LimitsSource::new(file))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
