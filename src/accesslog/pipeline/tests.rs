use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::accesslog::line::tests::line as wrap;
use crate::accesslog::tail;
use crate::cache::embedded::Embedded;
use crate::spool::{self, index};

fn id(n: usize) -> String {
    format!("01a20791-8327-7764-a3ea-{n:012}")
}

/// A record that reaches every effect.
fn record(n: usize) -> String {
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    wrap(
        &json!({
            "v": 1, "id": id(n), "api": "chat_completions", "status": 200, "tenant": "acme", "end_us": now_us as u64,
            "answers": [{"content": "x", "finish_reason": "stop"}],
            "cache": {"outcome": "miss", "key": format!("{n:064x}"), "store_s": 3600},
            "output_guard": {"verdict": "unsafe", "action": "flag"},
        })
        .to_string(),
    )
}

/// A sidecar's pipeline over what the directory holds, as after a start.
fn pipeline(dir: &Path) -> Pipeline {
    let spool = Spool::open(spool::Options {
        dir: dir.join("spool"),
        segment_bytes: 1500,
        max_bytes: 1 << 30,
        retention: Duration::from_secs(3600),
        destinations: vec!["langsmith".to_owned()],
    })
    .unwrap();
    let mut index = Index::new(index::CAPACITY);
    let board = Arc::new(Board::default());
    rebuild(&spool, &mut index, &board).unwrap();
    let position = PositionFile::new(dir.join("position.json"));
    let resume = position.load().unwrap();
    let options = tail::Options { grace: Duration::ZERO, ..tail::Options::new(dir.join("access.jsonl")) };
    Pipeline {
        arrivals: None,
        tail: Tail::new(options, resume),
        position,
        spool: Arc::new(spool),
        index: Arc::new(Mutex::new(index)),
        others: Index::new(OTHERS),
        audit: Audit::open(&dir.join("audit")).unwrap(),
        cache: Arc::new(Store::new(Embedded::open(&dir.join("cache.jsonl"), 1 << 20, 0).unwrap(), None)),
        metrics: Arc::new(Metrics::new()),
        board,
        rotator: None,
        stop: Arc::new(Stop::default()),
        sampled: None,
    }
}

fn write(dir: &Path, text: &str) {
    let path = dir.join("access.jsonl");
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn drain(pipeline: &mut Pipeline) {
    while pipeline.step().unwrap() {}
}

/// Ids in the spool, as often as they are there.
fn spooled(pipeline: &Pipeline) -> Vec<String> {
    let mut ids = Vec::new();
    pipeline.spool.for_each(|bytes| ids.push(line::parse(bytes).unwrap().0.record.id)).unwrap();
    ids
}

fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(id).collect()
}

