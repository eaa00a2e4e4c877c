//! The provider filter: attempts on a shared head, and the first-token gate.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

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
