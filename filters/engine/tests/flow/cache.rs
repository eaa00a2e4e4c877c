//! Answers from the cache, and what may go into it.

use parapet_engine::cache::Entry;
use parapet_engine::flow::{Call, End};
use parapet_engine::guard::Side;
use parapet_engine::record::{Answered, Usage};

use crate::host::Worker;
use crate::world::{JSON, SSE, answer, question, stream, whole};

const CACHED: &str = r#"{"cache": {"ttl_s": 60}}"#;
const GUARDED: &str =
    r#"{"cache": {"ttl_s": 60}, "input_guard": {"mode": "parallel"}, "output_guard": {"mode": "hold"}}"#;

/// One request, answered whole and well.
fn fill(worker: &mut Worker) {
    let mut host = worker.ask(&question(false));
    host.answer(Call::CacheLookup, 404, b"");
    host.answers_with(JSON);
    host.response_body(whole("x", "hi").as_bytes(), true);
    assert_eq!(host.text(), whole("m", "hi"));
    let record = host.end(End::default());
    assert_eq!(record.cache.unwrap().store_s, Some(60));
}

fn entry(created_s: u64) -> Vec<u8> {
    let answers = vec![Answered { content: "hi".into(), finish_reason: Some("stop".into()), ..Answered::default() }];
    let usage = Usage { prompt: 9, completion: 5, ..Usage::default() };
    let entry = Entry { created_s, expires_s: created_s + 60, provider: "vllm".into(), answers, usage };
    serde_json::to_vec(&entry).unwrap()
}

#[test]
fn an_answer_in_memory_is_given_at_once_in_every_form() {
    let mut worker = Worker::new(CACHED);
    fill(&mut worker);
    for (streams, content_type, end) in [(false, JSON, "}"), (true, "text/event-stream", "data: [DONE]\n\n")] {
        let mut host = worker.ask(&question(streams));
        let reply = host.reply.clone().expect("a hit");
        let body = String::from_utf8(reply.body).unwrap();
        assert!(reply.status == 200 && body.contains("hi") && body.ends_with(end), "{body}");
        assert_eq!(host.reply_header("content-type"), Some(content_type));
        assert!(host.reply_header("cache-status").unwrap().starts_with("parapet; hit; ttl="));
        assert_eq!((host.calls, host.sent.is_some()), (0, false));
        let record = host.end(End::default());
        assert_eq!((record.cache.unwrap().outcome.as_str(), record.status, record.attempts.len()), ("hit", 200, 0));
    }
}

#[test]
fn an_answer_of_the_sidecar_is_given_and_remembered() {
    let mut worker = Worker::new(CACHED);
    let now_s = worker.now_us / 1_000_000;
    let mut host = worker.ask(&question(false));
    assert!(host.flow.request_waits(), "the sidecar is asked first");
    host.answer(Call::CacheLookup, 200, &entry(now_s - 5));
    assert_eq!((host.reply_header("age"), host.sent.is_some()), (Some("5"), false));
    host.end(End::default());
    assert_eq!(worker.ask(&question(false)).calls, 0);
}