#[test]
fn every_line_has_its_effects_once_and_bad_lines_hold_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let health = wrap(&json!({"v": 1, "id": id(99), "api": "health", "status": 200}).to_string());
    let lines = [record(0), wrap("-"), "garbage".into(), record(1), record(0), health, record(2)];
    write(dir.path(), &lines.map(|line| line + "\n").concat());
    let mut pipeline = pipeline(dir.path());
    drain(&mut pipeline);
    assert_eq!(spooled(&pipeline), ids(0..3));
    assert_eq!(pipeline.spool.stats().waiting, 3);
    assert_eq!(crate::audit::verify(&dir.path().join("audit/audit.jsonl")).unwrap().lines, 3);
    assert_eq!(pipeline.cache.size().0, 3);
    let text = pipeline.metrics.encode().unwrap();
    for expected in [
        "parapet_accesslog_records_total 4",
        "parapet_accesslog_duplicates_total 1",
        r#"parapet_accesslog_skipped_lines_total{reason="unrecorded"} 1"#,
        r#"parapet_accesslog_skipped_lines_total{reason="not_ours"} 1"#,
        r#"parapet_audit_events_total{side="output"} 3"#,
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn killed_after_any_of_its_writes_and_started_again_nothing_is_lost_or_doubled() {
    let dir = tempfile::tempdir().unwrap();
    let position = dir.path().join("position.json");
    let lines: Vec<String> = (0..8).map(|n| record(n) + "\n").collect();
    write(dir.path(), &lines[..4].concat());
    drain(&mut pipeline(dir.path()));
    let saved = fs::read(&position).unwrap();
    let before: Vec<u8> = fs::read(dir.path().join("audit/audit.jsonl")).unwrap();
    write(dir.path(), &lines[4..].concat());
    drain(&mut pipeline(dir.path()));
    let after = fs::read(dir.path().join("audit/audit.jsonl")).unwrap();

    // Everything but the position was written; then also not the audit log, wholly or in part.
    for audit in [&after[..], &after[..before.len() + 10], &before[..]] {
        fs::write(&position, &saved).unwrap();
        fs::write(dir.path().join("audit/audit.jsonl"), audit).unwrap();
        let mut pipeline = pipeline(dir.path());
        drain(&mut pipeline);
        assert_eq!(spooled(&pipeline), ids(0..8));
        assert_eq!(fs::read(dir.path().join("audit/audit.jsonl")).unwrap(), after);
    }
    // The position alone is lost: the whole log is read again.
    fs::remove_file(&position).unwrap();
    let mut pipeline = pipeline(dir.path());
    drain(&mut pipeline);
    assert_eq!(spooled(&pipeline), ids(0..8));
    assert_eq!(pipeline.spool.stats().waiting, 8);
}

#[test]
fn killed_at_every_byte_of_the_spool_nothing_is_lost_or_doubled() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &(0..3).map(|n| record(n) + "\n").collect::<String>());
    drain(&mut pipeline(dir.path()));
    let segment = dir.path().join("spool/00000000000000000001.jsonl");
    let whole = fs::read(&segment).unwrap();
    for cut in 0..whole.len() {
        fs::write(&segment, &whole[..cut]).unwrap();
        fs::remove_file(dir.path().join("position.json")).unwrap();
        let mut pipeline = pipeline(dir.path());
        drain(&mut pipeline);
        assert_eq!(spooled(&pipeline), ids(0..3), "cut at {cut}");
    }
}

#[test]
fn a_write_that_fails_is_tried_again_and_the_position_waits() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &(record(0) + "\n"));
    let pipeline = pipeline(dir.path());
    // The position cannot be saved while a directory stands where its temporary file goes.
    let blocker = dir.path().join("position.json.tmp");
    fs::create_dir(&blocker).unwrap();
    let (spool, metrics) = (Arc::clone(&pipeline.spool), Arc::clone(&pipeline.metrics));
    let stop = Arc::clone(&pipeline.stop);
    let thread = std::thread::spawn(move || pipeline.run());
    let deadline = Instant::now() + Duration::from_secs(20);
    let wait_for = |what: &dyn Fn() -> bool| {
        while !what() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for(&|| !metrics.encode().unwrap().contains("parapet_accesslog_write_retries_total 0"));
    assert_eq!(spool.stats().waiting, 0, "the upload must not see what may be read again");
    fs::remove_dir(&blocker).unwrap();
    wait_for(&|| spool.stats().waiting == 1);
    stop.stop();
    thread.join().unwrap();
    assert!(dir.path().join("position.json").exists());
}

#[tokio::test]
async fn a_line_that_both_sources_bring_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let (entrance, arrivals) = crate::als::arrivals::channel(1 << 20);
    let mut pipeline = Pipeline { arrivals: Some(arrivals), ..pipeline(dir.path()) };
    let health = wrap(&json!({"v": 1, "id": id(99), "api": "health", "status": 200}).to_string());
    for line in [record(0), "garbage".to_owned(), record(1), health.clone()] {
        assert!(entrance.put(line.into_bytes()).await);
    }
    write(dir.path(), &[record(1), health, record(2)].map(|line| line + "\n").concat());
    drain(&mut pipeline);
    assert!(entrance.put(record(2).into_bytes()).await);
    drain(&mut pipeline);
    assert_eq!(spooled(&pipeline), ids(0..3));
    let text = pipeline.metrics.encode().unwrap();
    for line in ["parapet_accesslog_records_total 4", "parapet_accesslog_duplicates_total 3"] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn what_has_arrived_before_the_end_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (entrance, arrivals) = crate::als::arrivals::channel(1 << 20);
    let pipeline = Pipeline { arrivals: Some(arrivals), ..pipeline(dir.path()) };
    let spool = Arc::clone(&pipeline.spool);
    assert!(entrance.put(record(0).into_bytes()).await);
    pipeline.stop.stop();
    pipeline.run();
    assert_eq!(spool.stats().lines, 1);
}
