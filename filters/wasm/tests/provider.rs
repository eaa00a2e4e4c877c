//! The provider filter: attempts on a shared head, and the first-token gate.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use parapet_testhost::{Chunking, EndOfStream, Host, Stream, Vm};
use proptest::prelude::*;
use support::*;

/// The router chose a host of `provider` for the next attempt.
fn attempt(stream: &Stream, vm: &Vm, provider: &str) -> Stream {
    let attempt = stream.attempt(vm, "provider");
    attempt.property(&["xds", "upstream_host_metadata", "filter_metadata", "parapet", "provider"], provider);
    attempt
}

fn started() -> (Host, Vm) {
    start("{}")
}

#[test]
fn each_attempt_sets_path_authority_and_model_and_leaves_nothing_of_the_one_before() {
    let (_host, vm) = started();
    let stream = asked(&vm, QUESTION);
    let mut first = attempt(&stream, &vm, "vllm");
    let sent = first.replay();
    assert_eq!((sent.header(":path"), sent.header(":authority")), (Some("/v1/chat/completions"), Some("vllm:1")));
    assert!(sent.text().starts_with(r#"{"model":"x""#));
    assert_eq!(sent.header("content-length"), Some(&*sent.body.len().to_string()));
    first.response([(":status", "503")], b"", true);
    first.finish();

    let mut second = attempt(&stream, &vm, "openai");
    let sent = second.replay();
    assert_eq!((sent.header(":path"), sent.header(":authority")), (Some("/o/chat/completions"), Some("openai:2")));
    assert!(sent.text().starts_with(r#"{"model":"a-longer-name""#));
    assert_eq!(sent.header("content-length"), Some(&*sent.body.len().to_string()));
    assert_eq!(sent.header("authorization"), None);
    assert_eq!(sent.head.as_ref().unwrap().iter().filter(|(name, _)| *name == ":path").count(), 1);
    second.response_head([(":status", "503")], false);
    second.client_leaves();

    // A retry may come back to the first provider: the length is its own again.
    let mut third = attempt(&stream, &vm, "vllm");
    let sent = third.replay();
    assert_eq!(sent.header("content-length"), Some(&*sent.body.len().to_string()));
    assert!(sent.text().starts_with(r#"{"model":"x""#));
}

#[test]
fn a_body_is_renamed_in_every_chunking() {
    for chunking in [Chunking::Whole, Chunking::EveryByte, Chunking::At(vec![10, 20])] {
        for end in [EndOfStream::OwnFrame, EndOfStream::WithLastChunk] {
            let (_host, vm) = started();
            let stream = asked(&vm, QUESTION);
            let mut second = attempt(&stream, &vm, "openai").chunking(chunking.clone()).end_of_stream(end);
            let sent = second.replay();
            assert!(sent.ended && sent.text().starts_with(r#"{"model":"a-longer-name","messages""#), "{}", sent.text());
            assert_eq!(sent.header("content-length"), Some(&*sent.body.len().to_string()));
        }
    }
}

#[test]
fn the_gate_opens_shuts_or_holds_on_the_first_event_that_counts() {
    let role = chunk("x", "");
    for (stream_body, status) in [
        (events("x", &["hi"]), Some(200)),
        (format!(": hello\n\n{role}: hello\n\n"), Some(502)),
        (format!("{role}data: {{\"error\":\"boom\"}}\n\ndata: [DONE]\n\n"), Some(503)),
        (format!("{role}data: [DONE]\n\n"), Some(502)),
        (String::new(), Some(502)),
    ] {
        for chunking in [Chunking::Whole, Chunking::EveryByte] {
            let (_host, vm) = started();
            let stream = asked(&vm, STREAMED);
            let mut first = attempt(&stream, &vm, "vllm").chunking(chunking);
            first.replay();
            first.response_head([(":status", "200"), ("content-type", SSE)], false);
            assert_eq!(first.answer().head, None, "the head waits for a token");
            first.response_body(stream_body.as_bytes(), true);
            assert_eq!(first.answer().status(), status, "{stream_body}");
            assert_eq!(first.answer().header("x-parapet-provider"), Some("vllm"));
            if status == Some(200) {
                assert_eq!(first.answer().text(), stream_body, "not a byte is lost");
            }
        }
    }
}

#[test]
fn comments_and_roles_keep_the_head_back_until_the_token_comes() {
    let (_host, vm) = started();
    let stream = asked(&vm, STREAMED);
    let mut first = attempt(&stream, &vm, "vllm");
    first.replay();
    first.response_head([(":status", "200"), ("content-type", SSE)], false);
    first.response_data(format!(": hello\n\n{}", chunk("x", "")).as_bytes(), false);
    assert_eq!(first.answer().head, None);
    first.response_data(chunk("x", "hi").as_bytes(), false);
    assert_eq!(first.answer().text(), format!(": hello\n\n{}{}", chunk("x", ""), chunk("x", "hi")));
    first.response_data(b"data: {\"error\":\"late\"}\n\n", false);
    assert!(first.answer().text().ends_with("late\"}\n\n"), "after the first token the rest streams");
}

#[test]
fn the_last_providers_head_waits_for_a_token_too() {
    let (_host, vm) = started();
    let stream = asked(&vm, STREAMED);
    let mut last = attempt(&stream, &vm, "openai");
    last.replay();
    last.response_head([(":status", "200"), ("content-type", SSE)], false);
    assert_eq!(last.answer().head, None, "a head is no answer: another attempt may be faster to a token");
    last.response_data(chunk("a-longer-name", "hi").as_bytes(), false);
    assert_eq!(last.answer().status(), Some(200));
}

#[test]
fn statuses_that_blame_us_become_bad_gateways_and_others_pass() {
    for (status, shown) in [("401", 502), ("403", 502), ("302", 502), ("429", 429), ("503", 503), ("400", 400)] {
        let (_host, vm) = started();
        let stream = asked(&vm, QUESTION);
        let mut first = attempt(&stream, &vm, "vllm");
        first.replay();
        let answer = first.response([(":status", status), ("content-type", JSON)], b"{}", true);
        assert_eq!(answer.status(), Some(shown));
        let noted = String::from_utf8(stream.filter_state("parapet.failed_attempts").unwrap()).unwrap();
        assert!(noted.starts_with("vllm\tx\t") && noted.ends_with(&format!("\t{status}\tstatus\n")), "{noted}");
    }
}

#[test]
fn a_json_answer_counts_when_it_is_whole_and_says_something() {
    for (body, status) in [(whole("x", "hi"), 200), (whole("x", ""), 502), ("<html>".to_owned(), 502)] {
        for end in [EndOfStream::OwnFrame, EndOfStream::WithLastChunk] {
            let (_host, vm) = started();
            let stream = asked(&vm, QUESTION);
            let mut first = attempt(&stream, &vm, "vllm").chunking(Chunking::EveryByte).end_of_stream(end);
            first.replay();
            let answer = first.response([(":status", "200"), ("content-type", JSON)], body.as_bytes(), true);
            assert_eq!((answer.status(), answer.text()), (Some(status), body.clone()));
        }
    }
}

#[test]
fn an_attempt_that_the_gateway_filter_did_not_ask_for_is_refused() {
    let (_host, vm) = started();
    let mut alone = vm.upstream("provider");
    alone.property(&["xds", "upstream_host_metadata", "filter_metadata", "parapet", "provider"], "vllm");
    alone.request(HEAD, QUESTION.as_bytes());
    assert_eq!(alone.local_reply().unwrap().status(), Some(503));
    assert_eq!(alone.forwarded().head, None);

    for provider in ["", "nobody"] {
        let stream = asked(&vm, QUESTION);
        let mut lost = attempt(&stream, &vm, provider);
        lost.replay();
        assert_eq!(lost.local_reply().unwrap().status(), Some(503), "{provider}");
    }
    let stream = asked(&vm, QUESTION);
    let mut lost = stream.attempt(&vm, "provider");
    lost.unserializable_property(&["xds", "upstream_host_metadata", "filter_metadata", "parapet", "provider"]);
    lost.replay();
    assert_eq!(lost.local_reply().unwrap().status(), Some(503));
}

#[test]
fn a_failed_and_an_answering_attempt_make_one_record() {
    let (_host, vm) = started();
    let mut stream = asked(&vm, STREAMED);
    let mut first = attempt(&stream, &vm, "vllm");
    first.replay();
    first.response_head([(":status", "200"), ("content-type", SSE)], false);
    first.client_leaves();
    let mut second = attempt(&stream, &vm, "openai");
    second.replay();
    let head = [(":status", "200"), ("content-type", SSE), ("x-envoy-attempt-count", "2")];
    second.response(head, events("a-longer-name", &["hi"]).as_bytes(), true);
    stream.deliver(&second);
    assert_eq!(stream.answer().text(), events("m", &["hi"]));
    stream.finish();
    let record = record(&stream);
    let attempts: Vec<_> = record.attempts.iter().map(|attempt| (&*attempt.provider, &*attempt.outcome)).collect();
    assert_eq!(attempts, [("vllm", "no_first_token"), ("openai", "ok")]);
}

#[test]
fn a_request_that_ends_in_trailers_is_renamed_too() {
    let (_host, vm) = started();
    let mut stream = vm.stream("gateway");
    stream.request_head(HEAD, false);
    stream.request_data(QUESTION.as_bytes(), false);
    stream.request_trailers();
    let body = stream.forwarded().body;
    let mut second = attempt(&stream, &vm, "openai");
    second.request_head([(":method", "POST"), (":path", "/"), (":authority", "a")], false);
    second.request_data(&body, false);
    second.request_trailers();
    assert!(second.forwarded().text().starts_with(r#"{"model":"a-longer-name""#), "{}", second.forwarded().text());
}

#[test]
fn a_json_answer_that_ends_in_trailers_passes_the_gate() {
    for (body, status) in [(whole("x", "hi"), 200), ("<html>".to_owned(), 502)] {
        let (_host, vm) = started();
        let stream = asked(&vm, QUESTION);
        let mut first = attempt(&stream, &vm, "vllm");
        first.replay();
        first.response_head([(":status", "200"), ("content-type", JSON)], false);
        first.response_data(body.as_bytes(), false);
        first.response_trailers();
        assert_eq!(first.answer().status(), Some(status), "{body}");
        first.client_leaves();
        assert_eq!(stream.filter_state("parapet.failed_attempts").is_some(), status != 200);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_comes_through_the_gate_whole_however_it_is_cut(cuts in prop::collection::vec(0_usize..400, 0..12)) {
        let (_host, vm) = started();
        let stream = asked(&vm, STREAMED);
        let mut first = attempt(&stream, &vm, "vllm").chunking(Chunking::At(cuts));
        first.replay();
        let body = format!(": hello\n\n{}", events("x", &["é😀", "b"]));
        let answer = first.response([(":status", "200"), ("content-type", SSE)], body.as_bytes(), true);
        prop_assert_eq!((answer.status(), answer.text(), answer.ended), (Some(200), body, true));
    }
}

const HEDGED: &str = r#"{"hedge_after_ms": 300, "hedge_budget_percent": 1}"#;

/// Ten hedges, which is all that the budget has at first.
fn spend_the_budget(host: &Host, vm: &Vm) {
    for _ in 0..10 {
        let mut stream = asked(vm, STREAMED);
        let mut first = attempt(&stream, vm, "vllm");
        first.replay();
        host.advance(Duration::from_millis(300));
        let mut second = attempt(&stream, vm, "openai");
        assert!(second.replay().ended, "within the budget a hedge goes at once");
        first.client_leaves();
        second.client_leaves();
        stream.client_leaves();
    }
}

#[test]
fn the_attempt_that_answers_says_how_many_were_sent_and_the_loser_is_noted_as_one() {
    let (host, vm) = start(HEDGED);
    let mut stream = asked(&vm, STREAMED);
    let mut first = attempt(&stream, &vm, "vllm");
    first.replay();
    host.advance(Duration::from_millis(300));
    let mut second = attempt(&stream, &vm, "openai");
    second.replay();
    host.advance(Duration::from_millis(100));
    let head = [(":status", "200"), ("content-type", SSE), ("x-envoy-attempt-count", "2")];
    second.response(head, events("a-longer-name", &["hi"]).as_bytes(), true);
    first.client_leaves();
    stream.deliver(&second);
    assert_eq!(
        (stream.answer().header("x-parapet-attempts"), stream.answer().header("x-parapet-attempt")),
        (Some("2"), None)
    );
    stream.finish();
    let attempts = record(&stream).attempts;
    let told: Vec<_> = attempts.iter().map(|attempt| (&*attempt.provider, &*attempt.outcome)).collect();
    assert_eq!(told, [("vllm", "lost"), ("openai", "ok")]);
    assert_eq!(attempts[1].start_us - attempts[0].start_us, 300_000);
}

#[test]
fn a_hedge_beyond_the_budget_is_held_until_its_turn_and_has_its_own_head_then() {
    let (host, vm) = start(HEDGED);
    spend_the_budget(&host, &vm);
    for (name, fails) in [("the first failed", true), ("the first had its time", false)] {
        let stream = asked(&vm, QUESTION);
        let mut first = attempt(&stream, &vm, "vllm");
        first.replay();
        host.advance(Duration::from_millis(300));
        let mut second = attempt(&stream, &vm, "openai");
        assert_eq!(second.replay().head, None, "{name}");
        // A third one writes its own head into the map that all share.
        let mut third = attempt(&stream, &vm, "third");
        third.replay();
        vm.tick("provider");
        assert_eq!(second.forwarded().head, None, "{name}: not yet");
        if fails {
            first.response([(":status", "503")], b"", true);
        } else {
            host.advance(Duration::from_secs(60));
        }
        vm.tick("provider");
        let sent = second.forwarded();
        assert_eq!(
            (sent.header(":path"), sent.header(":authority")),
            (Some("/o/chat/completions"), Some("openai:2")),
            "{name}"
        );
        assert!(sent.ended && sent.text().starts_with(r#"{"model":"a-longer-name""#), "{name}");
        assert_eq!(sent.header("content-length"), Some(&*sent.body.len().to_string()), "{name}");
        for mut attempt in [first, second, third] {
            attempt.client_leaves();
        }
    }
}

#[test]
fn of_a_failure_found_in_the_body_nothing_goes_on_while_another_is_at_work() {
    let (host, vm) = start(HEDGED);
    let rubbish = "data: {\"error\":\"boom\"}\n\ndata: [DONE]\n\n";
    let stream = asked(&vm, STREAMED);
    let mut first = attempt(&stream, &vm, "vllm");
    first.replay();
    host.advance(Duration::from_millis(300));
    let mut second = attempt(&stream, &vm, "openai");
    second.replay();
    for attempt in [&mut first, &mut second] {
        attempt.response_head([(":status", "200"), ("content-type", SSE)], false);
        attempt.response_body(rubbish.as_bytes(), true);
        assert_eq!((attempt.answer().head, attempt.answer().body), (None, vec![]));
    }
    // A retry might be on its way.
    vm.tick("provider");
    assert!(first.local_reply().is_none() && second.local_reply().is_none());
    host.advance(Duration::from_millis(60));
    vm.tick("provider");
    assert_eq!(first.local_reply().unwrap().status(), Some(502));
    vm.tick("provider");
    assert!(second.local_reply().is_none(), "the client is told once");
}

#[test]
fn a_stream_without_any_token_is_given_up_and_the_timer_ends_with_it() {
    let (host, vm) = start("{}");
    let stream = asked(&vm, STREAMED);
    let mut first = attempt(&stream, &vm, "vllm");
    first.replay();
    first.response_head([(":status", "200"), ("content-type", SSE)], false);
    host.advance(Duration::from_secs(119));
    vm.tick("provider");
    assert!(first.local_reply().is_none());
    host.advance(Duration::from_secs(2));
    vm.tick("provider");
    assert_eq!(first.local_reply().unwrap().status(), Some(504));
    first.finish();
    vm.tick("provider");
    assert_eq!(vm.tick_period("provider"), None);
}

#[test]
fn a_client_error_waits_for_the_attempt_beside_it_and_a_lone_providers_limit_is_no_reason_to_ask_it_again() {
    let (host, vm) = start(HEDGED);
    for (status, beside, alone) in [("400", 502, 400), ("404", 502, 404), ("429", 502, 429), ("503", 503, 503)] {
        for raced in [true, false] {
            let stream = asked(&vm, QUESTION);
            let mut first = attempt(&stream, &vm, "vllm");
            first.replay();
            host.advance(Duration::from_millis(300));
            let mut second = attempt(&stream, &vm, "openai");
            if raced {
                second.replay();
            }
            let answer = first.response([(":status", status), ("content-type", JSON)], b"{}", true);
            assert_eq!(answer.status(), Some(if raced { beside } else { alone }), "{status} {raced}");
            assert_eq!(answer.header("x-envoy-ratelimited"), None, "another may be asked");
            first.client_leaves();
            second.client_leaves();
        }
    }
    let mut stream = vm.stream("gateway");
    stream.request(HEAD, br#"{"model":"lone","messages":[{"role":"user","content":"hello"}]}"#);
    let mut only = attempt(&stream, &vm, "openai");
    only.replay();
    let answer = only.response([(":status", "429"), ("content-type", JSON)], b"{}", true);
    assert_eq!((answer.status(), answer.header("x-envoy-ratelimited")), (Some(429), Some("true")));
}

#[test]
fn what_only_the_operator_can_mend_is_said_aloud_and_not_with_every_request() {
    let (host, vm) = started();
    for status in ["401", "403", "404", "401"] {
        let stream = asked(&vm, QUESTION);
        let mut first = attempt(&stream, &vm, "vllm");
        first.replay();
        first.response([(":status", status), ("content-type", JSON)], b"{}", true);
        host.advance(Duration::from_secs(25));
    }
    let told: Vec<String> =
        host.logs().into_iter().map(|(_, text)| text).filter(|text| text.contains("api_key_env")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("`vllm` answers 401") && told[1].contains("401"), "{told:?}");
}
