//! What verdicts do, call by call.

use parapet_engine::flow::{Call, End};
use parapet_engine::guard::Side;
use parapet_engine::guard::dialect::Dialect;

use crate::host::Worker;
use crate::world::{JSON, Piece, SSE, answer, question, stream, whole};

fn input(mode: &str, more: &str) -> Worker {
    Worker::new(&format!(r#"{{"input_guard": {{"mode": "{mode}"{more}}}}}"#))
}

fn output(mode: &str, more: &str) -> Worker {
    Worker::new(&format!(r#"{{"output_guard": {{"mode": "{mode}"{more}}}}}"#))
}

/// Every guard of the policy ignores every category that a list can hold.
fn lenient(dialect: Dialect) -> Worker {
    let every: Vec<String> = (1..=14).map(|number| format!(r#""S{number}""#)).collect();
    let guard = format!(r#"{{"mode": "MODE", "categories": {{"ignore": [{}]}}}}"#, every.join(","));
    let (input, output) = (guard.replace("MODE", "parallel"), guard.replace("MODE", "hold"));
    let mut worker = Worker::new(&format!(r#"{{"input_guard": {input}, "output_guard": {output}}}"#));
    worker.config.guard.as_mut().unwrap().dialect = dialect;
    worker
}

#[test]
fn a_guard_without_categories_is_asked_once_and_its_word_blocks() {
    let mut worker = lenient(Dialect::ShieldGemma);
    let mut host = worker.ask(&question(false));
    host.answers_with(JSON);
    host.verdict(Call::Verdict(Side::Input), "Yes");
    assert_eq!(host.refused(), (403, "content_blocked".to_owned()));
    let guard = host.end(End::default()).input_guard.unwrap();
    assert_eq!((guard.calls, &*guard.verdict, guard.categories), (1, "unsafe", Vec::new()));

    let mut worker = lenient(Dialect::ShieldGemma);
    let mut host = worker.ask(&question(false));
    host.verdict(Call::Verdict(Side::Input), "No");
    host.answers_with(JSON);
    host.response_body(whole("x", "secret").as_bytes(), true);
    host.verdict(Call::Verdict(Side::Output), "Yes");
    assert!(host.text().contains("content_filter") && !host.text().contains("secret"), "{}", host.text());
    assert_eq!(host.end(End::default()).output_guard.unwrap().calls, 1);
}

#[test]
fn another_familys_categories_are_ours_and_what_is_none_of_them_blocks() {
    for (names, categories, status) in
        [("PII", &["S7"][..], 200), ("PII, Jailbreak", &["other", "S7"], 403), ("None", &[], 403)]
    {
        let mut worker = lenient(Dialect::Qwen3Guard);
        let mut host = worker.ask(&question(false));
        host.answers_with(JSON);
        let asked = host.pending.iter().find(|callout| callout.call == Call::Verdict(Side::Input)).unwrap();
        let body = String::from_utf8(asked.body.clone()).unwrap();
        assert!(body.contains(r"USER: hello\n\n<END CONVERSATION>") && asked.path == "/v1/completions", "{body}");
        host.verdict(Call::Verdict(Side::Input), " Unsafe");
        host.verdict(Call::Categories(Side::Input), &format!(" Unsafe\nCategories: {names}"));
        assert_eq!(host.reply.as_ref().map_or(200, |reply| reply.status), status, "{names}");
        let guard = host.end(End::default()).input_guard.unwrap();
        assert_eq!(guard.categories, categories, "{names}");
    }
}

#[test]
fn the_words_of_another_family_are_no_verdict() {
    for (dialect, word) in [(Dialect::LlamaGuard4, "No"), (Dialect::Qwen3Guard, "safe"), (Dialect::ShieldGemma, "safe")]
    {
        let mut worker = lenient(dialect);
        let mut host = worker.ask(&question(false));
        host.answers_with(JSON);
        host.verdict(Call::Verdict(Side::Input), word);
        assert_eq!(host.refused(), (503, "guard_unavailable".to_owned()), "{dialect:?}");
    }
}

#[test]
fn in_parallel_mode_the_request_goes_on_and_the_answer_waits() {
    let mut worker = input("parallel", "");
    let mut host = worker.ask(&question(false));
    assert!(host.sent.is_some() && !host.flow.request_waits());
    host.answers_with(JSON);
    host.response_body(whole("x", "hi").as_bytes(), true);
    assert!(!host.response.head_out);
    host.verdict(Call::Verdict(Side::Input), "safe");
    assert_eq!(host.text(), whole("m", "hi"));
    assert_eq!(host.header("content-length"), Some(&*whole("m", "hi").len().to_string()));
    let record = host.end(End::default());
    let guard = record.input_guard.unwrap();
    assert_eq!((&*guard.mode, &*guard.verdict, &*guard.action, guard.calls), ("parallel", "safe", "pass", 1));
    assert_eq!((record.cost_nanousd, record.client_aborted), (19_000, false));
}

#[test]
fn in_blocking_mode_or_where_the_request_acts_nothing_is_sent_before_the_verdict() {
    let acts = r#"{"store":true,"messages":[{"role":"user","content":"hello"}]}"#;
    for (mode, body) in [("blocking", &*question(false)), ("parallel", acts)] {
        let mut worker = input(mode, "");
        let mut host = worker.ask(body);
        assert!(host.sent.is_none() && host.flow.request_waits(), "{mode}");
        host.verdict(Call::Verdict(Side::Input), "safe");
        assert!(host.sent.is_some() && !host.flow.request_waits());
        assert_eq!(host.end(End::default()).input_guard.unwrap().mode, "blocking");
    }
}

#[test]
fn an_unsafe_input_is_refused_with_its_categories_in_every_phase() {
    for phase in 0..4 {
        let mut worker = input("parallel", "");
        let mut host = worker.ask(&question(true));
        if phase > 0 {
            host.answers_with(SSE);
        }
        if phase > 1 {
            host.response_body(&stream(&answer(&["a"]), "x"), phase > 2);
        }
        host.verdict(Call::Verdict(Side::Input), "unsafe");
        assert!(host.reply.is_none() && host.waits_for(Call::Categories(Side::Input)), "one token names no category");
        host.verdict(Call::Categories(Side::Input), "unsafe\nS1,S10");
        assert_eq!(host.refused(), (403, "content_blocked".to_owned()));
        let body = String::from_utf8(host.reply.clone().unwrap().body).unwrap();
        assert!(body.contains(r#""categories":["S1","S10"]"#), "{body}");
        assert_eq!(host.reply_header("x-should-retry"), Some("false"));
        let record = host.end(End::default());
        assert_eq!(record.input_guard.unwrap().calls, 2);
        assert_eq!((record.status, record.reason.as_deref()), (403, Some("content_blocked")));
    }
}

#[test]
fn a_stream_that_breaks_off_before_the_inputs_verdict_is_an_error_answer() {
    for (word, refused) in [("safe", (502, "upstream_error")), ("unsafe\nS1", (403, "content_blocked"))] {
        for pieces in [vec![Piece::Text("a".into())], vec![Piece::Text("a".into()), Piece::Error, Piece::Done]] {
            let mut worker = Worker::new(r#"{"input_guard": {"mode": "parallel"}, "output_guard": {"mode": "hold"}}"#);
            let mut host = worker.ask(&question(true));
            host.answers_with(SSE);
            host.response_body(&stream(&pieces, "x"), true);
            assert!(host.reply.is_none() && !host.response.head_out);
            host.verdict(Call::Verdict(Side::Input), word);
            assert_eq!(host.refused(), (refused.0, refused.1.to_owned()));
            assert_eq!(host.end(End::default()).reason.as_deref(), Some(refused.1));
        }
    }
}

/// No event says that it ends: its text is judged all the same.
#[test]
fn an_async_stream_whose_last_event_is_text_waits_for_its_verdict() {
    for (word, refuses) in [("safe", false), ("unsafe\nS1", true)] {
        let mut worker = output("async", "");
        let mut host = worker.ask(&question(true));
        host.answers_with(SSE);
        host.response_body(&stream(&[Piece::LastText("a".into())], "x"), true);
        assert!(!host.response.complete && host.waits_for(Call::Verdict(Side::Output)));
        host.verdict(Call::Verdict(Side::Output), word);
        assert!(host.response.complete || host.reply.is_some());
        assert_eq!(host.text().contains("content_filter"), refuses, "{}", host.text());
        assert_eq!(host.end(End::default()).reason.is_some(), refuses);
    }
}

#[test]
fn tokens_of_a_provider_that_is_slower_than_a_reader_are_judged_as_they_come() {
    for (mode, pause_us, asks) in [("hold", 250_000, true), ("hold", 200_000, false), ("full", 900_000, false)] {
        let mut worker = output(mode, "");
        let mut host = worker.ask(&question(true));
        host.answers_with(SSE);
        host.response_body(&stream(&[Piece::Text("one ".into())], "x"), false);
        assert!(!host.waits_for(Call::Verdict(Side::Output)));
        host.worker.now_us += pause_us;
        host.response_body(&stream(&[Piece::Text("two ".into())], "x"), false);
        assert_eq!(host.waits_for(Call::Verdict(Side::Output)), asks, "{mode} {pause_us}");
        if asks {
            host.verdict(Call::Verdict(Side::Output), "safe");
            assert!(host.text().contains("one ") && host.text().contains("two "), "{}", host.text());
            // Or a sign of life, however old the tokens are.
            host.response_body(&stream(&[Piece::Text("three ".into())], "x"), false);
            host.worker.now_us += pause_us;
            host.response_body(&stream(&[Piece::Comment], "x"), false);
            assert!(host.waits_for(Call::Verdict(Side::Output)));
        }
    }
}

#[test]
fn a_categories_call_that_fails_excuses_nothing() {
    let mut worker = input("parallel", r#", "on_failure": "open""#);
    let mut host = worker.ask(&question(false));
    host.verdict(Call::Verdict(Side::Input), "unsafe");
    host.answer(Call::Categories(Side::Input), 504, b"");
    assert_eq!(host.refused().0, 403);
}

#[test]
fn a_guard_that_fails_closes_or_opens_as_the_policy_says() {
    for (more, passes) in [("", false), (r#", "on_failure": "open""#, true)] {
        for (status, body) in [(0, &b""[..]), (504, b"timeout"), (200, b"<html>"), (200, br#"{"choices":[]}"#)] {
            let mut worker = input("blocking", more);
            let mut host = worker.ask(&question(false));
            host.answer(Call::Verdict(Side::Input), status, body);
            assert_eq!(host.sent.is_some(), passes, "{status} {more}");
            if !passes {
                assert_eq!(host.refused(), (503, "guard_unavailable".to_owned()));
            }
            let guard = host.end(End::default()).input_guard.unwrap();
            assert_eq!((&*guard.verdict, &*guard.action), ("failed", if passes { "flag" } else { "block" }));
            assert_eq!(worker.ask(&question(false)).calls, 1, "a failure is not remembered");
        }
    }
}

#[test]
fn a_remembered_verdict_costs_no_call_until_it_is_a_day_old() {
    for (word, status) in [("safe", 0), ("unsafe\nS1", 403)] {
        let mut worker = input("parallel", "");
        let mut host = worker.ask(&question(false));
        host.verdict(Call::Verdict(Side::Input), word);
        host.end(End::default());
        let mut host = worker.ask(&question(false));
        assert_eq!((host.calls, host.reply.as_ref().map_or(0, |reply| reply.status)), (0, status));
        assert_eq!(host.end(End::default()).input_guard.unwrap().calls, 0);
        worker.now_us += 24 * 3600 * 1_000_000;
        assert_eq!(worker.ask(&question(false)).calls, 1);
    }
}

#[test]
fn ignored_and_flagged_categories_let_pass() {
    let mut worker = input("blocking", r#", "categories": {"flag": ["S6"], "ignore": ["S5"]}"#);
    for (text, action) in [("unsafe\nS5", "pass"), ("unsafe\nS6", "flag"), ("unsafe\nS6,S1", "block")] {
        let body = question(false).replace("hello", text.trim_start_matches("unsafe\n"));
        let mut host = worker.ask(&body);
        host.verdict(Call::Verdict(Side::Input), text);
        assert_eq!(host.sent.is_some(), action != "block");
        assert_eq!(host.end(End::default()).input_guard.unwrap().action, action);
    }
}

#[test]
fn a_blocked_json_answer_is_the_refusal_in_the_clients_form() {
    for (path, body, expected) in [
        ("/v1/chat/completions", question(false), r#""finish_reason":"content_filter""#),
        ("/chat", r#"{"message":"hello"}"#.to_owned(), r#"{"answer":"I'm unable"#),
    ] {
        let mut worker = output("hold", "");
        let mut host = worker.open();
        host.request(path, &[], body.as_bytes());
        host.answers_with(JSON);
        host.response_body(whole("x", "secret").as_bytes(), true);
        assert!(!host.response.head_out);
        host.verdict(Call::Verdict(Side::Output), "unsafe\nS2");
        let text = host.text();
        assert!(text.contains(expected) && !text.contains("secret"), "{text}");
        assert_eq!(host.header("content-length"), Some(&*text.len().to_string()));
        let record = host.end(End::default());
        assert_eq!((record.status, record.reason.as_deref()), (200, Some("output_blocked")));
        assert!(record.answers[0].content.starts_with("I'm unable"));
        assert_eq!(record.usage.unwrap().completion, 5);
    }
}

#[test]
fn a_blocked_stream_ends_with_content_filter_and_done() {
    for mode in ["hold", "full", "async"] {
        let mut worker = output(mode, r#", "window_tokens": [2]"#);
        let mut host = worker.ask(&question(true));
        host.answers_with(SSE);
        host.response_body(&stream(&answer(&["one"])[..2], "x"), false);
        host.response_body(&stream(&answer(&["two"])[1..], "x"), true);
        host.verdict(Call::Verdict(Side::Output), "unsafe");
        host.verdict(Call::Categories(Side::Output), "unsafe\nS2");
        let text = host.text();
        assert_eq!(text.contains("one"), mode == "async");
        assert!(text.contains(r#""finish_reason":"content_filter""#) && text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!((host.response.complete || host.reply.is_some()) && !text.contains(r#""finish_reason":"stop""#));
        assert_eq!(host.end(End::default()).reason.as_deref(), Some("output_blocked"));
    }
}

#[test]
fn an_output_guard_that_fails_closed_ends_a_stream_without_done() {
    let mut worker = output("hold", r#", "window_tokens": [1]"#);
    let mut host = worker.ask(&question(true));
    host.answers_with(SSE);
    host.response_body(&stream(&answer(&["one"])[..2], "x"), false);
    host.verdict(Call::Verdict(Side::Output), "safe");
    assert!(host.text().contains("one"));
    host.response_body(&stream(&answer(&["two"])[1..2], "x"), false);
    host.answer(Call::Verdict(Side::Output), 504, b"");
    let text = host.text();
    assert!(text.contains("guard_unavailable") && !text.contains("[DONE]") && !text.contains("two"), "{text}");
    host.response_body(&stream(&answer(&["three"])[1..], "x"), true);
    assert_eq!(host.text(), text, "nothing follows");
}

#[test]
fn an_output_guard_that_fails_closed_before_any_byte_is_a_503() {
    for (content_type, body) in [(SSE, stream(&answer(&["one"]), "x")), (JSON, whole("x", "one").into_bytes())] {
        let mut worker = output("hold", "");
        let mut host = worker.ask(&question(true));
        host.answers_with(content_type);
        host.response_body(&body, true);
        host.answer(Call::Verdict(Side::Output), 0, b"");
        assert_eq!(host.refused(), (503, "guard_unavailable".to_owned()));
        host.end(End::default());
    }
}

#[test]
fn a_held_answer_without_text_is_released_when_it_ends() {
    for mode in ["hold", "full", "async"] {
        for reason in ["stop", "length", "content_filter"] {
            let pieces = [Piece::Role, Piece::Comment, Piece::Finish(reason), Piece::Usage, Piece::Done];
            let mut worker = output(mode, "");
            let mut host = worker.ask(&question(true));
            host.answers_with(SSE);
            host.response_body(&stream(&pieces, "x"), true);
            assert!(host.response.complete && !host.flow.response_waits(), "{mode} {reason}: nobody can wake it");
            assert!(host.text().contains(reason));
        }
    }
}

#[test]
fn what_passed_leaves_while_the_next_window_is_judged() {
    let mut worker = output("hold", r#", "window_tokens": [2]"#);
    let mut host = worker.ask(&question(true));
    host.answers_with(SSE);
    let words = ["w1", "w2", "w3", "w4", "w5", "w6"];
    for piece in &answer(&words)[..5] {
        host.response_body(&stream(core::slice::from_ref(piece), "x"), false);
    }
    host.verdict(Call::Verdict(Side::Output), "safe");
    assert!(host.waits_for(Call::Verdict(Side::Output)), "the next window was full already");
    assert!(host.text().contains("w2") && !host.text().contains("w3"), "{}", host.text());
    for piece in &answer(&words)[5..7] {
        host.response_body(&stream(core::slice::from_ref(piece), "x"), false);
    }
    assert!(!host.text().contains("w3"));
    host.verdict(Call::Verdict(Side::Output), "safe");
    assert!(host.text().contains("w4") && !host.text().contains("w5"), "{}", host.text());
}

#[test]
fn a_client_that_waits_long_for_a_verdict_gets_comments_and_nothing_else() {
    let mut worker = output("full", "");
    let mut host = worker.ask(&question(true));
    host.answers_with(SSE);
    let pieces = answer(&["one", "two", "three"]);
    host.response_body(&stream(&pieces[..2], "x"), false);
    assert_eq!(host.text(), "", "a short wait is silent");
    host.worker.now_us += 6_000_000;
    host.response_body(&stream(&pieces[2..3], "x"), false);
    assert_eq!(host.text(), ": keep-alive\n\n");
    host.response_body(&stream(&pieces[3..], "x"), true);
    assert_eq!(host.text(), ": keep-alive\n\n");
    host.verdict(Call::Verdict(Side::Output), "safe");
    assert!(host.text().contains("three") && host.text().ends_with("data: [DONE]\n\n"), "{}", host.text());
}

#[test]
fn in_async_mode_nothing_leaves_after_the_word_unsafe_while_the_categories_are_asked_for() {
    let mut worker = output("async", r#", "window_tokens": [1]"#);
    let mut host = worker.ask(&question(true));
    host.answers_with(SSE);
    let pieces = answer(&["one", "two", "three"]);
    host.response_body(&stream(&pieces[..2], "x"), false);
    assert!(host.text().contains("one"));
    host.verdict(Call::Verdict(Side::Output), "unsafe");
    host.response_body(&stream(&pieces[2..3], "x"), false);
    assert!(!host.text().contains("two"));
    host.verdict(Call::Categories(Side::Output), "unsafe\nS2");
    let text = host.text();
    assert!(!text.contains("two") && text.ends_with("data: [DONE]\n\n"), "the ending leaves at once: {text}");
}

#[test]
fn a_stream_of_which_something_has_left_is_cut_before_its_categories_are_known() {
    for (more, at_once) in [("", true), (r#", "categories": {"flag": ["S6"]}"#, false)] {
        for mode in ["async", "hold"] {
            let mut worker = output(mode, &format!(r#", "window_tokens": [1]{more}"#));
            let mut host = worker.ask(&question(true));
            host.answers_with(SSE);
            let pieces = answer(&["one", "two", "three"]);
            host.response_body(&stream(&pieces[..2], "x"), false);
            host.verdict(Call::Verdict(Side::Output), "safe");
            host.response_body(&stream(&pieces[2..3], "x"), false);
            host.verdict(Call::Verdict(Side::Output), "unsafe");
            let text = host.text();
            assert_eq!(text.ends_with("data: [DONE]\n\n"), at_once, "{mode} {more}: {text}");
            let asked = host.pending.iter().find(|callout| callout.call == Call::Categories(Side::Output)).unwrap();
            assert_eq!(asked.timeout_ms < 50, at_once, "the provider is cut off soon whether they come or not");
            assert!(host.flow.abandons_in().is_none());
            host.verdict(Call::Categories(Side::Output), "unsafe\nS2,S6");
            assert!(host.text().ends_with("data: [DONE]\n\n") && host.flow.abandons_in().is_some(), "{mode} {more}");
            host.response_body(&stream(&pieces[3..4], "x"), false);
            assert!(host.aborted && !host.text().contains("three"));
            let guard = host.end(End::default()).output_guard.unwrap();
            assert_eq!((&*guard.verdict, &*guard.action, guard.calls), ("unsafe", "block", 3));
            assert_eq!(guard.categories, ["S2", "S6"], "{mode} {more}");
        }
    }
}

#[test]
fn a_cut_stream_whose_provider_is_done_ends_with_its_categories() {
    let mut worker = output("async", r#", "window_tokens": [1]"#);
    let mut host = worker.ask(&question(true));
    host.answers_with(SSE);
    let pieces = answer(&["one", "two"]);
    host.response_body(&stream(&pieces[..2], "x"), false);
    host.verdict(Call::Verdict(Side::Output), "unsafe");
    host.response_body(&stream(&pieces[2..], "x"), true);
    assert!(host.text().ends_with("data: [DONE]\n\n") && !host.response.complete);
    host.answer(Call::Categories(Side::Output), 504, b"");
    assert!(host.response.complete && !host.aborted && !host.text().contains("two"));
    assert_eq!(host.end(End::default()).output_guard.unwrap().categories, Vec::<String>::new());
}

fn message(parts: &str) -> String {
    format!(r#"{{"messages":[{{"role":"user","content":[{parts}]}}]}}"#)
}

#[test]
fn what_no_guard_is_shown_is_refused_unless_the_policy_flags_it() {
    let body = message(r#"{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:"}}"#);
    let mut worker = input("parallel", "");
    let mut host = worker.ask(&body);
    assert_eq!(host.refused(), (403, "content_not_judged".to_owned()));
    assert!(host.text().is_empty() && host.sent.is_none() && host.calls == 0);
    let reply = String::from_utf8(host.reply.clone().unwrap().body).unwrap();
    assert!(reply.contains(r#""param":"messages[0].content[1]""#) && reply.contains("image_url"), "{reply}");
    let guard = host.end(End::default()).input_guard.unwrap();
    assert_eq!((&*guard.verdict, &*guard.action), ("failed", "block"));

    let mut worker = input("parallel", r#", "media": "flag""#);
    for (word, passes) in [("safe", true), ("unsafe\nS1", false)] {
        let body = body.replace("look", word.split('\n').next().unwrap());
        let mut host = worker.ask(&body);
        assert!(host.sent.as_ref().is_some_and(|sent| String::from_utf8_lossy(sent).contains("image_url")));
        host.verdict(Call::Verdict(Side::Input), word);
        assert_eq!(host.reply.is_none(), passes);
        let guard = host.end(End::default()).input_guard.unwrap();
        assert_eq!(guard.action, if passes { "flag" } else { "block" });
    }

    // Without an input guard, nobody minds; and what is text by another name is text.
    assert!(output("hold", "").ask(&body).sent.is_some());
    let text = message(r#"{"type":"input_text","text":"look"}"#);
    assert!(input("parallel", "").ask(&text).waits_for(Call::Verdict(Side::Input)));
}

#[test]
fn a_message_longer_than_the_guard_reads_is_asked_about_piece_by_piece() {
    let text = |kilobytes: usize| (0..kilobytes * 100).map(|word| format!("word{word:05} ")).collect::<String>();
    let ask = |text: &str| format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#);
    for unsafe_at in [None, Some(0), Some(2)] {
        let mut worker = input("parallel", "");
        let mut host = worker.ask(&ask(&text(30)));
        assert!(host.sent.is_some(), "the model works meanwhile");
        host.answers_with(JSON);
        host.response_body(whole("x", "hi").as_bytes(), true);
        let mut read = String::new();
        let mut calls = 0;
        while let Some(callout) = host.pending.iter().find(|callout| callout.call == Call::Verdict(Side::Input)) {
            assert!(!host.response.head_out, "nothing leaves before the last piece has passed");
            read.push_str(&String::from_utf8_lossy(&callout.body));
            host.verdict(Call::Verdict(Side::Input), if unsafe_at == Some(calls) { "unsafe\nS1" } else { "safe" });
            calls += 1;
        }
        assert_eq!(calls, unsafe_at.map_or(3, |at| at + 1));
        assert_eq!(host.response.head_out, unsafe_at.is_none());
        assert!(unsafe_at.is_some() || (0..3000).all(|word| read.contains(&format!("word{word:05}"))));
        assert_eq!(host.end(End::default()).input_guard.unwrap().calls as usize, calls);
        // What is remembered is the verdict on all of it.
        assert_eq!(worker.ask(&ask(&text(30))).calls, 0);
    }
    for (more, status) in [("", 413), (r#", "on_failure": "open""#, 200)] {
        let mut worker = input("parallel", more);
        worker.config.max_request_bytes = usize::MAX;
        let mut host = worker.ask(&ask(&text(900)));
        assert_eq!(host.reply.as_ref().map_or(200, |reply| reply.status), status);
        let guard = host.end(End::default()).input_guard.unwrap();
        assert_eq!((&*guard.verdict, guard.calls), ("failed", 0));
        assert_eq!(guard.action, if status == 200 { "flag" } else { "block" });
    }
}

#[test]
fn the_judged_text_is_recorded_only_where_the_policy_says_so() {
    let both = r#""input_guard": {"mode": "parallel"}, "output_guard": {"mode": "hold"}"#;
    for (more, texts) in [("", [None, None]), (r#", "audit": {"text": true}"#, [Some("hello"), Some("secret")])] {
        let policy = format!("{{{both}{more}}}");
        let mut worker = Worker::new(&policy);
        let mut host = worker.ask(&question(false));
        host.verdict(Call::Verdict(Side::Input), "unsafe\nS1");
        let guard = host.end(End::default()).input_guard.unwrap();
        assert_eq!((guard.text.as_deref(), guard.text_digest.is_some()), (texts[0], true));

        let mut worker = Worker::new(&policy);
        let mut host = worker.ask(&question(false));
        host.verdict(Call::Verdict(Side::Input), "safe");
        host.answers_with(JSON);
        host.response_body(whole("x", "secret").as_bytes(), true);
        host.verdict(Call::Verdict(Side::Output), "unsafe\nS1");
        let record = host.end(End::default());
        assert_eq!(record.input_guard.unwrap().text, None, "what is safe is nobody's business");
        assert_eq!(record.output_guard.unwrap().text.as_deref(), texts[1]);
    }
}
