//! Answers longer than a guard reads at once.

use parapet_engine::flow::{Call, End};
use parapet_engine::guard::Side;

use crate::host::{Host, Worker};
use crate::world::{JSON, SSE, answer, question, stream, whole};

const HOLD: &str = r#"{"output_guard": {"mode": "hold", "window_tokens": [8]}}"#;

/// Twenty-four kilobytes in forty texts, each with a mark at its beginning and at its end.
fn words() -> Vec<String> {
    (0..40).map(|i| format!("[{i:02}{}{i:02}]", "é".repeat(300))).collect()
}

fn marks(text: &str) -> Vec<String> {
    (0..40).flat_map(|i| [format!("[{i:02}"), format!("{i:02}]")]).filter(|mark| text.contains(mark)).collect()
}

/// Answers every output call, up to and without the one that is `unsafe_from`; what the safe ones read.
fn judge(host: &mut Host<'_>, read: &mut String, unsafe_from: usize) -> usize {
    let mut calls = 0;
    while let Some(callout) = host.pending.iter().find(|callout| callout.call == Call::Verdict(Side::Output)) {
        let request: serde_json::Value = serde_json::from_slice(&callout.body).unwrap();
        let prompt = request["prompt"].as_str().unwrap().to_owned();
        assert!(prompt.len() < 12_000, "a call reads {} bytes", prompt.len());
        if calls == unsafe_from {
            host.verdict(Call::Verdict(Side::Output), "unsafe\nS1");
        } else {
            read.push_str(&prompt);
            host.verdict(Call::Verdict(Side::Output), "safe");
        }
        calls += 1;
        let known = marks(read);
        let text = if host.text().contains("content_filter") { String::new() } else { host.text() };
        assert!(marks(&text).iter().all(|mark| known.contains(mark)), "text left that no call had read");
    }
    calls
}

#[test]
fn a_long_stream_is_judged_in_passages_and_nothing_unread_leaves() {
    let words = words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for size in [500, 9_000, 100_000] {
        let mut worker = Worker::new(HOLD);
        let mut host = worker.ask(&question(true));
        host.answers_with(SSE);
        let mut read = String::new();
        for bytes in stream(&answer(&words), "x").chunks(size) {
            host.response_body(bytes, false);
            judge(&mut host, &mut read, usize::MAX);
        }
        host.response_body(b"", true);
        judge(&mut host, &mut read, usize::MAX);
        assert!(host.response.complete && marks(&host.text()).len() == 80);
        assert_eq!(host.end(End::default()).answers[0].content, words.concat());
    }
}

#[test]
fn a_long_json_answer_is_judged_whole_before_any_of_it_leaves() {
    for unsafe_from in [usize::MAX, 2] {
        let mut worker = Worker::new(HOLD);
        let mut host = worker.ask(&question(false));
        host.answers_with(JSON);
        host.response_body(whole("x", &words().concat()).as_bytes(), true);
        let mut read = String::new();
        let calls = judge(&mut host, &mut read, unsafe_from);
        if unsafe_from == 2 {
            assert!(calls == 3 && marks(&host.text()).is_empty() && host.text().contains("content_filter"));
        } else {
            assert!(calls > 2 && marks(&read).len() == 80 && host.text() == whole("m", &words().concat()));
        }
        assert_eq!(host.end(End::default()).output_guard.unwrap().calls as usize, calls);
    }
}
