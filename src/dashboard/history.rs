//! The last hour, minute by minute: what the plots are drawn from. Its memory does not grow.

use crate::metrics::slo::{Measure, Observation, Quantile, Slo};
use crate::metrics::{COST, DURATION, FIRST_TOKEN};

/// Minutes kept, the one that runs included.
pub const MINUTES: usize = 60;

/// Counts of values up to each bound, and of those above all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buckets<const N: usize> {
    counts: [u32; N],
    above: u32,
}

impl<const N: usize> Default for Buckets<N> {
    fn default() -> Self {
        Self { counts: [0; N], above: 0 }
    }
}

impl<const N: usize> Buckets<N> {
    fn add(&mut self, bounds: &[f64; N], value: f64) {
        let place = bounds.iter().position(|bound| value <= *bound);
        let count = place.and_then(|place| self.counts.get_mut(place)).unwrap_or(&mut self.above);
        *count = count.saturating_add(1);
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.above = self.above.saturating_add(other.above);
    }

    fn count(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum::<u64>() + u64::from(self.above)
    }

    /// As Prometheus's `histogram_quantile`: linear within a bucket; above the last bound, that bound.
    fn quantile(&self, bounds: &[f64; N], percent: Quantile) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = count as f64 * f64::from(percent) / 100.0;
        let (mut below, mut lower) = (0.0, 0.0);
        for (in_bucket, bound) in self.counts.iter().zip(bounds) {
            let in_bucket = f64::from(*in_bucket);
            if in_bucket > 0.0 && below + in_bucket >= rank {
                return Some(lower + (bound - lower) * (rank - below) / in_bucket);
            }
            below += in_bucket;
            lower = *bound;
        }
        bounds.last().copied()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    part: u32,
    whole: u32,
}

impl Share {
    fn add(&mut self, is_part: Option<bool>) {
        if let Some(is_part) = is_part {
            self.part = self.part.saturating_add(u32::from(is_part));
            self.whole = self.whole.saturating_add(1);
        }
    }

    fn merge(&mut self, other: Self) {
        self.part = self.part.saturating_add(other.part);
        self.whole = self.whole.saturating_add(other.whole);
    }
}

/// One minute, or several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    first_token: Buckets<17>,
    duration: Buckets<16>,
    cost: Buckets<13>,
    input_blocks: Share,
    output_blocks: Share,
    fallbacks: Share,
    /// Cached answers of all that were looked up.
    cache: Share,
    pub requests: u32,
    pub refused: u32,
    pub failed: u32,
    pub tokens: u64,
    pub cost_nanousd: u64,
}

/// What a service level was over some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Requests that counted.
    pub count: u64,
    /// Nothing without requests.
    pub value: Option<f64>,
}

impl Counts {
    fn add(&mut self, observation: &Observation, extra: Extra) {
        use crate::metrics::outcome::Outcome;
        self.requests = self.requests.saturating_add(1);
        self.refused = self.refused.saturating_add(u32::from(observation.outcome == Outcome::Refused));
        self.failed = self.failed.saturating_add(u32::from(observation.outcome == Outcome::Failed));
        if let Some(value) = observation.first_token {
            self.first_token.add(&FIRST_TOKEN, value);
        }
        if let Some(value) = observation.duration {
            self.duration.add(&DURATION, value);
        }
        if let Some(value) = observation.cost {
            self.cost.add(&COST, value);
        }
        self.input_blocks.add(observation.input_blocked);
        self.output_blocks.add(observation.output_blocked);
        self.fallbacks.add(observation.fell_back);
        self.cache.add(extra.cached);
        self.tokens = self.tokens.saturating_add(extra.tokens);
        self.cost_nanousd = self.cost_nanousd.saturating_add(extra.cost_nanousd);
    }

    pub fn merge(&mut self, other: &Self) {
        self.first_token.merge(&other.first_token);
        self.duration.merge(&other.duration);
        self.cost.merge(&other.cost);
        self.input_blocks.merge(other.input_blocks);
        self.output_blocks.merge(other.output_blocks);
        self.fallbacks.merge(other.fallbacks);
        self.cache.merge(other.cache);
        self.requests = self.requests.saturating_add(other.requests);
        self.refused = self.refused.saturating_add(other.refused);
        self.failed = self.failed.saturating_add(other.failed);
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.cost_nanousd = self.cost_nanousd.saturating_add(other.cost_nanousd);
    }

    pub fn level(&self, slo: &Slo) -> Level {
        use crate::metrics::slo;
        let share = match slo.measure {
            Measure::Seconds(percent) if *slo == slo::TIME_TO_FIRST_TOKEN => {
                let buckets = &self.first_token;
                return Level { count: buckets.count(), value: buckets.quantile(&FIRST_TOKEN, percent) };
            }
            Measure::Seconds(percent) => {
                let buckets = &self.duration;
                return Level { count: buckets.count(), value: buckets.quantile(&DURATION, percent) };
            }
            Measure::Usd(percent) => {
                return Level { count: self.cost.count(), value: self.cost.quantile(&COST, percent) };
            }
            Measure::Share if *slo == slo::INPUT_BLOCKS => self.input_blocks,
            Measure::Share if *slo == slo::OUTPUT_BLOCKS => self.output_blocks,
            Measure::Share => self.fallbacks,
        };
        share.level()
    }

