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
