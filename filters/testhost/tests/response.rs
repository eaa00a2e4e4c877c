//! The answer's way through a filter, and the stream's end.

// The sample filter and the helpers are part of the tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod sample;

use parapet_testhost::{Chunking, Host, Stream, Vm};

fn started() -> (Host, Vm) {
    let host = Host::new().configuration("gateway", "{}").cluster("guard");
    let vm = host.start_vm().expect("accepted");
    (host, vm)
}

fn requested(vm: &Vm, mode: &str) -> Stream {
    let mut stream = vm.stream("gateway");
    stream.request([(":method", "GET"), (":path", "/chat"), ("x-mode", mode)], b"");
    stream
}

fn record(stream: &Stream) -> String {
    String::from_utf8(stream.filter_state("record").expect("on_log wrote it")).unwrap()
}

#[test]
fn an_answer_withheld_for_a_verdict_is_released_without_another_body_callback() {
    let (host, vm) = started();
    let mut stream = requested(&vm, "ask").chunking(Chunking::EveryByte);
    let answer = stream.response([(":status", "200")], b"abc", false);
    assert_eq!((answer.head, answer.body.len()), (None, 0));
    host.answer(&host.pending_callout("guard"), 200, [], b"safe");
    assert_eq!((stream.answer().status(), stream.answer().text().as_str()), (Some(200), "abc"));
    assert!(!stream.answer().ended);
    stream.response_data(b"d", false);
    assert_eq!(stream.answer().text(), "abcd", "later chunks stream");
    stream.response_data(b"", true);
    stream.finish();
    assert_eq!(
        record(&stream),
        "/chat 200 request-head! response-head 200 response-body:1 response-body:2 response-body:3 verdict:1:4 \
         response-body:1 response-body:0!"
    );
}

#[test]
fn the_accumulated_answer_can_be_rewritten_from_a_callouts_answer() {
    let (host, vm) = started();
    let mut stream = requested(&vm, "ask").chunking(Chunking::At(vec![1]));
    stream.response([(":status", "200")], b"abc", true);
    host.answer(&host.pending_callout("guard"), 200, [], b"rewrite");
    assert_eq!((stream.answer().text().as_str(), stream.answer().ended), ("rewritten", true));
}

#[test]
fn a_head_paused_without_pausing_the_body_leaks_before_the_verdict() {
    let (_host, vm) = started();
    let mut stream = requested(&vm, "ask-leak");
    stream.response_head([(":status", "200")], false);
    assert_eq!(stream.answer().head, None);
    stream.response_data(b"abc", false);
    assert_eq!(stream.answer().text(), "abc");
}

#[test]
fn a_local_reply_replaces_a_withheld_answer_and_does_not_come_back() {
    let (host, vm) = started();
    let mut stream = requested(&vm, "ask");
    stream.response([(":status", "200")], b"abc", false);
    host.answer(&host.pending_callout("guard"), 200, [("x", "y")], b"");
    assert_eq!(stream.answer().status(), Some(200));

    let mut stream = requested(&vm, "ask");
    stream.response([(":status", "200")], b"abc", false);
    host.answer_timeout(&host.pending_callout("guard"));
    let answer = stream.answer();
    assert_eq!((answer.status(), answer.text().as_str(), answer.ended), (Some(403), "blocked", true));
    assert_eq!(answer.header("x-reason"), Some("unsafe"));
    stream.response_data(b"more", true);
    assert_eq!(stream.answer(), answer);
    stream.finish();
    assert_eq!(record(&stream), "/chat 403 request-head! response-head 200 response-body:3 verdict:1:24");
}

#[test]
fn a_verdict_before_the_answer_replies_through_the_filter() {
    let (host, vm) = started();
    let mut stream = requested(&vm, "ask");
    host.answer_reset(&host.pending_callout("guard"));
    assert_eq!(stream.answer().status(), Some(403));
    stream.finish();
    assert_eq!(record(&stream), "/chat 403 request-head! verdict:0:0 response-head 403 response-body:7!");
}

#[test]
fn a_local_reply_after_the_head_cuts_the_stream() {
    let (_host, vm) = started();
    let mut stream = requested(&vm, "too-late");
    let answer = stream.response([(":status", "200")], b"abc", false);
    assert_eq!((answer.status(), answer.cut, answer.ended), (Some(200), true, false));
    stream.finish();
}

#[test]
fn a_reset_cuts_the_stream() {
    let (_host, vm) = started();
    let mut stream = requested(&vm, "reset");
    assert!(stream.response([(":status", "200")], b"abc", false).cut);
}

#[test]
fn the_log_comes_before_the_end_and_an_answer_for_a_gone_stream_is_dropped() {
    let (host, vm) = started();
    let mut stream = requested(&vm, "ask");
    let callout = host.pending_callout("guard");
    stream.client_leaves();
    host.answer(&callout, 200, [], b"safe");
    assert!(stream.answer().cut);
    assert_eq!(record(&stream), "/chat 0 request-head!");
    let words: Vec<_> = host.logs().into_iter().map(|(_, message)| message).collect();
    assert_eq!(words[words.len() - 2..], ["log", "done"]);
    assert!(host.pending_callouts().is_empty());
}

#[test]
fn an_upstream_that_cuts_gives_no_body_callback() {
    let (_host, vm) = started();
    let mut stream = requested(&vm, "pass");
    stream.response([(":status", "200")], b"abc", false);
    stream.upstream_cut();
    let answer = stream.answer();
    assert_eq!((answer.text().as_str(), answer.cut, answer.ended), ("abc", true, false));
    assert_eq!(record(&stream), "/chat 200 request-head! response-head 200 response-body:3");
}

#[test]
#[should_panic(expected = "the client still waits")]
fn a_stream_that_was_never_answered_does_not_finish() {
    let (_host, vm) = started();
    requested(&vm, "pass").finish();
}
