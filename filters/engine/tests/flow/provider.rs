//! What providers do wrong, and what is recorded of them.

use parapet_engine::flow::{Call, End};
use parapet_engine::guard::Side;

use crate::host::Worker;
use crate::world::{JSON, Piece, SSE, answer, question, stream, whole};

const LIMITED: &str = r#"{"limits": {"tokens_per_minute": 5000}}"#;

#[test]
fn the_provider_gets_the_first_links_model_and_nothing_of_the_clients_head() {
    let mut worker = Worker::new("{}");
    let mut host = worker.open();
    host.request("/v1/chat/completions", &[("cookie", "c"), ("x-request-id", "r1")], question(true).as_bytes());
    let body = host.sent.clone().unwrap();
    assert!(body.starts_with(br#"{"model":"x","messages""#));
    let head = host.passed_on.clone().unwrap();
    assert!(head.contains(&("content-length", body.len().to_string())));
    assert!(head.contains(&("x-parapet-cluster", "chain".to_owned())) && head.contains(&("x-request-id", "r1".into())));
    assert!(!head.iter().any(|(name, _)| matches!(*name, "cookie" | "authorization")));
}

#[test]
fn every_failure_of_the_last_provider_has_its_answer() {
    for (status, body, shown, code) in [
        ("500", "boom", 502, "upstream_error"),
        ("503", "", 502, "upstream_error"),
        ("401", "key sk-secret", 502, "upstream_error"),
        ("504", "", 504, "upstream_timeout"),
        ("404", "no x", 404, "model_not_found"),
        ("413", "", 413, "request_too_large"),
        ("400", r#"{"error":{"message":"bad\ntool"}}"#, 400, "invalid_request"),
        ("200", "<html>", 502, "upstream_error"),
        ("200", r#"{"error":{"message":"died","code":500}}"#, 502, "upstream_error"),
        ("200", "", 502, "upstream_error"),
    ] {
        let mut worker = Worker::new(LIMITED);
        let mut host = worker.ask(&question(false));
        host.response_head(&[(":status", status), ("content-type", JSON)], body.is_empty());
        host.response_body(body.as_bytes(), true);
        assert_eq!(host.refused(), (shown, code.to_owned()), "{status} {body}");
        let text = String::from_utf8(host.reply.clone().unwrap().body).unwrap();
        assert!(!text.contains("secret"), "{text}");
        let record = host.end(End::default());
        assert_eq!((record.status, host.settled[0].1), (shown, 0), "what failed is not charged");
    }
}

#[test]
fn a_providers_limit_is_told_with_its_wait_and_its_lack_of_quota_as_lasting() {
    let no_quota = r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#;
    for (body, retry_after, told) in [
        (r#"{"error":{"code":"rate_limit_exceeded"}}"#, Some("7"), (Some("7"), None)),
        (no_quota, None, (None, Some("false"))),
    ] {
        let mut worker = Worker::new("{}");
        let mut host = worker.ask(&question(false));
        let head = [(":status", "429"), ("content-type", JSON)];
        let wait: Vec<_> = retry_after.iter().map(|seconds| ("retry-after", *seconds)).collect();
        host.response_head(&[&head[..], &wait].concat(), false);
        host.response_body(body.as_bytes(), true);
        assert_eq!(host.refused(), (502, "upstream_error".to_owned()), "every provider failed");
        assert_eq!((host.reply_header("retry-after"), host.reply_header("x-should-retry")), told);
        let text = String::from_utf8(host.reply.clone().unwrap().body).unwrap();
        assert!(!text.contains("You exceeded") && text.contains("operator") == told.1.is_some(), "{text}");
    }
}

#[test]
fn an_error_whose_body_says_nothing_more_is_not_waited_for() {
    for (status, waits) in [("500", false), ("503", false), ("404", false), ("400", true), ("422", true), ("429", true)]
    {
        let mut worker = Worker::new(LIMITED);
        let mut host = worker.ask(&question(true));
        host.response_head(&[(":status", status), ("content-type", JSON)], false);
        assert_eq!(host.reply.is_none(), waits, "{status}");
        host.end(End::default());
    }
}

#[test]
fn the_providers_account_headers_do_not_reach_the_client() {
    let mut worker = Worker::new(LIMITED);
    let mut host = worker.ask(&question(false));
    let head = [
        (":status", "200"),
        ("content-type", JSON),
        ("content-length", "3"),
        ("openai-organization", "o"),
        ("x-ratelimit-limit-tokens", "77"),
        ("set-cookie", "c"),
        ("x-note", "how to"),
        ("x-envoy-attempt-count", "2"),
    ];
    host.response_head(&head, false);
    host.response_body(whole("x", "hi").as_bytes(), true);
    for name in ["openai-organization", "set-cookie", "x-note"] {
        assert!(host.header(name).is_none(), "{name}");
    }
    assert_eq!((host.header("x-ratelimit-limit-tokens"), host.header("x-parapet-attempts")), (Some("5000"), Some("2")));
    host.end(End::default());
    assert_eq!(host.settled, [(host.settled[0].0, 14)]);
}

#[test]
fn an_error_event_after_text_ends_the_stream_without_done() {
    let mut worker = Worker::new(LIMITED);
    let mut host = worker.ask(&question(true));
    host.answers_with(SSE);
    host.response_body(&stream(&answer(&["one"])[..2], "x"), false);
    host.response_body(&stream(&[Piece::Error, Piece::Done], "x"), true);
    let text = host.text();
    assert!(text.contains("one") && text.contains("upstream_error") && !text.contains("[DONE]"), "{text}");
    assert!(!text.contains("engine died"));
    let record = host.end(End::default());
    assert!(record.truncated && !record.client_aborted);
    assert_eq!(record.reason.as_deref(), Some("upstream_error"));
    assert!(record.usage.unwrap().estimated && host.settled[0].1 > 0, "what was said is charged");
}

#[test]
fn text_before_an_error_event_leaves_whether_or_not_they_come_together() {
    let head = stream(&answer(&["one"])[..2], "x");
    let tail = stream(&[Piece::Text("two".into()), Piece::Error], "x");
    for cut in [0, tail.len() - 60, tail.len()] {
        let mut worker = Worker::new("{}");
        let mut host = worker.ask(&question(true));
        host.answers_with(SSE);
        host.response_body(&head, false);
        host.response_body(&tail[..cut], false);
        host.response_body(&tail[cut..], true);
        assert!(host.text().contains("two") && host.text().contains("upstream_error"), "{cut} {}", host.text());
    }
}

#[test]
fn a_stream_that_breaks_before_any_byte_left_is_an_error_answer() {
    let mut worker = Worker::new("{}");
    let mut host = worker.ask(&question(true));
    host.answers_with(SSE);
    host.response_body(b": hello\n\n"[..4].as_ref(), false);
    host.response_body(b"", true);
    assert_eq!(host.refused(), (502, "upstream_error".to_owned()));
    assert!(host.end(End::default()).truncated);
}

#[test]
fn a_stream_without_finish_reason_is_truncated_and_says_so() {
    let mut worker = Worker::new(r#"{"input_guard": {"mode": "parallel"}}"#);
    let mut host = worker.ask(&question(true));
    host.answers_with(SSE);
    host.response_body(&stream(&answer(&["one"])[..2], "x"), false);
    assert!(host.response.client.is_empty());
    host.verdict(Call::Verdict(Side::Input), "safe");
    host.response_body(b"", true);
    assert!(host.text().contains("upstream_error") && host.response.complete);
    assert!(host.end(End::default()).truncated);
}

#[test]
fn an_answer_cut_off_upstream_is_truncated_and_not_the_clients_leaving() {
    for (content_type, body) in
        [(SSE, stream(&answer(&["one"])[..2], "x")), (JSON, whole("x", "one").into_bytes()[..9].to_vec())]
    {
        let mut worker = Worker::new("{}");
        let mut host = worker.ask(&question(true));
        host.answers_with(content_type);
        host.response_body(&body, false);
        let details = b"upstream_reset_after_response_started{connection_termination}";
        let record = host.end(End { details: Some(details), failed_attempts: None });
        assert!(record.truncated && !record.client_aborted, "{content_type}");
    }
}

#[test]
fn a_client_that_leaves_is_recorded_in_every_state() {
    let details = End { details: Some(b"downstream_remote_disconnect"), failed_attempts: None };
    let policy = r#"{"input_guard": {"mode": "parallel"}, "output_guard": {"mode": "hold", "window_tokens": [1]}, "limits": {"requests_per_minute": 9}}"#;
    for state in 0..7 {
        let mut worker = Worker::new(policy);
        let mut host = worker.ask(&question(state > 3));
        match state {
            0 => {}
            1 => host.response_head(&[(":status", "200"), ("content-type", JSON)], false),
            2 => host.response_head(&[(":status", "400")], false),
            3 => {
                host.answers_with(JSON);
                host.response_body(whole("x", "hi").as_bytes(), true);
                host.verdict(Call::Verdict(Side::Output), "safe");
            }
            4 => host.answers_with(SSE),
            5 => {
                host.answers_with(SSE);
                host.response_body(&stream(&answer(&["one"])[..2], "x"), false);
            }
            _ => {
                host.answers_with(SSE);
                host.response_body(&stream(&answer(&["one"]), "x"), true);
                host.verdict(Call::Verdict(Side::Output), "safe");
            }
        }
        assert!(host.flow.end_questions().details, "{state}: Envoy knows why it ended");
        let record = host.end(End { ..copy(&details) });
        assert!(record.client_aborted && record.status != 200, "{state} {}", record.status);
    }
}

fn copy<'a>(end: &End<'a>) -> End<'a> {
    End { failed_attempts: end.failed_attempts, details: end.details }
}

#[test]
fn failed_attempts_come_before_the_one_that_answered() {
    let failed = b"vllm\tx\t1\t1800000000900000\t503\tstatus\n";
    let mut worker = Worker::new("{}");
    let mut host = worker.ask(&question(false));
    let head =
        [(":status", "200"), ("content-type", JSON), ("x-parapet-provider", "openai"), ("x-envoy-attempt-count", "2")];
    host.response_head(&head, false);
    host.response_body(whole("y", "hi").as_bytes(), true);
    assert!(host.flow.end_questions().failed_attempts);
    let record = host.end(End { failed_attempts: Some(failed), details: None });
    let attempts: Vec<(&str, &str)> =
        record.attempts.iter().map(|attempt| (&*attempt.model, &*attempt.outcome)).collect();
    assert_eq!(attempts, [("x", "status"), ("y", "ok")]);
    assert_eq!(record.attempts[1].start_us, 1_800_000_000_900_000);
}

#[test]
fn parallel_tool_calls_of_a_json_answer_stay_apart_in_the_record() {
    let call =
        |id: &str| format!(r#"{{"id":"{id}","type":"function","function":{{"name":"f{id}","arguments":"{{}}"}}}}"#);
    let body = whole("x", "hi")
        .replace(r#""content":"hi""#, &format!(r#""content":null,"tool_calls":[{},{}]"#, call("a"), call("b")));
    let mut worker = Worker::new("{}");
    let mut host = worker.ask(&question(false));
    host.answers_with(JSON);
    host.response_body(body.as_bytes(), true);
    let calls = host.end(End::default()).answers.remove(0).tool_calls;
    let names: Vec<(&str, &str)> = calls.iter().map(|call| (&*call.id, &*call.name)).collect();
    assert_eq!(names, [("a", "fa"), ("b", "fb")]);
}

#[test]
fn text_beyond_the_bounds_of_what_is_judged_does_not_leave() {
    let delta = |choice: usize, call: usize| {
        format!(
            "data: {{\"choices\":[{{\"index\":{choice},\"delta\":{{\"tool_calls\":[{{\"index\":{call},\"function\":{{\"name\":\"secret\"}}}}]}}}}]}}\n\n"
        )
    };
    for beyond in [delta(128, 0), delta(0, 256)] {
        let mut worker = Worker::new(r#"{"output_guard": {"mode": "hold"}}"#);
        let mut host = worker.ask(&question(true));
        host.answers_with(SSE);
        host.response_body(&[beyond.into_bytes(), stream(&answer(&["fine"]), "x")].concat(), true);
        while host.waits_for(Call::Verdict(Side::Output)) {
            host.verdict(Call::Verdict(Side::Output), "safe");
        }
        assert!(!host.text().contains("secret"), "{}", host.text());
        assert!(!host.flow.response_waits(), "nobody can wake it");
    }
}

#[test]
fn a_json_answer_with_more_choices_than_are_judged_does_not_leave() {
    let choice = r#"{"message":{"content":"secret"},"finish_reason":"stop"}"#;
    let body = format!(r#"{{"choices":[{}]}}"#, vec![choice; 129].join(","));
    let mut worker = Worker::new(r#"{"output_guard": {"mode": "hold"}}"#);
    let mut host = worker.ask(&question(false));
    host.answers_with(JSON);
    host.response_body(body.as_bytes(), true);
    assert_eq!(host.refused(), (502, "upstream_error".to_owned()));
}
