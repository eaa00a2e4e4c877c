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
    /// Without any token for so long nobody waits on; `None`: the router has a limit of its own.
    pub give_up_ms: Option<u64>,
}

/// What is to be done with an attempt now; the number is the host's of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It was held and goes.
    Send(u32),
    /// Nobody answers: the client is told so in this one's place, with this status, and how many are at work.
    GiveUp(u32, u16, usize),
}

/// What an attempt does when Envoy begins it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Go,
    /// Held: it goes when [`Races::due`] names it.
    Wait,
}

/// The attempts of the requests that a worker has under way. An entry lives as long as one of its attempts.
#[derive(Debug, Default)]
pub struct Races {
    races: HashMap<u64, Race>,
    budgets: Vec<Budget>,
    /// Attempts as (request, context), the oldest first: those that may not be sent yet, and those whose failure is kept
    /// back.
    held: Vec<(u64, u32)>,
    muted: Vec<(u64, u32)>,
}

#[derive(Debug)]
struct Race {
    limit_us: u64,
    attempts: Vec<Attempt>,
    /// Nobody waits for a token any more: one has come, or it was given up.
    over: bool,
    won: bool,
    give_up_us: Option<u64>,
    /// Since when nobody is at work.
    idle_us: Option<u64>,
}

#[derive(Debug)]
struct Attempt {
    /// The host's number of it.
    context: u32,
    sent_us: Option<u64>,
    failed: bool,
    muted: bool,
    gone: bool,
}

impl Attempt {
    const fn is_running(&self) -> bool {
        self.sent_us.is_some() && !self.failed && !self.gone
    }

    const fn is_held(&self) -> bool {
        self.sent_us.is_none() && !self.gone
    }

