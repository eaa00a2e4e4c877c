//! Spilling before it is too late: vLLM never refuses a request, it queues it. What its replicas say of their queues and
//! caches the sidecar collects and every worker asks it for; a request that would only queue goes to the rest of its chain.

use crate::config::Spill;

/// The sidecar's path for it.
pub const PATH: &str = "/internal/load";

/// How often a worker asks, in milliseconds.
pub const PERIOD_MS: u64 = 250;

/// What was heard longer ago, in microseconds, is no reason to spill: nobody knows any more.
const FRESH_US: u64 = 1_500_000;

/// More providers than any configuration has.
const MAX_PROVIDERS: usize = 64;

/// How busy the least busy replica of a provider is: as long as one has room there is room.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Requests in its queue.
    pub waiting: u64,
    /// Of its KV cache, from 0 to 1.
    pub kv_cache: f64,
}

/// What a worker knows of its providers.
#[derive(Debug, Default)]
pub struct Loads {
    heard_us: u64,
    providers: Vec<(String, Load)>,
}

impl Loads {
    /// Takes the sidecar's answer in: for each provider it watches a line `NAME WAITING KV_CACHE`, the last in tenths of a
    /// percent. What is not in it, or cannot be read, is not known from now on.
    pub fn hear(&mut self, text: &str, now_us: u64) {
        self.heard_us = now_us;
        self.providers.clear();
        for line in text.split('\n') {
            if self.providers.len() < MAX_PROVIDERS
                && let Some(known) = read_line(line)
            {
                self.providers.push(known);
            }
        }
    }

    /// A request to this provider would only queue there.
    #[must_use]
    pub fn is_full(&self, provider: &str, spill: &Spill, now_us: u64) -> bool {
        if now_us.saturating_sub(self.heard_us) > FRESH_US {
            return false;
        }
        let load = self.providers.iter().find(|(name, _)| name == provider).map(|(_, load)| load);
        load.is_some_and(|load| {
            spill.waiting.is_some_and(|most| load.waiting >= most)
                || spill.kv_cache.is_some_and(|most| load.kv_cache >= most)
        })
    }
}

fn read_line(line: &str) -> Option<(String, Load)> {
    // No fraction: the library's way to read one takes 12 KB of the module.
    let (rest, kv_cache) = line.rsplit_once(' ')?;
    let (name, waiting) = rest.rsplit_once(' ')?;
    let kv_cache: u16 = kv_cache.parse().ok()?;
    Some((name.to_owned(), Load { waiting: waiting.parse().ok()?, kv_cache: f64::from(kv_cache) / 1000.0 }))
}

/// What [`Loads::hear`] reads.
#[must_use]
pub fn line(provider: &str, load: Load) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
    let kv_cache = (load.kv_cache.clamp(0.0, 1.0) * 1000.0).floor() as u16;
    format!("{provider} {} {kv_cache}\n", load.waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_full_when_a_fresh_word_says_so() {
        let both = Spill { waiting: Some(4), kv_cache: Some(0.9) };
        let queue = Spill { waiting: Some(4), kv_cache: None };
        for (text, spill, age_us, full) in [
            ("vllm 4 0\n", both, 0, true),
            ("vllm 3 899\n", both, 0, false),
            ("vllm 0 900\n", both, 0, true),
            ("vllm 0 1000\n", queue, 0, false),
            ("vllm 9 1000\n", Spill { waiting: None, kv_cache: None }, 0, false),
            ("other 9 1000\nvllm 0 0\n", both, 0, false),
            ("other 9 1000\n", both, 0, false),
            ("", both, 0, false),
            ("vllm 9 1000\n", both, FRESH_US, true),
            ("vllm 9 1000\n", both, FRESH_US + 1, false),
            ("vllm 9\n", both, 0, false),
            ("vllm -1 x\n", both, 0, false),
            ("<html>503</html>", both, 0, false),
        ] {
            let mut loads = Loads::default();
            loads.hear(text, 1000);
            assert_eq!(loads.is_full("vllm", &spill, 1000 + age_us), full, "{text} {age_us}");
        }
        assert!(!Loads::default().is_full("vllm", &both, 1));
    }

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let load = Load { waiting: 12, kv_cache: 0.25 };
        assert_eq!(read_line(line("my vllm", load).trim_end()), Some(("my vllm".to_owned(), load)));
    }

    #[test]
    fn a_later_word_replaces_the_one_before() {
        let mut loads = Loads::default();
        let spill = Spill { waiting: Some(1), kv_cache: None };
        loads.hear("vllm 9 0\n", 0);
        loads.hear("", 1);
        assert!(!loads.is_full("vllm", &spill, 2));
    }
}
