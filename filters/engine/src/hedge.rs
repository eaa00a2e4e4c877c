//! Racing attempts: when another provider may be asked beside the one that has not answered yet, and what that may cost.
//!
//! Envoy's router begins a further attempt when the running one has shown no token within the request's limit, and lets
//! the first answer win. Whether that attempt may be *sent* is decided here: at the first-token limit always, for that is
//! failover; before it, as a hedge, only within a share of the requests. One that may not is held, and goes when those
//! before it have failed or when their limit is over.

use hashbrown::HashMap;

/// What a request allows its attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Unique among the requests that this worker has under way.
    pub request: u64,
    /// The first-token limit, in milliseconds: from then on the next provider is asked in any case.
    pub limit_ms: u64,
    /// Hedges for every hundred requests; `None`: the next provider is asked at the limit only.
    pub hedge_percent: Option<u32>,
}

/// What an attempt does when Envoy begins it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Go,
    /// Held: it goes when [`Races::due`] names it.
    Wait,
}

/// What is known of an attempt when it is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// When it was sent, in microseconds since the Unix epoch; `None`: it never was.
    pub sent_us: Option<u64>,
    /// Another one's token came first.
    pub lost: bool,
}

/// The attempts of the requests that a worker has under way. An entry lives as long as one of its attempts.
#[derive(Debug, Default)]
pub struct Races {
    races: HashMap<u64, Race>,
    budgets: Vec<Budget>,
    /// Held attempts as (request, context), the oldest first.
    held: Vec<(u64, u32)>,
}

#[derive(Debug)]
struct Race {
    limit_us: u64,
    attempts: Vec<Attempt>,
    won: bool,
}

#[derive(Debug)]
struct Attempt {
    /// The host's number of it.
    context: u32,
    sent_us: Option<u64>,
    failed: bool,
    gone: bool,
}

impl Attempt {
    const fn is_running(&self) -> bool {
        self.sent_us.is_some() && !self.failed && !self.gone
    }

    const fn is_held(&self) -> bool {
        self.sent_us.is_none() && !self.gone
    }
}

/// The share that one percentage allows; policies with the same percentage have one together.
#[derive(Debug)]
struct Budget {
    percent: u32,
    /// In hundredths of a hedge.
    level: u32,
}

/// Hedges that may be sent at once after a quiet time, so that a few slow requests among few are helped too.
const BURST: u32 = 10;

/// Envoy's timer and the filter's clock need not agree to the millisecond.
const TOLERANCE_US: u64 = 5_000;

impl Races {
    /// Envoy begins an attempt.
    pub fn begin(&mut self, terms: Terms, context: u32, now_us: u64) -> Start {
        let limit_us = terms.limit_ms.saturating_mul(1000);
        let race = self.races.entry(terms.request).or_insert_with(|| Race {
            limit_us,
            attempts: Vec::with_capacity(1),
            won: false,
        });
        let first = race.attempts.is_empty();
        let alone = !race.attempts.iter().any(Attempt::is_running);
        let goes = alone || race.limit_is_over(now_us);
        let goes = match terms.hedge_percent {
            None => true,
            Some(percent) if first => {
                budget(&mut self.budgets, percent).earn();
                true
            }
            Some(percent) => goes || budget(&mut self.budgets, percent).spend(),
        };
        let sent_us = goes.then_some(now_us);
        race.attempts.push(Attempt { context, sent_us, failed: false, gone: false });
        if goes {
            return Start::Go;
        }
        self.held.push((terms.request, context));
        Start::Wait
    }

    /// Another attempt of this request is on its way.
    #[must_use]
    pub fn has_company(&self, request: u64, context: u32) -> bool {
        self.races.get(&request).is_some_and(|race| {
            race.attempts.iter().any(|attempt| attempt.context != context && (attempt.is_running() || attempt.is_held()))
        })
    }

    /// What an attempt brought does not count.
    pub fn failed(&mut self, request: u64, context: u32) {
        if let Some(attempt) = self.races.get_mut(&request).and_then(|race| race.attempt(context)) {
            attempt.failed = true;
        }
    }

    /// An attempt's token came first. Its number among those sent, if others were begun, and when it was sent.
    pub fn won(&mut self, request: u64, context: u32) -> Option<(usize, u64)> {
        let race = self.races.get_mut(&request)?;
        race.won = true;
        let sent_us = race.attempt(context)?.sent_us?;
        let sent = race.attempts.iter().filter(|attempt| attempt.sent_us.is_some()).count();
        (race.attempts.len() > 1).then_some((sent, sent_us))
    }