#[test]
fn a_sidecar_that_has_nothing_usable_lets_the_request_go_on() {
    let stale = entry(1);
    let answers: [(u16, &[u8]); 6] =
        [(404, b""), (0, b""), (504, b""), (200, b"<html>"), (200, &stale), (200, br#"{"expires_s":9999999999}"#)];
    for (status, body) in answers {
        let mut worker = Worker::new(CACHED);
        let mut host = worker.ask(&question(false));
        host.answer(Call::CacheLookup, status, body);
        assert!(host.sent.is_some() && !host.flow.request_waits() && host.reply.is_none(), "{status}");
    }
}

#[test]
fn cache_control_decides_what_is_read_and_what_is_kept() {
    for (directive, status, asks, keeps) in [
        ("no-cache", "parapet; fwd=request", false, true),
        ("no-store", "parapet; fwd=request", false, false),
        ("max-age=0", "parapet; fwd=miss", true, true),
    ] {
        let mut worker = Worker::new(CACHED);
        fill(&mut worker);
        worker.now_us += 2_000_000;
        let mut host = worker.open();
        host.request("/v1/chat/completions", &[("cache-control", directive)], question(false).as_bytes());
        assert_eq!(host.waits_for(Call::CacheLookup), asks, "{directive}");
        if asks {
            host.answer(Call::CacheLookup, 404, b"");
        }
        host.answers_with(JSON);
        host.response_body(whole("x", "newer").as_bytes(), true);
        assert_eq!(host.header("cache-status"), Some(status));
        assert_eq!(host.end(End::default()).cache.unwrap().store_s.is_some(), keeps, "{directive}");
        let reply = worker.ask(&question(false)).reply.clone().unwrap();
        assert_eq!(String::from_utf8(reply.body).unwrap().contains("newer"), keeps, "{directive}");
    }
}

#[test]
fn only_if_cached_is_refused_where_nothing_could_be_cached() {
    for (mut worker, body) in [
        (Worker::new("{}"), question(false)),
        (Worker::with(CACHED, ""), question(false)),
        (Worker::new(CACHED), r#"{"n":2,"messages":[{"role":"user","content":"x"}]}"#.to_owned()),
    ] {
        let mut host = worker.open();
        host.request("/v1/chat/completions", &[("cache-control", "only-if-cached")], body.as_bytes());
        assert_eq!((host.refused().1.as_str(), host.calls), ("not_cached", 0));
    }
}

#[test]
fn what_was_cut_blocked_flagged_or_limited_is_not_kept() {
    type Play = fn(&mut crate::host::Host<'_>);
    let plays: [(&str, Play); 5] = [
        ("the client asked for a length", |host| {
            let body = whole("x", "hi").replace("\"stop\"", "\"length\"");
            host.verdict(Call::Verdict(Side::Input), "safe");
            host.answers_with(JSON);
            host.response_body(body.as_bytes(), true);
            host.verdict(Call::Verdict(Side::Output), "safe");
        }),
        ("blocked", |host| {
            host.verdict(Call::Verdict(Side::Input), "safe");
            host.answers_with(JSON);
            host.response_body(whole("x", "hi").as_bytes(), true);
            host.verdict(Call::Verdict(Side::Output), "unsafe\nS1");
        }),
        ("cut", |host| {
            host.verdict(Call::Verdict(Side::Input), "safe");
            host.answers_with(SSE);
            host.response_body(&stream(&answer(&["a", "b"])[..3], "x"), false);
        }),
        ("the input verdict never came", |host| {
            host.answers_with(JSON);
            host.response_body(whole("x", "hi").as_bytes(), true);
            host.verdict(Call::Verdict(Side::Output), "safe");
        }),
        ("the last output verdict never came", |host| {
            host.verdict(Call::Verdict(Side::Input), "safe");
            host.answers_with(SSE);
            host.response_body(&stream(&answer(&["a", "b"]), "x"), true);
        }),
    ];
    for (what, play) in plays {
        let mut worker = Worker::new(GUARDED);
        let mut host = worker.ask(&question(false));
        host.answer(Call::CacheLookup, 404, b"");
        play(&mut host);
        let record = host.end(End::default());
        assert_eq!(record.cache.unwrap().store_s, None, "{what}");
        assert!(worker.ask(&question(false)).reply.is_none(), "{what}");
    }
}

#[test]
fn the_input_verdict_of_a_stream_that_nobody_awaited_is_no_pass() {
    let mut worker = Worker::new(r#"{"cache": {"ttl_s": 60}, "input_guard": {"mode": "parallel"}}"#);
    let mut host = worker.ask(&question(true));
    host.answer(Call::CacheLookup, 404, b"");
    host.answers_with(SSE);
    host.response_body(&stream(&answer(&["a"]), "x"), true);
    assert!(host.response.client.is_empty());
    let record = host.end(End::default());
    assert_eq!(record.cache.unwrap().store_s, None);
    assert!(worker.ask(&question(true)).reply.is_none());
}
