//! The newest requests and the newest blocks, without what was said. Bounded.

use std::collections::VecDeque;

use parapet_engine::record::{GuardRecord, Record};
use uuid::Uuid;

use crate::metrics::outcome::Outcome;
use crate::metrics::slo::{first_token_us, is_chat};

/// Kept of each kind.
pub(super) const KEPT: usize = 50;
/// Of a name that a client may have chosen.
const LONGEST: usize = 80;

#[derive(Debug, Clone)]
pub(super) struct Finished {
    pub id: Uuid,
    pub end_us: u64,
    pub tenant: String,
    pub user: String,
    pub model: String,
    pub stream: bool,
    pub status: u16,
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub first_token_ms: Option<f64>,
    pub duration_ms: f64,
    /// Who answered; none when nobody was asked.
    pub provider: Option<String>,
    pub attempts: usize,
    pub cached: bool,
    /// Prompt and answer.
    pub tokens: Option<(u64, u64)>,
    pub cost_nanousd: u64,
}

/// A text that a guard called unsafe, or could not judge.
#[derive(Debug, Clone)]
pub(super) struct Judged {
    pub id: Uuid,
    pub end_us: u64,
    pub tenant: String,
    pub user: String,
    pub policy: String,
    pub side: &'static str,
    pub verdict: String,
    /// `block` or `flag`.
    pub action: String,
    pub categories: Vec<String>,
    pub score: Option<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Recent {
    finished: VecDeque<Finished>,
    judged: VecDeque<Judged>,
}

impl Recent {
    pub(super) fn add(&mut self, id: Uuid, record: &Record) {
        // A request without a known key is no run: the spool does not keep it, and there is nobody to name.
        if !is_chat(record) || record.tenant.is_empty() {
            return;
        }
        for (side, guard) in [("input", &record.input_guard), ("output", &record.output_guard)] {
            if let Some(guard) = guard.as_ref().filter(|guard| matches!(guard.action.as_str(), "block" | "flag")) {
                push(&mut self.judged, judged(id, record, side, guard));
            }
        }
        push(&mut self.finished, finished(id, record));
    }

    /// The newest first.
    pub(super) fn finished(&self, count: usize) -> Vec<Finished> {
        self.finished.iter().rev().take(count).cloned().collect()
    }

    /// The newest first.
    pub(super) fn judged(&self, count: usize) -> Vec<Judged> {
        self.judged.iter().rev().take(count).cloned().collect()
    }
}

fn push<T>(kept: &mut VecDeque<T>, item: T) {
    if kept.len() >= KEPT {
        kept.pop_front();
    }
    kept.push_back(item);
}

fn finished(id: Uuid, record: &Record) -> Finished {
    let ms = |us: u64| us.saturating_sub(record.start_us) as f64 / 1e3;
    Finished {
        id,
        end_us: record.end_us,
        tenant: short(&record.tenant),
        user: short(&record.user),
        model: short(&record.model),
        stream: record.stream,
        status: record.status,
        outcome: Outcome::of(record),
        reason: record.reason.as_deref().map(short),
        first_token_ms: first_token_us(record).filter(|_| record.stream).map(ms),
        duration_ms: ms(record.end_us),
        provider: record.attempts.last().map(|attempt| short(&attempt.provider)),
        attempts: record.attempts.len(),
        cached: record.cache.as_ref().is_some_and(|cache| cache.outcome == "hit"),
        tokens: record.usage.map(|usage| (usage.prompt, usage.completion)),
        cost_nanousd: if record.attempts.is_empty() { 0 } else { record.cost_nanousd },
    }
}

fn judged(id: Uuid, record: &Record, side: &'static str, guard: &GuardRecord) -> Judged {
    Judged {
        id,
        end_us: record.end_us,
        tenant: short(&record.tenant),
        user: short(&record.user),
        policy: short(&record.policy),
        side,
        verdict: short(&guard.verdict),
        action: short(&guard.action),
        categories: guard.categories.iter().take(20).map(|category| short(category)).collect(),
        score: guard.score,
    }
}

fn short(name: &str) -> String {
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_are_kept_and_names_are_cut() {
        let mut recent = Recent::default();
        let guard = |action: &str| Some(GuardRecord { action: action.to_owned(), ..GuardRecord::default() });
        for number in 0..200_u128 {
            let record = Record {
                api: "chat".to_owned(),
                tenant: "acme".to_owned(),
                model: "é".repeat(500),
                input_guard: guard(if number % 2 == 0 { "block" } else { "pass" }),
                output_guard: guard("pass"),
                ..Record::default()
            };
            recent.add(Uuid::from_u128(number), &record);
        }
        recent.add(Uuid::nil(), &Record { api: "models".to_owned(), tenant: "acme".to_owned(), ..Record::default() });
        recent.add(Uuid::nil(), &Record { api: "chat".to_owned(), ..Record::default() });
        let finished = recent.finished(1000);
        assert_eq!((finished.len(), finished[0].id), (KEPT, Uuid::from_u128(199)));
        assert_eq!(finished[0].model.chars().count(), LONGEST + 1);
        let judged = recent.judged(1000);
        assert_eq!((judged.len(), judged[0].id, judged[0].side), (KEPT, Uuid::from_u128(198), "input"));
    }
}
