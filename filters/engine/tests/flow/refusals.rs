//! Requests that go no further.

use parapet_engine::flow::{Call, End};
use parapet_engine::guard::Side;
use parapet_engine::quota::{Decision, Window};

use crate::host::Worker;
use crate::world::question;

const NO_POLICY: &str = "{}";

#[test]
fn each_refusal_has_its_status_code_and_record() {
    let key = ("authorization", "Bearer sk-demo-alice");
    let post = (":method", "POST");
    let completions = (":path", "/v1/chat/completions");
    let large = "x".repeat(100_001);
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, u16, &'a str);
    let cases: &[Case<'_>] = &[
        (&[post, (":path", "/v2/nothing"), key], "{}", 404, "not_found"),
        (&[(":method", "GET"), completions, key], "", 405, "method_not_allowed"),
        (&[post, completions], "{}", 401, "invalid_api_key"),
        (&[post, completions, ("authorization", "Bearer sk-unknown")], "{}", 401, "invalid_api_key"),
        (&[post, completions, key, ("content-length", "100001")], "{}", 413, "request_too_large"),
        (&[post, completions, key], &large, 413, "request_too_large"),
        (&[post, completions, key], "", 400, "invalid_json"),
        (&[post, completions, key], "{\"messages\":", 400, "invalid_json"),
        (&[post, completions, key], "{}", 400, "invalid_request"),
        (&[post, (":path", "/chat"), key], "{}", 400, "invalid_request"),
        (
            &[post, completions, key],
            r#"{"model":"gpt","messages":[{"role":"user","content":"x"}]}"#,
            404,
            "model_not_found",
        ),
        (&[(":method", "GET"), (":path", "/v1/models/gpt"), key], "", 404, "model_not_found"),
    ];
    for (head, body, status, code) in cases {
        let mut worker = Worker::new(NO_POLICY);
        let mut host = worker.open();
        host.request_as(head, body.as_bytes());
        assert_eq!(host.refused(), (*status, (*code).to_owned()), "{head:?} {body:.80}");
        assert!(!host.flow.request_waits() && host.sent.is_none());
        assert_eq!(host.reply_header("content-type"), Some("application/json"));
        let id = host.reply_header("x-parapet-trace-id").unwrap().to_owned();
        let record = host.end(End::default());
        assert_eq!((record.status, record.reason.as_deref(), record.id), (*status, Some(*code), id));
        assert!(!record.client_aborted);
    }
}

