//! The request's way through a filter.

// The sample filter and the helpers are part of the tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod sample;

use parapet_testhost::{Chunking, EndOfStream, Host, Vm};

fn started() -> (Host, Vm) {
    let host = Host::new().configuration("gateway", "{}").cluster("guard");
    let vm = host.start_vm().expect("accepted");
    (host, vm)
}

fn head(mode: &str) -> [(&str, &str); 4] {
    [(":method", "POST"), (":path", "/chat"), (":authority", "parapet"), ("x-mode", mode)]
}

fn record(stream: &parapet_testhost::Stream) -> String {
    String::from_utf8(stream.filter_state("record").expect("on_log wrote it")).unwrap()
}

#[test]
fn a_request_without_a_body_ends_with_its_head() {
    let (_host, vm) = started();
    let mut stream = vm.stream("gateway");
    let forwarded = stream.request(head("pass"), b"");
    assert!(forwarded.ended && forwarded.body.is_empty());
    stream.response([(":status", "204")], b"", true);
    stream.finish();
    assert_eq!(record(&stream), "/chat 204 request-head! response-head 204 response-body:0!");
}

#[test]
fn every_cut_of_a_held_body_shows_the_whole_buffer_and_forwards_the_same_bytes() {
    let (_host, vm) = started();
    for (plan, end, seen) in [
        (Chunking::Whole, EndOfStream::OwnFrame, "request-body:3 request-body:3!"),
        (Chunking::Whole, EndOfStream::WithLastChunk, "request-body:3!"),
        (Chunking::EveryByte, EndOfStream::OwnFrame, "request-body:1 request-body:2 request-body:3 request-body:3!"),
        (Chunking::At(vec![9, 2, 2, 0]), EndOfStream::WithLastChunk, "request-body:2 request-body:3!"),
    ] {
        let mut stream = vm.stream("gateway").chunking(plan).end_of_stream(end);
        let forwarded = stream.request(head("upper"), b"abc");
        assert_eq!(forwarded.text(), "ABC!");
        assert!(forwarded.ended);
        stream.response([(":status", "200")], b"", true);
        stream.finish();
        assert!(record(&stream).contains(&format!("request-head {seen} response-head")), "{}", record(&stream));
    }
}

#[test]
fn a_head_paused_without_pausing_the_body_goes_out_before_the_verdict() {
    // The bypass measured with a guard in the request's headers and a body callback that continues.
    let (_host, vm) = started();
    let mut stream = vm.stream("gateway");
    stream.request_head(head("leak"), false);
    assert_eq!(stream.forwarded().head, None);
    stream.request_data(b"abc", true);
    assert!(stream.forwarded().ended, "the upstream has it although the guard has not answered");
}

#[test]
fn a_request_held_for_a_verdict_goes_out_when_it_is_resumed() {
    let (host, vm) = started();
    let mut stream = vm.stream("gateway").chunking(Chunking::EveryByte);
    assert_eq!(stream.request(head("ask-first"), b"abc"), parapet_testhost::Message::default());
    let callout = host.pending_callout("guard");
    assert_eq!(callout.headers.get(":path"), Some("/judge"));
    assert_eq!((callout.body.as_slice(), callout.timeout.unwrap().as_millis()), (&b"is it safe?"[..], 300));
    host.answer(&callout, 200, [], b"resume the request");
    let forwarded = stream.forwarded();
    assert_eq!((forwarded.text().as_str(), forwarded.ended), ("abc", true));
    assert_eq!(forwarded.header("x-mode"), Some("ask-first"));
}

#[test]
fn resuming_inside_the_callback_that_pauses_resumes_nothing() {
    let (_host, vm) = started();
    let mut stream = vm.stream("gateway");
    assert_eq!(stream.request(head("resume-then-pause"), b"abc").head, None);
}

#[test]
fn a_local_reply_of_the_request_phase_comes_back_through_the_response_callbacks() {
    let (_host, vm) = started();
    let mut stream = vm.stream("gateway");
    let forwarded = stream.request(head("deny"), b"abc");
    assert_eq!(forwarded.head, None, "Continue after a local reply forwards nothing");
    let answer = stream.answer();
    assert_eq!((answer.status(), answer.text().as_str(), answer.ended), (Some(401), "who are you?", true));
    assert_eq!(answer.header("content-length"), Some("12"));
    assert_eq!(stream.local_reply().unwrap().status(), Some(401));
    stream.response([(":status", "200")], b"the upstream is gone", true);
    assert_eq!(stream.answer(), answer);
    stream.finish();
    assert_eq!(record(&stream), "/chat 401 request-head response-head 401 response-body:12!");
}

#[test]
fn an_unknown_cluster_is_a_bad_argument() {
    let host = Host::new().configuration("gateway", "{}");
    let vm = host.start_vm().unwrap();
    let mut stream = vm.stream("gateway");
    stream.request(head("ask"), b"");
    assert_eq!(stream.answer().status(), Some(503));
}

#[test]
#[should_panic(expected = "the request's content-length says 3 bytes, the body has 4")]
fn a_grown_body_under_the_old_content_length_is_found() {
    let (_host, vm) = started();
    let mut stream = vm.stream("gateway");
    let mut with_length: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in head("upper-wrong-length").into_iter().chain([("content-length", "3")]) {
        with_length.push((name.to_owned(), value.as_bytes().to_vec()));
    }
    stream.request(with_length, b"abc");
    stream.response([(":status", "200")], b"", true);
    stream.finish();
}

#[test]
#[should_panic(expected = "the upstream answers a request whose head the filter still holds")]
fn no_upstream_answers_a_request_that_is_held() {
    let (_host, vm) = started();
    let mut stream = vm.stream("gateway");
    stream.request(head("ask-first"), b"abc");
    stream.response([(":status", "200")], b"", true);
}
