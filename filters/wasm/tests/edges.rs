//! What happens seldom: limits, trailers, leaving clients, contention, strange bytes, refused configurations.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use parapet_testhost::{Headers, Host};
use support::*;

#[test]
fn a_body_over_the_limit_is_refused_whether_or_not_its_length_was_told() {
    let large = vec![b'x'; 100_001];
    for told in [true, false] {
        let (_host, vm) = start("{}");
        let mut stream = vm.stream("gateway");
        let mut head: Headers = HEAD.into();
        if told {
            head.add("content-length", "100001");
        }
        stream.request(head, &large);
        assert_eq!(error_code(&stream.answer()), (Some(413), "request_too_large".into()));
        assert_eq!(stream.forwarded().head, None);
        stream.finish();
        assert_eq!(record(&stream).status, 413);
    }
}

#[test]
fn a_request_that_ends_in_trailers_is_read_as_any_other() {
    let (_host, vm) = start("{}");
    let mut stream = vm.stream("gateway");
    stream.request_head(HEAD, false);
    stream.request_data(&QUESTION.as_bytes()[..9], false);
    stream.request_data(&QUESTION.as_bytes()[9..], false);
    assert_eq!(stream.forwarded().head, None);
    stream.request_trailers();
    assert!(stream.forwarded().ended && stream.forwarded().text().starts_with(r#"{"model":"x""#));
}

#[test]
fn an_answer_that_ends_in_trailers_is_held_judged_and_renamed_as_any_other() {
    let (host, vm) = start(PARALLEL);
    let mut stream = asked(&vm, QUESTION);
    stream.response_head(head_of(JSON), false);
    stream.response_data(whole("x", "hi").as_bytes(), false);
    stream.response_trailers();
    assert_eq!(stream.answer().head, None, "the verdict is not in");
    verdict(&host, "safe");
    assert_eq!((stream.answer().text(), stream.answer().ended), (whole("m", "hi"), true));
    stream.finish();

    let (host, vm) = {
        drop((host, vm));
        start(PARALLEL)
    };
    let mut stream = asked(&vm, STREAMED);
    stream.response_head(head_of(SSE), false);
    stream.response_data(events("x", &["a"]).as_bytes(), false);
    stream.response_trailers();
    assert_eq!(stream.answer().head, None);
    verdict(&host, "safe");
    assert_eq!((stream.answer().text(), stream.answer().ended), (events("m", &["a"]), true));
    stream.finish();

    let (host, vm) = {
        drop((host, vm));
        start(HOLD)
    };
    let mut stream = asked(&vm, STREAMED);
    stream.response(head_of(SSE), events("x", &["a"]).as_bytes(), false);
    stream.response_trailers();
    assert_eq!(stream.answer().head, None);
    verdict(&host, "safe");
    assert_eq!((stream.answer().text(), stream.answer().ended), (events("m", &["a"]), true));
    stream.finish();
    assert!(!record(&stream).client_aborted);
}

#[test]
fn headers_that_are_no_utf8_are_no_ones_end() {
    let (_host, vm) = start("{}");
    let mut stream = vm.stream("gateway");
    let mut head: Headers = HEAD.into();
    head.add("x-session-id", b"a\xff\0b");
    head.add("x-feature", b"\xff\xfe");
    head.add("cache-control", b"\xff");
    stream.request(head, QUESTION.as_bytes());
    let mut head: Headers = head_of(JSON).into();
    head.add("x-odd", b"\xff");
    head.add("openai-odd", b"\xff");
    let answer = stream.response(head, whole("x", "hi").as_bytes(), true);
    assert_eq!(answer.header("openai-odd"), None);
    stream.finish();
    assert_eq!(record(&stream).session.as_deref(), Some("a\u{fffd}b"));
}

#[test]
fn a_client_that_leaves_in_any_state_leaves_a_record_that_says_so() {
    let policy = r#"{"input_guard": {"mode": "parallel"}, "output_guard": {"mode": "hold", "window_tokens": [1]}, "limits": {"requests_per_minute": 9}}"#;
    for state in 0..9 {
        let (host, vm) = start(if state == 1 { BLOCKING } else { policy });
        let mut stream = if state == 0 { vm.stream("gateway") } else { asked(&vm, STREAMED) };
        match state {
            0 => stream.request_head(HEAD, false),
            1 | 2 => {}
            3 => stream.response_head(head_of(JSON), false),
            4 => drop(stream.response(head_of(JSON), whole("x", "hi").as_bytes(), true)),
            5 => stream.response_head(head_of(SSE), false),
            6 => drop(stream.response(head_of(SSE), chunk("x", "a").as_bytes(), false)),
            7 => drop(stream.response(head_of(SSE), events("x", &["a"]).as_bytes(), true)),
            _ => {
                stream.response(head_of(SSE), chunk("x", "a").as_bytes(), false);
                for callout in host.pending_callouts() {
                    say(&host, &callout, "safe");
                }
                assert!(stream.answer().text().contains("\"a\""));
            }
        }
        stream.property(&["response", "code_details"], "downstream_remote_disconnect");
        let waiting = host.pending_callouts();
        stream.client_leaves();
        for callout in waiting {
            say(&host, &callout, "unsafe\nS1");
        }
        let record = record(&stream);
        assert!(record.client_aborted, "{state}");
        assert_eq!(record.status, if state == 8 { 200 } else { 0 }, "{state}");
    }
}

#[test]
fn an_answer_cut_off_upstream_is_recorded_as_truncated() {
    let (_host, vm) = start("{}");
    let mut stream = asked(&vm, STREAMED);
    stream.response(head_of(SSE), chunk("x", "a").as_bytes(), false);
    stream.property(&["response", "code_details"], "upstream_reset_after_response_started{connection_termination}");
    stream.upstream_cut();
    let record = record(&stream);
    assert!(record.truncated && !record.client_aborted);
    assert_eq!(record.answers[0].content, "a");
}

#[test]
fn a_reservation_that_another_worker_overtook_is_made_anew() {
    let (host, vm) = start(TWO_A_MINUTE);
    let full = host.shared_data("quota/t/u").expect("prepared at load");
    let mut stream = asked(&vm, QUESTION);
    let one_taken = host.shared_data("quota/t/u").unwrap();
    assert_ne!(one_taken, full);
    stream.response(head_of(JSON), whole("x", "hi").as_bytes(), true);
    assert_eq!(stream.answer().header("x-ratelimit-remaining-requests"), Some("1"));
    // Between this request's read and its write another worker takes the first of the two.
    host.set_shared_data("quota/t/u", &full);
    host.contend_shared_data("quota/t/u", &one_taken);
    let mut second = asked(&vm, QUESTION);
    second.response(head_of(JSON), whole("x", "hi").as_bytes(), true);
    assert_eq!(second.answer().header("x-ratelimit-remaining-requests"), Some("0"));
    let refused = asked(&vm, QUESTION).answer();
    assert_eq!(error_code(&refused), (Some(429), "rate_limit_exceeded".into()));
    assert_eq!(refused.header("retry-after"), Some("30"));
}

#[test]
fn the_settlement_of_a_request_survives_contention() {
    let (host, vm) = start(r#"{"limits": {"tokens_per_minute": 1000}}"#);
    let mut stream = asked(&vm, QUESTION);
    let reserved = host.shared_data("quota/t/u").unwrap();
    stream.response(head_of(JSON), whole("x", "hi").as_bytes(), true);
    host.contend_shared_data("quota/t/u", &reserved);
    stream.finish();
    assert_eq!(record(&stream).quota.unwrap().settled_tokens, 14);
    let mut next = asked(&vm, QUESTION);
    next.response(head_of(JSON), whole("x", "hi").as_bytes(), true);
    let remaining: u64 = next.answer().header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
    assert!(remaining < 1000 - 14 && remaining > 700, "{remaining}");
}

#[test]
fn a_configuration_is_taken_as_json_and_as_an_encoded_struct() {
    let json = configuration(r#"{"input_guard": {"mode": "parallel", "threshold": 0.25}}"#);
    let encoded = encode(&serde_json::from_str(&json).unwrap());
    let host = Host::new().configuration("gateway", &encoded).cluster("guard");
    let vm = host.start_vm().expect("the configuration is accepted");
    assert!(asked(&vm, QUESTION).forwarded().ended);
    assert_eq!(host.pending_callouts().len(), 1);
}

#[test]
fn a_refused_configuration_names_the_key_and_leaves_the_running_one() {
    let (host, vm) = start("{}");
    host.configure("gateway", configuration(r#"{"input_guard": {"mode": "parallell"}}"#));
    let refused = host.start_vm().unwrap_err();
    assert_eq!((&*refused.root_id, refused.by), ("gateway", "on_configure"));
    let logs: Vec<String> = host.logs().into_iter().map(|(_, message)| message).collect();
    assert!(logs.iter().any(|line| line.contains("policies.p.input_guard.mode")), "{logs:?}");
    assert!(asked(&vm, QUESTION).forwarded().ended, "the running one serves");
}

/// A `google.protobuf.Struct` in its wire form, as Envoy hands an inline one over.
fn encode(value: &serde_json::Value) -> Vec<u8> {
    let entry = |(key, value): (&String, &serde_json::Value)| {
        message(1, &[message(1, key.as_bytes()), message(2, &encoded(value))].concat())
    };
    value.as_object().unwrap().iter().flat_map(entry).collect()
}

fn encoded(value: &serde_json::Value) -> Vec<u8> {
    match value {
        serde_json::Value::Null => vec![0x08, 0],
        serde_json::Value::Number(number) => [&[0x11][..], &number.as_f64().unwrap().to_le_bytes()].concat(),
        serde_json::Value::String(text) => message(3, text.as_bytes()),
        serde_json::Value::Bool(flag) => vec![0x20, u8::from(*flag)],
        serde_json::Value::Object(_) => message(5, &encode(value)),
        serde_json::Value::Array(values) => {
            message(6, &values.iter().flat_map(|value| message(1, &encoded(value))).collect::<Vec<u8>>())
        }
    }
}

fn message(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = payload.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(payload);
    out
}
