use std::fs::OpenOptions;
use std::io::Write as _;

use super::*;

struct Log {
    dir: tempfile::TempDir,
}

impl Log {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("access.jsonl")
    }

    fn write(&self, text: &str) {
        append(&self.path(), text);
    }

    fn rotate(&self, suffix: &str) -> PathBuf {
        let to = self.dir.path().join(format!("access.jsonl.{suffix}"));
        fs::rename(self.path(), &to).unwrap();
        to
    }

    fn tail(&self, resume: Option<Position>) -> Tail {
        Tail::new(Options { path: self.path(), max_line: 64, grace: Duration::ZERO }, resume)
    }
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// Everything that is there now, and the last position.
fn drain(tail: &mut Tail, max_bytes: usize) -> (Vec<String>, Option<Position>) {
    let mut lines = Vec::new();
    loop {
        let polled = tail.poll(max_bytes).unwrap();
        let idle = polled.is_idle() && polled.partial == 0 || polled.position.is_none();
        let stuck = polled.is_idle();
        lines.extend(polled.lines.into_iter().map(|line| String::from_utf8(line).unwrap()));
        if idle || stuck {
            let at_end =
                tail.current.as_ref().is_none_or(|current| current.read_to == current.file.metadata().unwrap().len());
            if at_end {
                return (lines, polled.position);
            }
        }
    }
}

#[test]
fn a_file_that_comes_later_is_read_from_its_start() {
    let log = Log::new();
    let mut tail = log.tail(None);
    assert!(tail.poll(100).unwrap().position.is_none());
    log.write("one\ntwo\n");
    assert_eq!(drain(&mut tail, 100).0, ["one", "two"]);
}

#[test]
fn a_partial_line_waits_for_its_end() {
    let log = Log::new();
    let mut tail = log.tail(None);
    for piece in ["o", "ne\ntw", "", "o\n"] {
        log.write(piece);
        tail.poll(100).unwrap_or_default();
    }
    assert_eq!(tail.offset(), 8);
}

#[test]
fn killed_and_resumed_at_every_byte_every_line_comes_once() {
    let whole = "first line\nsecond\n\nthird line, a bit longer\nfourth\n";
    let expected: Vec<&str> = whole.lines().filter(|line| !line.is_empty()).collect();
    for cut in 0..=whole.len() {
        for step in [1, 7, 1000] {
            let log = Log::new();
            log.write(&whole[..cut]);
            let (mut seen, position) = drain(&mut log.tail(None), step);
            log.write(&whole[cut..]);
            seen.extend(drain(&mut log.tail(position), step).0);
            assert_eq!(seen, expected, "cut at {cut}, {step} bytes at a time");
        }
    }
}

#[test]
fn rotated_at_every_byte_and_killed_on_either_side_every_line_comes_once() {
    let old = "first line\nsecond\n";
    for cut in 0..=old.len() {
        for killed in [false, true] {
            let log = Log::new();
            log.write(&old[..cut]);
            let mut tail = log.tail(None);
            let (mut seen, position) = drain(&mut tail, 5);
            let rotated = log.rotate("1");
            if killed {
                tail = log.tail(position);
            }
            seen.extend(drain(&mut tail, 5).0);
            append(&rotated, &old[cut..]);
            log.write("third\n");
            seen.extend(drain(&mut tail, 5).0);
            assert_eq!(seen, ["first line", "second", "third"], "cut at {cut}, killed: {killed}");
        }
    }
}

#[test]
fn the_old_file_is_watched_until_the_new_one_is_written_to() {
    let log = Log::new();
    log.write("one\n");
    let mut tail = log.tail(None);
    drain(&mut tail, 100);
    let rotated = log.rotate("1");
    log.write("");
    assert!(tail.poll(100).unwrap().is_idle());
    append(&rotated, "two\n");
    assert_eq!(tail.poll(100).unwrap().lines, [b"two"]);
    log.write("three\n");
    assert!(tail.poll(100).unwrap().switched);
    assert_eq!(tail.poll(100).unwrap().lines, [b"three"]);
}

#[test]
fn several_rotations_in_a_restart_are_read_in_order() {
    let log = Log::new();
    log.write("one\n");
    let (_, position) = drain(&mut log.tail(None), 100);
    log.write("two\n");
    let first = log.rotate("2");
    log.write("three\n");
    let second = log.rotate("1");
    log.write("");
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::open(first).unwrap().set_modified(at(100)).unwrap();
    File::open(second).unwrap().set_modified(at(200)).unwrap();
    let mut tail = log.tail(position);
    assert_eq!(drain(&mut tail, 100).0, ["two", "three"], "the newest file is empty yet");
    log.write("four\n");
    assert_eq!(drain(&mut tail, 100).0, ["four"]);
}

#[test]
fn a_torn_last_line_of_a_rotated_file_is_handed_out() {
    let log = Log::new();
    log.write("one\ntorn");
    let mut tail = log.tail(None);
    drain(&mut tail, 100);
    log.rotate("1");
    log.write("two\n");
    let polled = tail.poll(100).unwrap();
    assert_eq!((polled.lines, polled.switched), (vec![b"torn".to_vec()], true));
    assert_eq!(tail.poll(100).unwrap().lines, [b"two"]);
}

#[test]
fn a_cut_file_is_read_from_its_start() {
    for (before, after) in [("one\ntwo\n", "x\n"), ("one\n", "x\ny\nz\n"), ("one\ntwo\npart", "new\n")] {
        for killed in [false, true] {
            let log = Log::new();
            log.write(before);
            let mut tail = log.tail(None);
            let (_, position) = drain(&mut tail, 100);
            if killed {
                tail = log.tail(position);
            }
            fs::write(log.path(), after).unwrap();
            let polled = tail.poll(100).unwrap();
            assert!(polled.truncated && !polled.lost, "{before:?} {after:?} killed: {killed}");
            let lines: Vec<_> = polled.lines.iter().map(|line| std::str::from_utf8(line).unwrap()).collect();
            assert_eq!(lines, after.lines().collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_saved_position_whose_file_is_gone_is_said_to_be_lost() {
    let log = Log::new();
    log.write("one\n");
    let (_, position) = drain(&mut log.tail(None), 100);
    let rotated = log.rotate("1");
    log.write("two\n");
    fs::remove_file(rotated).unwrap();
    let polled = log.tail(position).poll(100).unwrap();
    assert!(polled.lost);
    assert_eq!(polled.lines, [b"two"]);
}

#[test]
fn a_line_too_long_is_skipped_once_however_it_arrives() {
    for step in [1, 10, 1000] {
        let log = Log::new();
        let mut tail = log.tail(None);
        let (mut lines, mut too_long) = (Vec::new(), 0);
        let text = format!("one\n{}\ntwo\n{}\nthree\n", "x".repeat(64), "y".repeat(63));
        for piece in text.as_bytes().chunks(step) {
            log.write(std::str::from_utf8(piece).unwrap());
            let polled = tail.poll(1000).unwrap();
            too_long += polled.too_long;
            lines.extend(polled.lines);
        }
        assert_eq!(too_long, 1);
        assert_eq!(lines, [b"one".to_vec(), b"two".to_vec(), b"y".repeat(63), b"three".to_vec()]);
    }
}

#[test]
fn without_a_position_the_rotated_files_are_read_too() {
    let log = Log::new();
    log.write("one\n");
    File::open(log.rotate("1")).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(100)).unwrap();
    log.write("two\n");
    assert_eq!(drain(&mut log.tail(None), 100).0, ["one", "two"]);
}
