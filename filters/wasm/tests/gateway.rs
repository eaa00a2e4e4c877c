//! The gateway filter under Envoy's rules: what is held, what is released, and by which callback.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use core::time::Duration;

use parapet_testhost::{Chunking, EndOfStream};
use support::*;

#[test]
fn a_request_goes_on_with_a_head_and_body_of_its_own() {
    for chunking in [Chunking::Whole, Chunking::EveryByte] {
        let (_host, vm) = start("{}");
        let mut stream = vm.stream("gateway").chunking(chunking);
        let sent = stream.request(
            [&HEAD[..], &[("cookie", "c"), ("x-parapet-tenant", "forged")]].concat().as_slice(),
            QUESTION.as_bytes(),
        );
        assert!(sent.ended && sent.text().starts_with(r#"{"model":"x","messages""#), "{}", sent.text());
        assert_eq!(sent.header("content-length"), Some(&*sent.body.len().to_string()));
        assert_eq!((sent.header("x-parapet-cluster"), sent.header(":path")), (Some("chain"), Some(HEAD[1].1)));
        for gone in ["cookie", "authorization", "x-parapet-tenant"] {
            assert_eq!(sent.header(gone), None);
        }
        let answer = stream.response(head_of(JSON), whole("x", "hi").as_bytes(), true);
        assert_eq!(answer.text(), whole("m", "hi"));
        assert!(answer.header("x-parapet-trace-id").is_some());
        stream.finish();
        let record = record(&stream);
        assert_eq!((record.status, &*record.answers[0].content, record.client_aborted), (200, "hi", false));
    }
}

#[test]
fn a_json_answer_waits_for_the_input_verdict_whichever_comes_first() {
    for verdict_first in [true, false] {
        for end in [EndOfStream::OwnFrame, EndOfStream::WithLastChunk] {
            let (host, vm) = start(PARALLEL);
            let mut stream = asked(&vm, QUESTION).chunking(Chunking::EveryByte).end_of_stream(end);
            assert!(stream.forwarded().ended, "the model starts at once");
            if verdict_first {
                verdict(&host, "safe");
            }
            let answer = stream.response(head_of(JSON), whole("x", "hi").as_bytes(), true);
            if !verdict_first {
                assert_eq!((answer.head, answer.body.len()), (None, 0));
                verdict(&host, "safe");
            }
            assert_eq!((stream.answer().text(), stream.answer().ended), (whole("m", "hi"), true));
            stream.finish();
        }
    }
}

#[test]
fn a_streams_head_and_bytes_wait_for_the_input_verdict_at_any_point() {
    let frames: Vec<String> = vec![chunk("x", ""), chunk("x", "a"), chunk("x", "b"), finish("x")];
    for at in 0..=frames.len() + 1 {
        let (host, vm) = start(PARALLEL);
        let mut stream = asked(&vm, STREAMED);
        let callout = host.pending_callout("guard");
        assert!(String::from_utf8_lossy(&callout.body).contains("User: hello"));
        stream.response_head(head_of(SSE), false);
        for (i, frame) in frames.iter().enumerate() {
            if i == at {
                say(&host, &callout, "safe");
            } else if i < at {
                assert_eq!(stream.answer().head, None);
            }
            stream.response_data(frame.as_bytes(), false);
            // The first frame has no text: with it alone a failure could still be an error answer.
            assert_eq!(stream.answer().body.is_empty(), i < at.max(1), "{at} {i}");
        }
        if at == frames.len() {
            say(&host, &callout, "safe");
        }
        stream.response_data(b"", true);
        if at > frames.len() {
            assert!(!stream.answer().ended, "the end waits too");
            say(&host, &callout, "safe");
        }
        assert_eq!(stream.answer().text(), events("m", &["a", "b"]));
        stream.finish();
        assert_eq!(record(&stream).answers[0].content, "ab");
    }
}

#[test]
fn in_blocking_mode_the_verdict_sends_the_request() {
    let (host, vm) = start(BLOCKING);
    let mut stream = asked(&vm, QUESTION);
    assert_eq!((stream.forwarded().head, stream.forwarded().body.len()), (None, 0));
    verdict(&host, "safe");
    let sent = stream.forwarded();
    assert!(sent.ended && sent.text().starts_with(r#"{"model":"x""#));
    assert_eq!(sent.header("content-length"), Some(&*sent.body.len().to_string()));
    stream.response(head_of(JSON), whole("x", "hi").as_bytes(), true);
    stream.finish();
}

#[test]
fn an_unsafe_input_is_a_403_in_the_request_and_in_the_response_phase() {
    for phase in 0..4 {
        let (host, vm) = start(if phase == 0 { BLOCKING } else { PARALLEL });
        let mut stream = asked(&vm, STREAMED);
        if phase > 1 {
            stream.response_head(head_of(SSE), false);
        }
        if phase > 2 {
            stream.response_body(events("x", &["a"]).as_bytes(), true);
        }
        verdict(&host, "unsafe");
        verdict(&host, "unsafe\nS1");
        assert_eq!(error_code(&stream.answer()), (Some(403), "content_blocked".into()));
        stream.response_data(b"data: late\n\n", false);
        stream.finish();
        let record = record(&stream);
        assert_eq!((record.status, record.input_guard.unwrap().categories), (403, vec!["S1".to_owned()]));
        assert_eq!(stream.forwarded().head.is_some(), phase > 0);
    }
}

#[test]
fn every_way_in_which_a_callout_fails_is_a_failed_verdict() {
    for way in 0..5 {
        let json = configuration(BLOCKING);
        let host = parapet_testhost::Host::new().configuration("gateway", &json);
        let host = if way == 0 { host } else { host.cluster("guard") };
        let vm = host.start_vm().unwrap();
        let mut stream = asked(&vm, QUESTION);
        match way {
            0 => assert!(host.pending_callouts().is_empty(), "there is no such cluster"),
            1 => host.answer_reset(&host.pending_callout("guard")),
            2 => host.answer_timeout(&host.pending_callout("guard")),
            3 => host.answer_unreachable(&host.pending_callout("guard")),
            _ => host.answer(&host.pending_callout("guard"), 200, [], b"\xff"),
        }
        assert_eq!(error_code(&stream.answer()), (Some(503), "guard_unavailable".into()), "{way}");
        stream.finish();
        assert_eq!(record(&stream).input_guard.unwrap().verdict, "failed");
    }
}

#[test]
fn a_sidecar_that_is_not_there_or_has_nothing_does_not_stop_the_request() {
    for way in 0..4 {
        let json = configuration(r#"{"cache": {"ttl_s": 60}}"#);
        let host = parapet_testhost::Host::new().configuration("gateway", &json);
        let host = if way == 0 { host } else { host.cluster("sidecar") };
        let vm = host.start_vm().unwrap();
        let stream = asked(&vm, QUESTION);
        if way > 0 {
            let callout = host.pending_callout("sidecar");
            assert_eq!(stream.forwarded().head, None);
            match way {
                1 => host.answer(&callout, 404, [], b""),
                2 => host.answer_reset(&callout),
                _ => host.answer_timeout(&callout),
            }
        }
        assert!(stream.forwarded().ended, "{way}");
    }
}

#[test]
fn an_answer_in_memory_is_given_in_the_request_phase() {
    let (host, vm) = start(r#"{"cache": {"ttl_s": 60}}"#);
    let mut stream = asked(&vm, QUESTION);
    host.answer(&host.pending_callout("sidecar"), 404, [], b"");
    stream.response(head_of(JSON), whole("x", "hi").as_bytes(), true);
    stream.finish();
    let mut stream = asked(&vm, STREAMED);
    assert!(stream.answer().ended && stream.answer().text().ends_with("data: [DONE]\n\n"));
    assert!(stream.answer().header("cache-status").unwrap().starts_with("parapet; hit"));
    assert_eq!(stream.forwarded().head, None);
    stream.finish();
    assert_eq!(record(&stream).cache.unwrap().outcome, "hit");
}

#[test]
fn held_text_leaves_with_its_verdict_and_with_no_other_callback() {
    let (host, vm) = start(HOLD);
    let mut stream = asked(&vm, STREAMED);
    stream.response_head(head_of(SSE), false);
    stream.response_data(format!("{}{}", chunk("x", "a"), chunk("x", "b")).as_bytes(), false);
    assert_eq!(stream.answer().head, None);
    verdict(&host, "safe");
    assert_eq!(stream.answer().text(), format!("{}{}", chunk("m", "a"), chunk("m", "b")));
    stream.response_data(chunk("x", "c").as_bytes(), false);
    stream.response_data(finish("x").as_bytes(), false);
    stream.response_data(b"", true);
    assert!(!stream.answer().text().contains("\"c\"") && !stream.answer().ended);
    verdict(&host, "safe");
    assert!(stream.answer().ended && stream.answer().text().ends_with("data: [DONE]\n\n"));
    stream.finish();
    assert_eq!(record(&stream).answers[0].content, "abc");
}

#[test]
fn a_held_stream_that_is_unsafe_at_its_end_shows_nothing_of_what_was_held() {
    let (host, vm) = start(HOLD);
    let mut stream = asked(&vm, STREAMED);
    stream.response(head_of(SSE), format!("{}{}", chunk("x", "a"), chunk("x", "b")).as_bytes(), false);
    verdict(&host, "safe");
    stream.response_body(format!("{}{}", chunk("x", "secret"), finish("x")).as_bytes(), true);
    verdict(&host, "unsafe\nS1");
    let text = stream.answer().text();
    assert!(
        text.contains("content_filter") && text.ends_with("data: [DONE]\n\n") && !text.contains("secret"),
        "{text}"
    );
    stream.finish();
    assert_eq!(record(&stream).reason.as_deref(), Some("output_blocked"));
}

#[test]
fn an_async_stream_flows_and_is_cut_with_its_provider_after_an_unsafe_verdict() {
    for (silent, let_go) in [(true, true), (true, false), (false, true), (false, false)] {
        let (host, vm) = start_checked(ASYNC);
        let mut stream = asked(&vm, STREAMED);
        stream.response(head_of(SSE), format!("{}{}", chunk("x", "a"), chunk("x", "b")).as_bytes(), false);
        // While a verdict is out Envoy's buffer is kept within reach, for a tick at most.
        assert_eq!(stream.answer().head, None);
        if let_go {
            vm.tick("gateway");
            assert!(stream.answer().text().contains("\"b\""), "tokens flow");
        }
        if !silent {
            stream.response_data(chunk("x", "c").as_bytes(), false);
            assert!(stream.answer().text().contains("\"b\"") == let_go);
        }
        verdict(&host, "unsafe\nS1");
        let text = stream.answer().text();
        assert!(text.ends_with("data: [DONE]\n\n") && text.contains("content_filter"), "{silent} {let_go}: {text}");
        assert_eq!((text.contains("\"b\""), text.contains("\"c\"")), (true, !silent), "{silent} {let_go}: {text}");
        stream.response_data(chunk("x", "secret").as_bytes(), false);
        vm.tick("gateway");
        assert!(!stream.answer().cut, "the client has a moment to end it");
        host.advance(Duration::from_millis(20));
        vm.tick("gateway");
        assert!(stream.answer().cut && stream.answer().text() == text, "the provider is not read any further");
        stream.finish();
        assert_eq!(record(&stream).reason.as_deref(), Some("output_blocked"));
        assert_eq!(vm.tick_period("gateway"), None, "nobody waits for the clock any more");
    }
}

#[test]
fn an_async_stream_passes_byte_for_byte_whenever_the_clock_ticks() {
    for ticks in 0..256_u32 {
        let (host, vm) = start_checked(ASYNC);
        let mut stream = asked(&vm, STREAMED);
        stream.response_head(head_of(SSE), false);
        let words = ["a", "b", "c", "d", "e", "f"];
        for (i, word) in words.iter().enumerate() {
            stream.response_data(chunk("x", word).as_bytes(), false);
            if ticks >> i & 1 == 1 {
                vm.tick("gateway");
            }
            if i % 3 == 2 && !host.pending_callouts().is_empty() {
                verdict(&host, "safe");
            }
        }
        if ticks >> 6 & 1 == 1 {
            stream.response_data(finish("x").as_bytes(), true);
        } else {
            stream.response_data(finish("x").as_bytes(), false);
            stream.response_data(b"", true);
        }
        if ticks >> 7 & 1 == 1 {
            vm.tick("gateway");
        }
        while !host.pending_callouts().is_empty() {
            verdict(&host, "safe");
        }
        let expected: String = words.iter().map(|word| chunk("m", word)).chain([finish("m")]).collect();
        assert_eq!(stream.answer().text(), expected, "{ticks:06b}");
        stream.finish();
        assert_eq!(record(&stream).answers[0].content, "abcdef");
    }
}

#[test]
fn what_the_guard_approves_leaves_at_once_although_the_provider_is_silent() {
    let (host, vm) = start(HOLD);
    let mut stream = asked(&vm, STREAMED);
    stream.response(head_of(SSE), format!("{}{}", chunk("x", "a"), chunk("x", "b")).as_bytes(), false);
    stream.response_data(format!("{}{}", chunk("x", "c"), chunk("x", "d")).as_bytes(), false);
    verdict(&host, "safe");
    assert!(stream.answer().text().contains("\"b\"") && !stream.answer().text().contains("\"c\""));
    // Nothing is paused now, and the next window is being judged.
    verdict(&host, "safe");
    let text = [chunk("m", "a"), chunk("m", "b"), chunk("m", "c"), chunk("m", "d")].concat();
    assert_eq!(stream.answer().text(), text);
    stream.response_data(finish("x").as_bytes(), true);
    assert_eq!(stream.answer().text(), format!("{text}{}", finish("m")));
    stream.finish();
}

#[test]
fn a_stream_that_its_client_leaves_is_no_business_of_the_clock() {
    let (host, vm) = start_checked(ASYNC);
    let mut stream = asked(&vm, STREAMED);
    stream.response(head_of(SSE), format!("{}{}", chunk("x", "a"), chunk("x", "b")).as_bytes(), false);
    stream.client_leaves();
    vm.tick("gateway");
    assert_eq!(vm.tick_period("gateway"), None);
    verdict(&host, "unsafe");
}

#[test]
fn a_blocked_json_answer_is_replaced_with_its_length() {
    for body in [QUESTION, STREAMED] {
        let (host, vm) = start(HOLD);
        let mut stream = asked(&vm, body);
        stream.response(head_of(JSON), whole("x", "secret").as_bytes(), true);
        verdict(&host, "unsafe\nS1");
        let answer = stream.answer();
        assert!(answer.text().contains("content_filter") && !answer.text().contains("secret"), "{}", answer.text());
        assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()));
        stream.finish();
    }
}

#[test]
fn the_load_is_asked_for_beside_the_canary_and_a_full_provider_is_passed_over() {
    let (host, vm) = start(r#"{"spill": {"waiting": 4}}"#);
    let cluster = || {
        let stream = asked(&vm, QUESTION);
        stream.forwarded().header("x-parapet-cluster").map(str::to_owned)
    };
    assert_eq!(cluster().as_deref(), Some("chain"), "nothing is known yet");
    vm.tick("gateway");
    let question = host.pending_callout("sidecar");
    assert_eq!(question.headers.get(":path"), Some("/internal/load"));
    say(&host, &host.pending_callout("guard"), "unsafe");
    host.answer(&question, 200, [], b"vllm 4 100\n");
    assert_eq!(cluster().as_deref(), Some("rest"));
    let period = vm.tick_period("gateway").unwrap();
    assert!(period.as_millis().abs_diff(250) <= 1, "{period:?}");
    // The sidecar fails: what was heard last counts for a while, then nothing is known.
    for _ in 0..8 {
        host.advance(period);
        vm.tick("gateway");
        host.answer_unreachable(&host.pending_callout("sidecar"));
    }
    assert_eq!(cluster().as_deref(), Some("chain"));
    host.advance(period);
    vm.tick("gateway");
    host.answer(&host.pending_callout("sidecar"), 200, [], b"vllm 9 100\n");
    assert_eq!(cluster().as_deref(), Some("rest"));
    assert!(host.pending_callouts().is_empty(), "the canary has had its verdict");
}