    /// An attempt is over, however it ended.
    pub fn left(&mut self, request: u64, context: u32) -> Left {
        self.held.retain(|held| *held != (request, context));
        let Some(race) = self.races.get_mut(&request) else { return Left::default() };
        let won = race.won;
        let left = race.attempt(context).map_or_else(Left::default, |attempt| {
            attempt.gone = true;
            Left { sent_us: attempt.sent_us, lost: won && !attempt.failed }
        });
        if race.attempts.iter().all(|attempt| attempt.gone) {
            self.races.remove(&request);
        }
        left
    }

    /// Attempts are held: [`Races::due`] wants to be asked again soon.
    #[must_use]
    pub const fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// The held attempts that go now, by the host's number: of each request the oldest, when no other is under way or the
    /// one before it has had its time.
    pub fn due(&mut self, now_us: u64) -> Vec<u32> {
        let mut due = Vec::new();
        let races = &mut self.races;
        self.held.retain(|(request, context)| {
            let Some(race) = races.get_mut(request) else { return false };
            let goes = !race.attempts.iter().any(Attempt::is_running) || race.limit_is_over(now_us);
            if goes && let Some(attempt) = race.attempt(*context) {
                attempt.sent_us = Some(now_us);
                due.push(*context);
            }
            !goes
        });
        due
    }

    /// Requests under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.races.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.races.is_empty()
    }
}

impl Race {
    fn attempt(&mut self, context: u32) -> Option<&mut Attempt> {
        self.attempts.iter_mut().find(|attempt| attempt.context == context)
    }

    /// The youngest attempt under way has had its time.
    fn limit_is_over(&self, now_us: u64) -> bool {
        let youngest = self.attempts.iter().filter_map(|attempt| attempt.sent_us).max();
        youngest.is_none_or(|sent_us| now_us.saturating_sub(sent_us).saturating_add(TOLERANCE_US) >= self.limit_us)
    }
}

/// There are as many as there are different percentages in the configuration.
fn budget(budgets: &mut Vec<Budget>, percent: u32) -> &mut Budget {
    let at = budgets.iter().position(|budget| budget.percent == percent).unwrap_or_else(|| {
        budgets.push(Budget { percent, level: BURST.saturating_mul(100) });
        budgets.len().saturating_sub(1)
    });
    // The position is one of a budget that is there.
    #[expect(clippy::indexing_slicing, reason = "found or pushed just now")]
    &mut budgets[at]
}

impl Budget {
    fn earn(&mut self) {
        self.level = self.level.saturating_add(self.percent).min(BURST.saturating_mul(100));
    }