    pub fn cache_hits(&self) -> Level {
        self.cache.level()
    }
}

impl Share {
    fn level(self) -> Level {
        let value = (self.whole > 0).then(|| f64::from(self.part) / f64::from(self.whole));
        Level { count: u64::from(self.whole), value }
    }
}

/// What the plots show beside the service levels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extra {
    /// Of a request whose answer was looked up: whether it was there.
    pub cached: Option<bool>,
    pub tokens: u64,
    pub cost_nanousd: u64,
}

/// A ring of minutes.
#[derive(Debug)]
pub struct History {
    slots: Vec<(u64, Counts)>,
}

impl Default for History {
    fn default() -> Self {
        Self { slots: vec![(0, Counts::default()); MINUTES] }
    }
}

impl History {
    /// Counts a request that ended in `minute` (since the Unix epoch). One that is older than what its place holds is
    /// not of this hour any more.
    pub fn add(&mut self, minute: u64, observation: &Observation, extra: Extra) {
        let Some((slot, counts)) = self.slots.get_mut(place(minute)) else { return };
        if minute < *slot {
            return;
        }
        if minute > *slot {
            (*slot, *counts) = (minute, Counts::default());
        }
        counts.add(observation, extra);
    }

    /// The hour that ends with `now`, the oldest minute first.
    pub fn hour(&self, now: u64) -> Vec<(u64, Counts)> {
        (0..MINUTES as u64)
            .rev()
            .filter_map(|ago| now.checked_sub(ago))
            .map(|minute| {
                let found = self.slots.get(place(minute)).filter(|(slot, _)| *slot == minute);
                (minute, found.map(|(_, counts)| *counts).unwrap_or_default())
            })
            .collect()
    }
}

/// The last of them together.
pub fn together<'a>(minutes: impl IntoIterator<Item = &'a (u64, Counts)>) -> Counts {
    minutes.into_iter().fold(Counts::default(), |mut sum, (_, counts)| {
        sum.merge(counts);
        sum
    })
}

fn place(minute: u64) -> usize {
    usize::try_from(minute % MINUTES as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::outcome::Outcome;
    use crate::metrics::slo;

    fn first_token(seconds: f64) -> Observation {
        Observation {
            outcome: Outcome::Answered,
            first_token: Some(seconds),
            duration: None,
            input_blocked: Some(false),
            output_blocked: None,
            fell_back: Some(seconds > 1.0),
            cost: None,
        }
    }

    #[test]
    fn quantiles_are_prometheus_s() {
        let mut counts = Counts::default();
        for _ in 0..95 {
            counts.add(&first_token(0.28), Extra::default());
        }
        for _ in 0..5 {
            counts.add(&first_token(3.0), Extra::default());
        }
        let level = counts.level(&slo::TIME_TO_FIRST_TOKEN);
        assert_eq!((level.count, level.value), (100, Some(0.3)), "95 of 100 are within the bucket that ends at 0.3");
        assert_eq!(counts.level(&slo::FALLBACKS).value, Some(0.05));
        assert_eq!(counts.level(&slo::INPUT_BLOCKS).value, Some(0.0));
        assert_eq!(counts.level(&slo::OUTPUT_BLOCKS), Level { count: 0, value: None });
        assert_eq!(counts.level(&slo::COST), Level { count: 0, value: None });
        let slow = Counts::default();
        assert_eq!(slow.level(&slo::DURATION).value, None);
        let mut slow = Counts::default();
        slow.add(&Observation { duration: Some(500.0), ..first_token(0.1) }, Extra::default());
        assert_eq!(slow.level(&slo::DURATION).value, Some(81.92), "nothing is known above the last bound");
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut history = History::default();
        history.add(1000, &first_token(0.1), Extra::default());
        history.add(1001, &first_token(0.1), Extra { cached: Some(true), tokens: 7, cost_nanousd: 1 });
        history.add(1001, &first_token(0.1), Extra { cached: Some(false), tokens: 1, cost_nanousd: 1 });
        let requests = |history: &History, now| -> Vec<u32> {
            history.hour(now).iter().map(|(_, counts)| counts.requests).collect()
        };
        assert_eq!(requests(&history, 1001)[58..], [1, 2]);
        assert_eq!(requests(&history, 1059)[..2], [1, 2]);
        assert_eq!(requests(&history, 1060)[..2], [2, 0]);
        assert_eq!(requests(&history, 1061).iter().sum::<u32>(), 0);
        let hour = together(&history.hour(1001));
        assert_eq!((hour.tokens, hour.cache_hits().value), (8, Some(0.5)));

        history.add(1061, &first_token(0.1), Extra::default());
        // What comes late (the sidecar was down) is not counted in another hour's minute.
        history.add(1001, &first_token(0.1), Extra::default());
        assert_eq!(requests(&history, 1061).iter().sum::<u32>(), 1);
    }
}
