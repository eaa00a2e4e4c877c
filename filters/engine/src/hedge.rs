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
mod tests;
