//! What attempts are allowed, how long a request may take, and what its attempts cost.

use parapet_engine::flow::{Call, End};
use parapet_engine::guard::Side;
use parapet_engine::provider::Ask;

use crate::host::{Host, Worker};
use crate::world::{JSON, Piece, SSE, answer, question, stream, whole};

const S: u64 = 1_000_000;

fn limits(host: &Host<'_>) -> [Option<String>; 3] {
    let head = host.passed_on.as_ref().unwrap();
    ["x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-hedge-on-per-try-timeout", "x-envoy-upstream-rq-timeout-ms"]
        .map(|name| head.iter().find(|(known, _)| *known == name).map(|(_, value)| rounded(value)))
}

/// Each event takes the host a little time.
fn rounded(value: &str) -> String {
    value.parse().map_or_else(|_| value.to_owned(), |ms: u64| (ms.div_ceil(10) * 10).to_string())
}

#[test]
fn the_policy_says_when_the_next_provider_is_asked_and_how_long_all_may_take() {
    let hedged = r#"{"hedge_after_ms": 300}"#;
    for (policy, body, client_ms, limits_are, hedges) in [
        ("{}", question(true), None, [Some("5000"), Some("true"), None], None),
        // 5000 and 15 for each of 512 tokens.
        ("{}", question(false), None, [Some("12680"), Some("true"), Some("120000")], None),
        (hedged, question(true), None, [Some("300"), Some("true"), None], Some(5)),
        (hedged, question(false), None, [Some("7980"), Some("true"), Some("120000")], Some(5)),
        (
            r#"{"hedge_after_ms": 300, "hedge_budget_percent": 20, "deadline_ms": 9000}"#,
            question(true),
            None,
            [Some("300"), Some("true"), Some("9000")],
            Some(20),
        ),
        // Not before the limit: no hedging.
        (r#"{"hedge_after_ms": 5000}"#, question(true), None, [Some("5000"), Some("true"), None], None),
        ("{}", question(true), Some("700"), [Some("5000"), Some("true"), Some("700")], None),
        ("{}", question(false), Some("130000"), [Some("12680"), Some("true"), Some("120000")], None),
        (r#"{"deadline_ms": 500}"#, question(false), Some("700"), [Some("12680"), Some("true"), Some("500")], None),
        (r#"{"deadline_ms": 200000}"#, question(false), None, [Some("12680"), Some("true"), Some("200000")], None),
        // Nobody else is there to be asked.
        (
            hedged,
            question(true).replacen('{', r#"{"model":"other","#, 1),
            Some("700"),
            [None, None, Some("700")],
            Some(5),
        ),
    ] {
        let mut worker = Worker::new(policy);
        let mut host = worker.open();
        let header: Vec<(&str, &str)> = client_ms.iter().map(|ms| ("x-request-timeout-ms", *ms)).collect();
        let forged = [("x-envoy-upstream-rq-per-try-timeout-ms", "1"), ("x-envoy-hedge-on-per-try-timeout", "false")];
        host.request("/v1/chat/completions", &[&header[..], &forged].concat(), body.as_bytes());
        assert_eq!(limits(&host), limits_are.map(|limit| limit.map(str::to_owned)), "{policy} {body} {client_ms:?}");
        let terms = Ask::from_bytes(&host.shared).unwrap().terms;
        assert_eq!(terms.hedge_percent, hedges, "{policy}");
        // A stream is given up without a token; a JSON answer has the router's own limit.
        assert_eq!(terms.give_up_ms.is_some(), body.contains("true"), "{policy}");
    }
}

#[test]
fn a_time_limit_that_is_none_is_refused_with_its_place() {
    for value in ["", "0", "-1", "abc", "1e3", "3600001"] {
        let mut worker = Worker::new("{}");
        let mut host = worker.open();
        host.request("/v1/chat/completions", &[("x-request-timeout-ms", value)], question(true).as_bytes());
        assert_eq!(host.refused(), (400, "invalid_request".to_owned()), "{value}");
        let body = String::from_utf8(host.reply.clone().unwrap().body).unwrap();
        assert!(body.contains(r#""param":"x-request-timeout-ms""#), "{body}");
    }
}

#[test]
fn guards_and_lookups_get_no_more_than_what_is_left() {
    let policy = r#"{"deadline_ms": 2000, "cache": {"ttl_s": 60},
        "input_guard": {"mode": "blocking", "timeout_ms": 5000}, "output_guard": {"mode": "full", "timeout_ms": 5000}}"#;
    let mut worker =
        Worker::with(policy, r#""sidecar": {"cluster": "sidecar", "authority": "h:4", "timeout_ms": 9000},"#);
    let mut host = worker.ask(&question(false));
    let limit = |host: &Host<'_>, call| host.limit_of(call).div_ceil(10) * 10;
    assert_eq!((limit(&host, Call::Verdict(Side::Input)), limit(&host, Call::CacheLookup)), (2000, 2000));
    host.answer(Call::CacheLookup, 404, b"");
    host.worker.now_us += S;
    host.verdict(Call::Verdict(Side::Input), "safe");
    assert_eq!(limits(&host)[2].as_deref(), Some("1000"));
    host.worker.now_us += S / 2;
    host.answers_with(JSON);
    host.response_body(whole("x", "hi").as_bytes(), true);
    assert_eq!(limit(&host, Call::Verdict(Side::Output)), 500);
    // The guard's own limit is over with the request's: it is not the guard's fault.
    host.worker.now_us += S / 2;
    host.answer(Call::Verdict(Side::Output), 504, b"");
    assert_eq!(host.refused(), (504, "upstream_timeout".to_owned()));
    host.end(End::default());
}

#[test]
fn a_request_whose_time_is_up_before_it_is_sent_is_not_sent() {
    for (status, verdict) in [(504, ""), (200, r#"{"choices":[{"text":"safe"}]}"#)] {
        let mut worker = Worker::new(
            r#"{"deadline_ms": 2000, "input_guard": {"mode": "blocking"}, "limits": {"tokens_per_minute": 5000}}"#,
        );
        let mut host = worker.ask(&question(true));
        host.worker.now_us += 2 * S;
        host.answer(Call::Verdict(Side::Input), status, verdict.as_bytes());
        assert_eq!(host.refused(), (504, "upstream_timeout".to_owned()), "{status}");
        assert_eq!((host.sent.is_some(), host.settled[0].1), (false, 0), "{status}");
        host.end(End::default());
    }
}

#[test]
fn what_attempts_used_and_cost_is_told_of_each_and_their_sum_of_the_request() {
    let head = |provider, raced: Option<&'static str>| {
        let mut head = vec![(":status", "200"), ("content-type", SSE), ("x-parapet-provider", provider)];
        head.extend(raced.map(|raced| ("x-parapet-attempt", raced)));
        head.push(("x-envoy-attempt-count", "2"));
        head
    };
    let at = 1_800_000_000_000_000_u64;
    let line = |outcome: &str, provider: &str| format!("{provider}\tx\t{at}\t{}\t200\t{outcome}\n", at + S);
    for (name, failed, answering, raced, costs) in [
        ("lost", line("lost", "vllm"), "openai", Some("0 1800000000300000"), [Some(9000), Some(0)]),
        ("hung, then cut", line("no_first_token", "vllm"), "openai", None, [Some(9000), Some(0)]),
        ("refused", line("status", "vllm"), "openai", None, [None, Some(0)]),
        // 9 prompt and 5 completion tokens, as it says itself; the other's price is 0.
        (
            "the first won",
            line("lost", "openai").replace(&at.to_string(), &(at + 300_000).to_string()),
            "vllm",
            Some("0 1800000000000000"),
            [Some(19_000), Some(0)],
        ),
    ] {
        let mut worker = Worker::new("{}");
        let mut host = worker.ask(&question(true));
        host.response_head(&head(answering, raced), false);
        host.response_body(&stream(&answer(&["one"]), "y"), true);
        assert!(host.response.headers.iter().all(|(name, _)| name != "x-parapet-attempt"), "{name}");
        assert_eq!(host.header("x-parapet-attempts"), Some("2"), "{name}");
        let record = host.end(End { failed_attempts: Some(failed.as_bytes()), details: None });
        let told: Vec<Option<u64>> = record.attempts.iter().map(|attempt| attempt.cost_nanousd).collect();
        assert_eq!(told, costs, "{name}");
        assert_eq!(record.cost_nanousd, costs.iter().flatten().sum::<u64>(), "{name}");
        // One that lost has written nothing, and one that refused is charged for nothing.
        let written = |cost: &Option<u64>| cost.map(|cost| if cost == 19_000 { 10_000 } else { 0 });
        let told: Vec<Option<u64>> = record.attempts.iter().map(|attempt| attempt.output_nanousd).collect();
        assert_eq!(told, costs.iter().map(written).collect::<Vec<_>>(), "{name}");
        assert_eq!(record.revision.len(), 16, "{name}");
        let answered = record.attempts.iter().find(|attempt| attempt.outcome == "ok").unwrap();
        assert_eq!((answered.usage, record.usage.unwrap().prompt), (record.usage, 9), "{name}");
    }
}

#[test]
fn a_held_attempt_that_was_never_sent_is_not_counted() {
    let mut worker = Worker::new("{}");
    let mut host = worker.ask(&question(true));
    let head = [
        (":status", "200"),
        ("content-type", SSE),
        ("x-parapet-provider", "vllm"),
        ("x-envoy-attempt-count", "2"),
        ("x-parapet-attempt", "1 1800000000000000"),
    ];
    host.response_head(&head, false);
    host.response_body(&stream(&answer(&["one"]), "x"), true);
    assert_eq!(host.header("x-parapet-attempts"), Some("1"));
    assert!(!host.flow.end_questions().failed_attempts);
    assert_eq!(host.end(End::default()).attempts.len(), 1);
}

#[test]
fn limits_of_streams_follow_what_was_seen() {
    let mut worker = Worker::new("{}");
    worker.config.first_token.floor_ms = 500;
    worker.config.first_token.ceiling_ms = 20_000;
    let ask = |took_us: u64, worker: &mut Worker| {
        let mut host = worker.ask(&question(true));
        let limit: u64 = limits(&host)[0].as_ref().unwrap().parse().unwrap();
        host.worker.now_us += took_us;
        host.answers_with(SSE);
        host.response_body(&stream(&[Piece::Role, Piece::Text("a".into())], "x"), false);
        host.response_body(&stream(&[Piece::Finish("stop"), Piece::Done], "x"), true);
        host.end(End::default());
        limit
    };
    for _ in 0..64 {
        assert_eq!(ask(100_000, &mut worker), 5000);
    }
    assert_eq!(ask(100_000, &mut worker), 500, "fast: the floor");
    for _ in 0..100 {
        ask(2 * S, &mut worker);
    }
    let slow = ask(2 * S, &mut worker);
    assert!((4000..=5000).contains(&slow), "{slow}");
}