    /// The router waits for it.
    const fn is_open(&self) -> bool {
        !self.gone && (!self.failed || self.muted)
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

/// What failover waits at most after a hedge was not allowed, and how late a request is given up.
const HELD_MS: u64 = 10;
const WATCH_MS: u64 = 250;

/// Envoy begins a retry some milliseconds after a failure: until then nobody being at work says nothing.
const BACK_OFF_US: u64 = 50_000;

/// Envoy's timer and the filter's clock need not agree to the millisecond.
const TOLERANCE_US: u64 = 5_000;

impl Races {
    /// Envoy begins an attempt.
    pub fn begin(&mut self, terms: Terms, context: u32, now_us: u64) -> Start {
        let limit_us = terms.limit_ms.saturating_mul(1000);
        let race = self.races.entry(terms.request).or_insert_with(|| Race {
            limit_us,
            attempts: Vec::with_capacity(1),
            over: false,
            won: false,
            give_up_us: terms.give_up_ms.map(|ms| now_us.saturating_add(ms.saturating_mul(1000))),
            idle_us: None,
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
        race.attempts.push(Attempt { context, sent_us, failed: false, muted: false, gone: false });
        if goes {
            return Start::Go;
        }
        self.held.push((terms.request, context));
        Start::Wait
    }

    /// Another attempt of this request is on its way.
    #[must_use]
    pub fn has_company(&self, request: u64, context: u32) -> bool {
        self.races
            .get(&request)
            .is_some_and(|race| race.attempts.iter().any(|attempt| attempt.context != context && attempt.is_open()))
    }

    /// What an attempt brought does not count.
    pub fn failed(&mut self, request: u64, context: u32) {
        if let Some(attempt) = self.races.get_mut(&request).and_then(|race| race.attempt(context)) {
            attempt.failed = true;
        }
    }

    /// As [`Races::failed`], found in the answer's body while others are under way. Nothing of it may go on: the router
    /// (1.40) drops the head of such an answer for the others' sake, but lets its body into theirs.
    pub fn mute(&mut self, request: u64, context: u32) {
        if let Some(attempt) = self.races.get_mut(&request).and_then(|race| race.attempt(context)) {
            (attempt.failed, attempt.muted) = (true, true);
            self.muted.push((request, context));
        }
    }

    /// An attempt's token came first. If others were begun: how many of them were never sent, and when it was sent itself.
    pub fn won(&mut self, request: u64, context: u32) -> Option<(usize, u64)> {
        let race = self.races.get_mut(&request)?;
        (race.won, race.over) = (true, true);
        let sent_us = race.attempt(context)?.sent_us?;
        let held = race.attempts.iter().filter(|attempt| attempt.sent_us.is_none()).count();
        (race.attempts.len() > 1).then_some((held, sent_us))
    }

    /// When an attempt was sent, in microseconds since the Unix epoch; `None`: it never was.
    #[must_use]
    pub fn sent_us(&self, request: u64, context: u32) -> Option<u64> {
        let attempts = &self.races.get(&request)?.attempts;
        attempts.iter().find(|attempt| attempt.context == context)?.sent_us
    }

    /// Of an attempt that brought nothing: whether it was sent, and whether another one's token came first.
    #[must_use]
    pub fn standing(&self, request: u64, context: u32) -> (bool, bool) {
        (self.sent_us(request, context).is_some(), self.races.get(&request).is_some_and(|race| race.won))
    }

    /// An attempt is over, however it ended.
    pub fn left(&mut self, request: u64, context: u32) {
        self.held.retain(|held| *held != (request, context));
        self.muted.retain(|muted| *muted != (request, context));
        let Some(race) = self.races.get_mut(&request) else { return };
        if let Some(attempt) = race.attempt(context) {
            attempt.gone = true;
        }
        if race.attempts.iter().all(|attempt| attempt.gone) {
            self.races.remove(&request);
        }
    }

    /// How soon [`Races::due`] wants to be asked, in milliseconds; `None`: nobody waits.
    #[must_use]
    pub fn period_ms(&self) -> Option<u64> {
        if self.held.is_empty() && self.muted.is_empty() {
            (!self.races.is_empty()).then_some(WATCH_MS)
        } else {
            Some(HELD_MS)
        }
    }

    /// Whose time has come. Of the held attempts of a request the oldest, when no other is under way or the one before it
    /// has had its time; of the muted ones one, when nobody else is left; and of each request that has waited long enough.
    pub fn due(&mut self, now_us: u64) -> Vec<Due> {
        let mut due = Vec::new();
        let races = &mut self.races;
        self.held.retain(|(request, context)| {
            let Some(race) = races.get_mut(request) else { return false };
            let goes = !race.attempts.iter().any(Attempt::is_running) || race.limit_is_over(now_us);
            if goes && let Some(attempt) = race.attempt(*context) {
                attempt.sent_us = Some(now_us);
                due.push(Due::Send(*context));
            }
            !goes
        });
        for (request, context) in &self.muted {
            let Some(race) = races.get_mut(request).filter(|race| !race.over) else { continue };
            if race.attempts.iter().any(|attempt| attempt.is_running() || attempt.is_held()) {
                race.idle_us = None;
            } else if now_us.saturating_sub(*race.idle_us.get_or_insert(now_us)) >= BACK_OFF_US {
                race.over = true;
                due.push(Due::GiveUp(*context, 502, race.running()));
            }
        }
        for race in races.values_mut().filter(|race| !race.over && race.give_up_us.is_some_and(|at_us| now_us >= at_us))
        {
            if let Some(attempt) = race.attempts.iter().find(|attempt| attempt.is_open()) {
                race.over = true;
                due.push(Due::GiveUp(attempt.context, 504, race.running()));
            }
        }
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

    fn running(&self) -> usize {
        self.attempts.iter().filter(|attempt| attempt.is_running()).count()
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
        Terms { request, limit_ms: 1000, hedge_percent, give_up_ms: None }
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
            assert!(races.is_empty() && races.period_ms().is_none());
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
        assert_eq!(races.due(1000 * MS), [Due::Send(11)]);
        assert!(races.due(2000 * MS).is_empty());

        let mut races = held();
        races.failed(1, 10);
        assert_eq!(races.due(310 * MS), [Due::Send(11)]);

        let mut races = held();
        races.left(1, 10);
        assert_eq!(races.due(310 * MS), [Due::Send(11)]);
        assert_eq!((races.sent_us(1, 11), races.standing(1, 11)), (Some(310 * MS), (true, false)));

        let mut races = held();
        assert_eq!(races.won(1, 10), Some((1, 0)), "one of two was never sent");
        assert_eq!(races.standing(1, 11), (false, true));
        races.left(1, 11);
        assert!(races.due(9000 * MS).is_empty());
    }

    #[test]
    fn of_several_held_ones_the_next_waits_for_the_limit_of_the_one_before() {
        let mut races = broke(1);
        races.begin(terms(1, Some(1)), 10, 0);
        races.begin(terms(1, Some(1)), 11, 300 * MS);
        races.begin(terms(1, Some(1)), 12, 600 * MS);
        assert_eq!(races.due(1000 * MS), [Due::Send(11)]);
        assert!(races.due(1900 * MS).is_empty());
        assert_eq!(races.due(2000 * MS), [Due::Send(12)]);
    }

    #[test]
    fn a_failure_that_is_kept_back_is_told_when_nobody_is_left_and_once() {
        let race = || {
            let mut races = Races::default();
            races.begin(terms(1, Some(5)), 10, 0);
            races.begin(terms(1, Some(5)), 11, 300 * MS);
            races.mute(1, 10);
            assert!(races.due(400 * MS).is_empty() && races.period_ms() == Some(HELD_MS));
            races
        };
        let mut races = race();
        assert!(races.has_company(1, 11), "the router still waits for it");
        races.mute(1, 11);
        assert!(races.due(500 * MS).is_empty(), "a retry may be on its way");
        assert_eq!(races.due(560 * MS), [Due::GiveUp(10, 502, 0)]);
        assert!(races.due(700 * MS).is_empty());

        let mut races = race();
        races.failed(1, 11);
        races.left(1, 11);
        races.due(500 * MS);
        assert_eq!(races.begin(terms(1, Some(5)), 12, 510 * MS), Start::Go);
        assert!(races.due(1000 * MS).is_empty(), "the retry is at work");
        races.won(1, 12);
        races.left(1, 10);
        assert!(races.due(9000 * MS).is_empty());
    }

    #[test]
    fn a_request_without_any_token_is_given_up_once() {
        let patient = |request| Terms { give_up_ms: Some(3000), ..terms(request, Some(5)) };
        let mut races = Races::default();
        (1..5).for_each(|request| _ = races.begin(patient(request), 10 * request as u32, 0));
        // The second is asked of two, the third has an answer, the fourth has left.
        races.begin(patient(2), 21, 300 * MS);
        races.won(3, 30);
        races.left(4, 40);
        assert!(races.due(2999 * MS).is_empty() && races.period_ms() == Some(WATCH_MS));
        let mut due = races.due(3000 * MS);
        due.sort_by_key(|due| if let Due::GiveUp(context, ..) = due { *context } else { 0 });
        assert_eq!(due, [Due::GiveUp(10, 504, 1), Due::GiveUp(20, 504, 2)]);
        assert!(races.due(9000 * MS).is_empty());
    }

    #[test]
    fn the_loser_is_told_from_one_that_failed_by_itself() {
        let mut races = Races::default();
        races.begin(terms(1, Some(5)), 10, 0);
        races.begin(terms(1, Some(5)), 11, 300 * MS);
        assert!(races.has_company(1, 10) && races.has_company(1, 11));
        assert_eq!(races.won(1, 11), Some((0, 300 * MS)));
        assert_eq!(races.standing(1, 10), (true, true));
        races.left(1, 10);
        assert!(!races.has_company(1, 11));

        let mut races = Races::default();
        races.begin(terms(1, Some(5)), 10, 0);
        assert_eq!(races.standing(1, 10), (true, false));
        races.begin(terms(2, None), 12, 0);
        assert_eq!(races.won(2, 12), None, "one that was alone says nothing");
    }
}
