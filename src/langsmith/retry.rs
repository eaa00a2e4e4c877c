//! How long to wait before the next try.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::order;

/// A server's `Retry-After` is honoured up to this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub first: Duration,
    pub max: Duration,
    /// Between tries at what an operator has to put right: a key, an address.
    pub operator: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), max: Duration::from_secs(60), operator: Duration::from_secs(60) }
    }
}

/// Doubling waits with jitter.
#[derive(Debug)]
pub struct Backoff {
    policy: Policy,
    next: Duration,
}

impl Backoff {
    pub const fn new(policy: Policy) -> Self {
        Self { policy, next: policy.first }
    }

    /// The next wait: at least what the server asked for, else between half and the whole of the doubled last one.
    pub fn wait(&mut self, retry_after: Option<Duration>) -> Duration {
        let wait = self.next.mul_f64(0.5 + jitter() / 2.0);
        self.next = (self.next * 2).min(self.policy.max);
        retry_after.map_or(wait, |asked| wait.max(asked))
    }
}

/// A random number from 0 to 1, good enough to spread retries: the standard library's hash keys are random.
fn jitter() -> f64 {
    f64::from(u32::try_from(RandomState::new().hash_one(0_u8) >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

/// `Retry-After` (RFC 9110 §10.2.3): seconds, or an IMF-fixdate.
pub fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    let asked = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = Duration::from_micros(imf_fixdate(value)?);
            at.saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
        }
    };
    Some(asked.min(MAX_RETRY_AFTER))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in microseconds since the Unix epoch.
fn imf_fixdate(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let (day, month, year, clock) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    order::parse_compact(&format!("{year}{month:02}{day}T{}000000Z", clock.replace(':', "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_their_bound_and_never_undercut_the_server() {
        let policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(4), ..Policy::default() };
        let mut backoff = Backoff::new(policy);
        for bound in [1, 2, 4, 4, 4] {
            let wait = backoff.wait(None);
            assert!(wait >= Duration::from_secs(bound) / 2 && wait <= Duration::from_secs(bound), "{wait:?}");
        }
        assert!(backoff.wait(Some(Duration::from_secs(30))) >= Duration::from_secs(30));
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("99999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(imf_fixdate("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000_000));
        assert_eq!(retry_after("soon"), None);
    }
}
