use parapet_engine::record::{Attempt, CacheRecord, Usage};

use super::*;
use crate::metrics::slo;

const NOW_S: u64 = 1_795_509_895;

fn record(end_us: u64) -> Record {
    Record {
        api: "chat".to_owned(),
        status: 200,
        tenant: "acme".to_owned(),
        user: "alice".to_owned(),
        start_us: end_us - 1_000_000,
        end_us,
        cost_nanousd: 500,
        usage: Some(Usage { prompt: 10, completion: 5, ..Usage::default() }),
        cache: Some(CacheRecord { outcome: "miss".to_owned(), ..CacheRecord::default() }),
        attempts: vec![Attempt::default()],
        ..Record::default()
    }
}

#[test]
fn a_request_is_counted_in_the_minute_of_its_end() {
    let board = Board::default();
    let end_us = (NOW_S - 300) * 1_000_000;
    board.add_at(Uuid::nil(), &record(end_us), NOW_S);
    // Of a clock that runs ahead: now at the latest.
    board.add_at(Uuid::nil(), &record(end_us + 3_600_000_000), NOW_S);
    board.add_at(Uuid::nil(), &Record { api: "models".to_owned(), ..record(end_us) }, NOW_S);
    let seen = board.lock();
    let hour = seen.history.hour(NOW_S / 60);
    let busy: Vec<u64> = hour.iter().filter(|(_, counts)| counts.requests > 0).map(|(minute, _)| *minute).collect();
    assert_eq!(busy, [NOW_S / 60 - 5, NOW_S / 60]);
    let sum = history::together(&hour);
    assert_eq!((sum.requests, sum.tokens, sum.cost_nanousd), (2, 30, 1000));
    assert_eq!((sum.cache_hits().count, sum.level(&slo::DURATION).count), (2, 2));
    assert_eq!((seen.recent.finished(9).len(), seen.usage.rows(NOW_S).len()), (2, 1));
}
