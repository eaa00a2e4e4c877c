use std::fs;

use serde_json::json;

use super::*;
use crate::accesslog::line;

fn record(n: u32, side: &str, verdict: &str, action: &str) -> Line {
    let mut record = json!({
        "v": 1, "id": format!("01a20791-8327-7764-a3ea-{n:012}"), "api": "chat", "tenant": "acme", "user": "alice",
        "policy": "default", "messages": [{"role": "user", "content": "the text itself"}],
    });
    record[format!("{side}_guard")] = json!({
        "verdict": verdict, "action": action, "categories": ["S1"], "score": 0.9, "model": "llama-guard",
        "start_us": 1_000_000, "end_us": 1_050_500, "text_digest": "ab".repeat(32),
    });
    line::parse(line::tests::line(&record.to_string()).as_bytes()).unwrap().0
}

fn blocks(range: std::ops::Range<u32>) -> Vec<Line> {
    range.map(|n| record(n, "input", "unsafe", "block")).collect()
}

#[test]
fn only_blocks_flags_and_failures_are_written_and_without_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let mut audit = Audit::open(dir.path()).unwrap();
    let records = [
        record(0, "input", "safe", "pass"),
        record(1, "input", "unsafe", "block"),
        record(2, "output", "unsafe", "flag"),
        record(3, "output", "failed", "pass"),
        record(4, "input", "pending", "pass"),
    ];
    assert_eq!(audit.append(&records).unwrap(), [Side::Input, Side::Output, Side::Output]);
    let path = dir.path().join("audit.jsonl");
    let events = tail(&path, 10).unwrap();
    assert_eq!(events.len(), 3);
    assert_eq!(events[0].time, "1970-01-01T00:00:01.050500+00:00");
    assert_eq!((events[0].tenant.as_str(), events[0].latency_ms, events[0].score), ("acme", Some(50.5), Some(0.9)));
    assert_eq!(events[0].text_hmac, events[1].text_hmac);
    let content = fs::read_to_string(&path).unwrap();
    assert!(!content.contains("the text itself") && !content.contains(&"ab".repeat(32)));
    assert_eq!(tail(&path, 1).unwrap(), events[2..]);
}

#[test]
fn the_text_is_written_where_the_record_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut line = record(1, "input", "unsafe", "block");
    let text = "a \"text\" \u{1} ".repeat(600);
    line.record.input_guard.as_mut().unwrap().text = Some(text.clone());
    Audit::open(dir.path()).unwrap().append(&[line]).unwrap();
    let path = dir.path().join("audit.jsonl");
    assert_eq!(tail(&path, 1).unwrap()[0].text.as_ref(), Some(&text));
    assert_eq!(verify(&path).unwrap().lines, 1);
}

#[test]
fn a_replay_after_a_restart_writes_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    Audit::open(dir.path()).unwrap().append(&blocks(0..3)).unwrap();
    let mut audit = Audit::open(dir.path()).unwrap();
    assert!(audit.append(&blocks(0..3)).unwrap().is_empty());
    let twice = [blocks(3..5), blocks(3..5)].concat_lines();
    assert_eq!(audit.append(&twice).unwrap().len(), 2);
    let verified = verify(&dir.path().join("audit.jsonl")).unwrap();
    assert_eq!(verified.lines, 5);
    assert_eq!(verified.head, audit.head);
}

trait ConcatLines {
    fn concat_lines(self) -> Vec<Line>;
}

impl ConcatLines for [Vec<Line>; 2] {
    fn concat_lines(self) -> Vec<Line> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn a_kill_in_mid_line_costs_only_that_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    Audit::open(dir.path()).unwrap().append(&blocks(0..2)).unwrap();
    let whole = fs::read(&path).unwrap();
    let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    for cut in first..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        Audit::open(dir.path()).unwrap().append(&blocks(0..2)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole, "cut at {cut}");
    }
}

#[test]
fn every_change_removal_and_insertion_is_found_at_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    Audit::open(dir.path()).unwrap().append(&blocks(0..5)).unwrap();
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let broken = |lines: &[&str]| {
        fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        verify(&path).unwrap_err()
    };
    let changed = lines[2].replace("alice", "mallo");
    assert_eq!(broken(&[lines[0], lines[1], &changed, lines[3]]), Broken { line: 3, why: Why::Changed });
    assert_eq!(broken(&[lines[0], lines[2]]), Broken { line: 2, why: Why::Unlinked });
    assert_eq!(broken(&[lines[1]]), Broken { line: 1, why: Why::Unlinked });
    assert_eq!(broken(&[lines[0], lines[0]]), Broken { line: 2, why: Why::Unlinked });
    assert_eq!(broken(&[lines[0], "{}"]), Broken { line: 2, why: Why::Unreadable });
    let last_changed = lines[4].replace("S1", "S2");
    assert_eq!(broken(&[lines[0], lines[1], lines[2], lines[3], &last_changed]).line, 5);

    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(verify(&path).unwrap_err(), Broken { line: 5, why: Why::Torn });
    for at in 0..whole.len() - 1 {
        let mut bytes = whole.clone().into_bytes();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(verify(&path).is_err(), "byte {at}");
    }
}
