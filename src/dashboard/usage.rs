//! What each user used, minute by minute, in the sidecar's own count. Bounded.

use std::collections::HashMap;

use parapet_engine::record::Record;

use super::history::MINUTES;
use crate::metrics::outcome::Outcome;
use crate::metrics::slo::is_chat;

/// Users counted by name. Beyond it the one that was idle longest makes room, if it was idle for an hour; else the new
/// one counts as [`OTHERS`].
const MOST: usize = 500;
/// A name that no configuration can give: tenants and users are not empty.
pub(super) const OTHERS: (&str, &str) = ("", "");

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub requests: u64,
    /// For a limit.
    pub refused: u64,
    pub tokens: u64,
    pub cost_nanousd: u64,
}

impl Used {
    const fn add(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.refused = self.refused.saturating_add(other.refused);
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.cost_nanousd = self.cost_nanousd.saturating_add(other.cost_nanousd);
    }
}

#[derive(Debug)]
struct User {
    policy: String,
    newest: u64,
    minutes: Vec<(u64, Used)>,
}

/// One user's row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub tenant: String,
    pub user: String,
    pub policy: String,
    pub hour: Used,
    /// The last sixty seconds: this minute, and as much of the one before as is not sixty seconds ago yet.
    pub requests_last_minute: f64,
    pub tokens_last_minute: f64,
}

#[derive(Debug, Default)]
pub(super) struct Usage {
    users: HashMap<(String, String), User>,
    /// Until this minute nobody can have been idle for an hour: it was looked for, and who was there then only stays longer.
    full_until: u64,
}

impl Usage {
    /// Counts a request that ended in `minute`.
    pub(super) fn add(&mut self, minute: u64, record: &Record) {
        if record.tenant.is_empty() || !is_chat(record) {
            return;
        }
        let limited = matches!(record.reason.as_deref(), Some("rate_limit_exceeded" | "budget_exceeded"));
        let refused = Outcome::of(record) == Outcome::Refused;
        let settled = record.quota.as_ref().map(|quota| quota.settled_tokens);
        let paid = record.usage.filter(|_| !record.attempts.is_empty()).map_or(0, |usage| usage.total());
        let used = Used {
            requests: u64::from(!refused),
            refused: u64::from(limited),
            tokens: settled.unwrap_or(paid),
            cost_nanousd: if record.attempts.is_empty() { 0 } else { record.cost_nanousd },
        };
        let user = self.user(minute, (record.tenant.clone(), record.user.clone()));
        user.policy.clone_from(&record.policy);
        user.newest = user.newest.max(minute);
        let place = usize::try_from(minute % MINUTES as u64).unwrap_or_default();
        if let Some((slot, sum)) = user.minutes.get_mut(place)
            && minute >= *slot
        {
            if minute > *slot {
                (*slot, *sum) = (minute, Used::default());
            }
            sum.add(used);
        }
    }

    fn user(&mut self, minute: u64, key: (String, String)) -> &mut User {
        let mut key = key;
        if self.users.len() >= MOST && !self.users.contains_key(&key) {
            let idle = if minute <= self.full_until { None } else { self.idle(minute) };
            match idle {
                Some(idle) => {
                    self.users.remove(&idle);
                }
                None => key = (OTHERS.0.to_owned(), OTHERS.1.to_owned()),
            }
        }
        self.users.entry(key).or_insert_with(|| User {
            policy: String::new(),
            newest: 0,
            minutes: vec![(0, Used::default()); MINUTES],
        })
    }

    /// Who was idle longest, if for an hour.
    fn idle(&mut self, minute: u64) -> Option<(String, String)> {
        let (key, user) = self.users.iter().min_by_key(|(_, user)| user.newest)?;
        self.full_until = user.newest + MINUTES as u64;
        (self.full_until < minute).then(|| key.clone())
    }

    /// Everybody who was there in the hour before `now_s` (seconds since the Unix epoch).
    pub(super) fn rows(&self, now_s: u64) -> Vec<Row> {
        let minute = now_s / 60;
        let earlier = 1.0 - (now_s % 60) as f64 / 60.0;
        let mut rows = Vec::new();
        for ((tenant, name), user) in &self.users {
            let at = |wanted: u64| {
                let found = user.minutes.iter().find(|(slot, _)| *slot == wanted);
                found.map(|(_, used)| *used).unwrap_or_default()
            };
            let mut hour = Used::default();
            let of_hour = |slot: u64| slot <= minute && slot + MINUTES as u64 > minute;
            user.minutes.iter().filter(|(slot, _)| of_hour(*slot)).for_each(|(_, used)| hour.add(*used));
            let (this, last) = (at(minute), at(minute.saturating_sub(1)));
            let sliding = |this: u64, last: u64| this as f64 + last as f64 * earlier;
            if hour != Used::default() {
                rows.push(Row {
                    tenant: tenant.clone(),
                    user: name.clone(),
                    policy: user.policy.clone(),
                    hour,
                    requests_last_minute: sliding(this.requests, last.requests),
                    tokens_last_minute: sliding(this.tokens, last.tokens),
                });
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use parapet_engine::record::QuotaRecord;

    use super::*;

    fn record(user: &str, tokens: u64) -> Record {
        Record {
            api: "chat".to_owned(),
            status: 200,
            tenant: "acme".to_owned(),
            user: user.to_owned(),
            policy: "standard".to_owned(),
            quota: Some(QuotaRecord { reserved_tokens: 500, settled_tokens: tokens }),
            ..Record::default()
        }
    }

    #[test]
    fn the_last_minute_slides_and_an_hour_is_kept() {
        let mut usage = Usage::default();
        usage.add(10, &record("alice", 100));
        usage.add(11, &record("alice", 10));
        usage.add(11, &Record { status: 429, reason: Some("rate_limit_exceeded".to_owned()), ..record("alice", 0) });
        usage.add(11, &Record { api: "models".to_owned(), ..record("alice", 9) });
        let row = |now_s| usage.rows(now_s).pop().unwrap();
        let now = row(11 * 60 + 15);
        assert_eq!((now.requests_last_minute, now.tokens_last_minute), (1.75, 85.0));
        assert_eq!((now.hour.requests, now.hour.tokens, now.hour.refused), (2, 110, 1));
        assert_eq!(row(70 * 60).hour.tokens, 10);
        assert_eq!(usage.rows(71 * 60), []);
    }

    #[test]
    fn too_many_users_are_others_until_one_was_idle_for_an_hour() {
        let mut usage = Usage::default();
        for number in 0..MOST + 7 {
            usage.add(10, &record(&number.to_string(), 1));
        }
        let others = |usage: &Usage| usage.rows(11 * 60).into_iter().find(|row| row.tenant == OTHERS.0).unwrap();
        assert_eq!((usage.users.len(), others(&usage).hour.requests), (MOST + 1, 7));
        usage.add(90, &record("late", 1));
        assert!(usage.rows(90 * 60).iter().any(|row| row.user == "late"));
        assert!(usage.users.len() <= MOST + 1);
    }
}