    fn spend(&mut self) -> bool {
        let left = self.level.checked_sub(100);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1000;

    fn terms(request: u64, hedge_percent: Option<u32>) -> Terms {
        Terms { request, limit_ms: 1000, hedge_percent }
    }

    /// Everything of the budget is spent.
    fn broke(percent: u32) -> Races {
        let mut races = Races::default();
        for request in 0..u64::from(BURST) {
            races.begin(terms(request + 1000, Some(percent)), 0, 0);
            assert_eq!(races.begin(terms(request + 1000, Some(percent)), 1, MS), Start::Go);
        }
        assert_eq!(races.begin(terms(999, Some(percent)), 0, 0), Start::Go);
        for request in 0..u64::from(BURST) {
            races.left(request + 1000, 0);
            races.left(request + 1000, 1);
        }
        races.left(999, 0);
        races
    }

    #[test]
    fn a_second_attempt_goes_at_once_where_failover_asks_for_it() {
        for (hedge_percent, after_ms, first_failed, expected) in [
            // The limit is over.
            (None, 1000, false, Start::Go),
            (Some(1), 1000, false, Start::Go),
            (Some(1), 996, false, Start::Go),
            // The first one failed.
            (None, 10, true, Start::Go),
            (Some(1), 10, true, Start::Go),
            // A hedge without a budget.
            (Some(1), 300, false, Start::Wait),
            // Without hedging Envoy begins one at the limit only; it is not ours to hold it.
            (None, 300, false, Start::Go),
        ] {
            let mut races = broke(1);
            races.begin(terms(1, hedge_percent), 10, 0);
            if first_failed {
                races.failed(1, 10);
            }
            let start = races.begin(terms(1, hedge_percent), 11, after_ms * MS);
            assert_eq!(start, expected, "{hedge_percent:?} {after_ms} {first_failed}");
        }
    }

    #[test]
    fn hedges_are_a_share_of_the_requests_whatever_happens_at_once() {
        for percent in [1, 5, 10, 100] {
            let mut races = Races::default();
            let mut hedged = 0;
            // All of them are slow, and a thousand are under way together.
            for batch in 0..10_u64 {
                let requests = || (0..1000_u64).map(move |request| batch * 1000 + request);
                requests().for_each(|request| _ = races.begin(terms(request, Some(percent)), 0, 0));
                for request in requests() {
                    hedged += u64::from(races.begin(terms(request, Some(percent)), 1, MS) == Start::Go);
                }
                for request in requests() {
                    races.left(request, 0);
                    races.left(request, 1);
                }
            }
            let allowed = 10_000 * u64::from(percent) / 100 + u64::from(BURST);
            assert!(hedged <= allowed && hedged >= u64::from(BURST), "{percent} %: {hedged}");
            assert!(races.is_empty() && !races.is_holding());
        }
        // Slow ones that come one by one get the share in full.
        let mut races = Races::default();
        let mut hedged = 0;
        for request in 0..10_000 {
            races.begin(terms(request, Some(5)), 0, 0);
            if request % 20 == 0 {
                hedged += u64::from(races.begin(terms(request, Some(5)), 1, MS) == Start::Go);
                races.left(request, 1);
            }
            races.left(request, 0);
        }
        assert_eq!(hedged, 500);
    }

    #[test]
    fn a_held_attempt_goes_when_the_first_fails_or_has_had_its_time_and_not_before() {
        let held = || {
            let mut races = broke(1);
            races.begin(terms(1, Some(1)), 10, 0);
            assert_eq!(races.begin(terms(1, Some(1)), 11, 300 * MS), Start::Wait);
            assert!(races.due(900 * MS).is_empty());
            races
        };
        let mut races = held();
        assert_eq!(races.due(1000 * MS), [11]);
        assert!(races.due(2000 * MS).is_empty() && !races.is_holding());

        let mut races = held();
        races.failed(1, 10);
        assert_eq!(races.due(310 * MS), [11]);

        let mut races = held();
        races.left(1, 10);
        assert_eq!(races.due(310 * MS), [11]);
        assert_eq!(races.left(1, 11), Left { sent_us: Some(310 * MS), lost: false });

        let mut races = held();
        assert_eq!(races.won(1, 10), Some((1, 0)), "one was sent, two were begun");
        assert_eq!(races.left(1, 11), Left { sent_us: None, lost: true });
        assert!(!races.is_holding());
    }

    #[test]
    fn of_several_held_ones_the_next_waits_for_the_limit_of_the_one_before() {
        let mut races = broke(1);
        races.begin(terms(1, Some(1)), 10, 0);
        races.begin(terms(1, Some(1)), 11, 300 * MS);
        races.begin(terms(1, Some(1)), 12, 600 * MS);
        assert_eq!(races.due(1000 * MS), [11]);
        assert!(races.due(1900 * MS).is_empty());
        assert_eq!(races.due(2000 * MS), [12]);
    }

    #[test]
    fn the_loser_is_told_from_one_that_failed_by_itself() {
        let mut races = Races::default();
        races.begin(terms(1, Some(5)), 10, 0);
        races.begin(terms(1, Some(5)), 11, 300 * MS);
        assert!(races.has_company(1, 10) && races.has_company(1, 11));
        assert_eq!(races.won(1, 11), Some((2, 300 * MS)));
        assert_eq!(races.left(1, 10), Left { sent_us: Some(0), lost: true });
        assert!(!races.has_company(1, 11));

        let mut races = Races::default();
        races.begin(terms(1, Some(5)), 10, 0);
        races.failed(1, 10);
        races.begin(terms(1, Some(5)), 11, 300 * MS);
        races.won(1, 11);
        assert!(!races.left(1, 10).lost);
        races.begin(terms(2, None), 12, 0);
        assert_eq!(races.won(2, 12), None, "one that was alone says nothing");
    }
}