#[test]
fn a_model_outside_the_policy_is_refused() {
    let mut worker = Worker::new(r#"{"models": ["other"]}"#);
    assert_eq!(worker.ask(&question(false)).refused(), (403, "model_not_allowed".to_owned()));
}

#[test]
fn a_body_beyond_the_limit_is_refused_before_it_is_whole() {
    let mut worker = Worker::new(NO_POLICY);
    let mut host = worker.open();
    let head = [(":method", "POST"), (":path", "/chat"), ("x-api-key", "sk-demo-alice")];
    let head = head.map(|(name, value)| (name, value.as_bytes()));
    host.step(parapet_engine::flow::Event::RequestHead {
        head: parapet_engine::flow::Head(&head),
        ends: false,
        entropy: [0; 10],
    });
    assert!(host.flow.request_waits() && host.flow.wants_body());
    host.step(parapet_engine::flow::Event::RequestTooLarge);
    assert_eq!(host.refused().0, 413);
}

#[test]
fn models_and_health_are_answered_at_once() {
    let mut worker = Worker::new(r#"{"models": ["other"]}"#);
    let mut host = worker.open();
    host.request_as(&[(":method", "GET"), (":path", "/v1/models"), ("x-api-key", "sk-demo-alice")], b"");
    let body = String::from_utf8(host.reply.clone().unwrap().body).unwrap();
    assert!(body.contains(r#""id":"other""#) && !body.contains(r#""id":"m""#), "{body}");
    assert_eq!(host.end(End::default()).api, "models");
    let mut host = worker.open();
    host.request_as(&[(":method", "GET"), (":path", "/healthz")], b"");
    assert_eq!(host.reply.as_ref().unwrap().status, 200);
}

#[test]
fn feedback_goes_on_with_the_caller_and_nothing_else_of_the_head() {
    let mut worker = Worker::new(NO_POLICY);
    let mut host = worker.open();
    host.request("/feedback", &[("x-parapet-tenant", "forged"), ("cookie", "c"), ("content-length", "2")], b"{}");
    let head = host.passed_on.clone().unwrap();
    assert!(head.contains(&("x-parapet-tenant", "t".to_owned())) && head.contains(&("content-length", "2".to_owned())));
    assert!(!head.iter().any(|(name, _)| *name == "cookie" || *name == "authorization"));
    assert!(!host.flow.request_waits());
    host.response_head(&[(":status", "202")], false);
    host.response_body(b"{}", true);
    assert_eq!(host.text(), "{}", "the sidecar's answer is not touched");
    let record = host.end(End::default());
    assert_eq!((&*record.api, record.status), ("feedback", 202));
}

#[test]
fn a_refused_reservation_tells_when_and_shows_the_windows() {
    let mut worker = Worker::new(r#"{"limits": {"requests_per_minute": 5}, "input_guard": {"mode": "parallel"}}"#);
    worker.decision = Some(Decision {
        granted: false,
        retry_after_s: 12,
        requests: Some(Window { limit: 5, remaining: 0, reset_us: 61_000_000 }),
        tokens: None,
    });
    let mut host = worker.ask(&question(false));
    assert_eq!(host.refused(), (429, "rate_limit_exceeded".to_owned()));
    assert_eq!(host.reply_header("retry-after"), Some("12"));
    assert_eq!(host.reply_header("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(host.reply_header("x-ratelimit-reset-requests"), Some("1m1s"));
    assert_eq!(host.calls, 0, "a refused request asks no guard");
    assert!(host.end(End::default()).quota.is_none());
}

#[test]
fn a_client_that_leaves_while_its_body_comes_is_recorded_so() {
    let mut worker = Worker::new(NO_POLICY);
    let mut host = worker.open();
    let head = [(":method", "POST"), (":path", "/chat"), ("x-api-key", "sk-demo-alice")];
    let head = head.map(|(name, value)| (name, value.as_bytes()));
    host.step(parapet_engine::flow::Event::RequestHead {
        head: parapet_engine::flow::Head(&head),
        ends: false,
        entropy: [0; 10],
    });
    assert!(host.end(End::default()).client_aborted);
}

#[test]
fn envoys_own_answer_to_an_unfinished_request_is_not_the_clients_leaving() {
    let mut worker = Worker::new(NO_POLICY);
    let mut host = worker.open();
    let head = [(":method", "POST"), (":path", "/chat"), ("x-api-key", "sk-demo-alice")];
    let head = head.map(|(name, value)| (name, value.as_bytes()));
    host.step(parapet_engine::flow::Event::RequestHead {
        head: parapet_engine::flow::Head(&head),
        ends: false,
        entropy: [0; 10],
    });
    host.response_head(&[(":status", "408")], true);
    let record = host.end(End::default());
    assert_eq!((record.status, record.client_aborted), (408, false));
}

#[test]
fn a_remembered_block_settles_the_reservation_that_it_was_given() {
    let mut worker = Worker::new(r#"{"limits": {"requests_per_minute": 5}, "input_guard": {"mode": "parallel"}}"#);
    let mut host = worker.ask(&question(false));
    host.verdict(Call::Verdict(Side::Input), "unsafe\nS1");
    assert_eq!(host.refused(), (403, "content_blocked".to_owned()));
    host.end(End::default());
    let mut host = worker.ask(&question(false));
    assert_eq!((host.calls, host.refused().0), (0, 403));
    let record = host.end(End::default());
    assert_eq!(record.quota.unwrap().settled_tokens, 0);
}

#[test]
fn an_answer_that_is_not_cached_anywhere_settles_its_reservation() {
    let mut worker = Worker::new(r#"{"limits": {"tokens_per_minute": 500}, "cache": {"ttl_s": 60}}"#);
    let mut host = worker.open();
    host.request("/v1/chat/completions", &[("cache-control", "only-if-cached")], question(false).as_bytes());
    host.answer(Call::CacheLookup, 404, b"");
    assert_eq!(host.refused(), (504, "not_cached".to_owned()));
    assert_eq!(host.reply_header("x-should-retry"), Some("false"));
    host.end(End::default());
}
