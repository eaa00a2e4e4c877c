use std::path::Path;

use super::*;

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        segment_bytes: 20,
        max_bytes: 1 << 30,
        retention: Duration::from_secs(3600),
        destinations: vec!["a".to_owned()],
    }
}

fn texts(batch: &Batch) -> Vec<String> {
    batch.lines.iter().map(|line| String::from_utf8(line.clone()).unwrap()).collect()
}

fn put(spool: &Spool, line: &str) {
    spool.append(&[line.as_bytes()]).unwrap();
    spool.publish();
}

#[test]
fn lines_come_out_in_order_across_segments_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let expected: Vec<String> = (0..20).map(|n| format!("line {n}")).collect();
    {
        let spool = Spool::open(options(dir.path())).unwrap();
        expected.iter().for_each(|line| put(&spool, line));
    }
    let spool = Spool::open(options(dir.path())).unwrap();
    assert_eq!(spool.stats().waiting, 20);
    let mut seen = Vec::new();
    loop {
        let batch = spool.read(spool.cursor("a"), 3, 1000).unwrap();
        if batch.lines.is_empty() {
            break;
        }
        seen.extend(texts(&batch));
        spool.advance("a", batch.next, batch.lines.len() as u64).unwrap();
    }
    assert_eq!(seen, expected);
    assert_eq!(spool.stats().waiting, 0);
    drop(spool);
    let spool = Spool::open(options(dir.path())).unwrap();
    assert_eq!(spool.stats().waiting, 0);
    assert!(spool.read(spool.cursor("a"), 3, 1000).unwrap().lines.is_empty());
}

#[test]
fn a_line_is_found_wherever_it_is_and_the_oldest_that_waits_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(options(dir.path())).unwrap();
    assert_eq!(spool.oldest_waiting().unwrap(), None);
    (0..20).for_each(|n| put(&spool, &format!("line {n}")));
    for n in [0, 11, 19] {
        let wanted = format!("line {n}");
        assert!(spool.find(|line| line == wanted.as_bytes()).unwrap(), "{wanted}");
    }
    let mut seen = 0;
    assert!(
        !spool
            .find(|_| {
                seen += 1;
                false
            })
            .unwrap()
    );
    assert_eq!((seen, spool.oldest_waiting().unwrap().as_deref()), (20, Some(&b"line 0"[..])));
    let batch = spool.read(spool.cursor("a"), 1, 1000).unwrap();
    spool.advance("a", batch.next, 1).unwrap();
    assert_eq!(spool.oldest_waiting().unwrap().as_deref(), Some(&b"line 1"[..]));
}

#[test]
fn what_is_not_published_is_not_read_but_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(options(dir.path())).unwrap();
    spool.append(&[b"one"]).unwrap();
    assert!(spool.read(spool.cursor("a"), 10, 1000).unwrap().lines.is_empty());
    drop(spool);
    let spool = Spool::open(options(dir.path())).unwrap();
    assert_eq!(texts(&spool.read(spool.cursor("a"), 10, 1000).unwrap()), ["one"]);
}

#[test]
fn a_batch_is_bounded_by_bytes_but_one_long_line_passes() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(Options { segment_bytes: 1 << 20, ..options(dir.path()) }).unwrap();
    put(&spool, "a much longer line than the bound");
    put(&spool, "b");
    put(&spool, "c");
    let first = spool.read(spool.cursor("a"), 10, 5).unwrap();
    assert_eq!(first.lines.len(), 1);
    assert_eq!(texts(&spool.read(first.next, 10, 5).unwrap()), ["b", "c"]);
}

#[test]
fn delivered_segments_go_by_size_and_waiting_ones_never() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(Options { max_bytes: 0, ..options(dir.path()) }).unwrap();
    (0..9).for_each(|n| put(&spool, &format!("a line of twenty {n}")));
    spool.remove_expired().unwrap();
    assert_eq!(spool.stats().lines, 9);
    let batch = spool.read(spool.cursor("a"), 1, 1000).unwrap();
    spool.advance("a", batch.next, 1).unwrap();
    let batch = spool.read(spool.cursor("a"), 1, 1000).unwrap();
    assert_eq!(texts(&batch), ["a line of twenty 1"]);
    spool.advance("a", batch.next, 1).unwrap();
    assert!(spool.stats().lines < 9, "{:?}", spool.stats());
    let mut rest = 0;
    let mut at = spool.cursor("a");
    loop {
        let batch = spool.read(at, 10, 1000).unwrap();
        if batch.lines.is_empty() {
            break;
        }
        rest += batch.lines.len();
        at = batch.next;
    }
    assert_eq!(rest, 7);
}

#[test]
fn runs_stored_without_an_upload_stay_local_when_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(Options { destinations: Vec::new(), ..options(dir.path()) }).unwrap();
    put(&spool, "local");
    assert_eq!(spool.stats().waiting, 0);
    drop(spool);
    let spool = Spool::open(options(dir.path())).unwrap();
    put(&spool, "for upload");
    assert_eq!(texts(&spool.read(spool.cursor("a"), 10, 1000).unwrap()), ["for upload"]);
    assert_eq!(spool.newest(10, 1000).unwrap(), [b"for upload".to_vec(), b"local".to_vec()]);
}

#[test]
fn the_newest_come_first_and_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(options(dir.path())).unwrap();
    (0..7).for_each(|n| put(&spool, &format!("line {n}")));
    assert_eq!(spool.newest(2, 1000).unwrap(), [b"line 6".to_vec(), b"line 5".to_vec()]);
    assert_eq!(spool.newest(100, 16).unwrap().first().unwrap(), b"line 6");
    assert!(spool.newest(100, 16).unwrap().len() <= 2);
}

#[test]
fn each_destination_has_its_own_progress_and_the_last_one_keeps_the_segments() {
    let dir = tempfile::tempdir().unwrap();
    let both = || Options { destinations: vec!["a".to_owned(), "b".to_owned()], max_bytes: 0, ..options(dir.path()) };
    let spool = Spool::open(both()).unwrap();
    (0..9).for_each(|n| put(&spool, &format!("a line of twenty {n}")));
    let batch = spool.read(spool.cursor("a"), 1, 1000).unwrap();
    spool.advance("a", batch.next, 1).unwrap();
    let end = spool.end();
    spool.advance("b", end, 9).unwrap();
    assert_eq!((spool.stats().waiting, spool.stats().lines, spool.delivered()), (8, 9, spool.cursor("a")));
    drop(spool);
    let spool = Spool::open(both()).unwrap();
    assert_eq!((spool.stats().waiting, spool.cursor("b")), (8, end));
    spool.advance("a", end, 8).unwrap();
    assert!(spool.stats().lines < 9);
}

#[test]
fn what_waited_when_the_upload_was_turned_off_waits_when_it_is_on_again() {
    let dir = tempfile::tempdir().unwrap();
    let open = |destinations: &[&str]| {
        let destinations = destinations.iter().map(|name| (*name).to_owned()).collect();
        Spool::open(Options { destinations, ..options(dir.path()) }).unwrap()
    };
    put(&open(&["a"]), "waits");
    put(&open(&[]), "stays here");
    put(&open(&["a"]), "comes later");
    let spool = open(&["a"]);
    assert_eq!(spool.stats().waiting, 2);
    let (mut seen, mut at) = (Vec::new(), spool.cursor("a"));
    loop {
        let batch = spool.read(at, 10, 1000).unwrap();
        if batch.lines.is_empty() {
            break;
        }
        seen.extend(texts(&batch));
        at = batch.next;
    }
    assert_eq!(seen, ["waits", "comes later"]);
}

#[test]
fn on_a_full_disk_what_is_delivered_makes_room_and_what_is_not_stays() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(options(dir.path())).unwrap();
    (0..6).for_each(|n| put(&spool, &format!("a line of twenty {n}")));
    spool.relieve().unwrap();
    assert_eq!(spool.stats().lines, 6);
    let batch = spool.read(spool.cursor("a"), 2, 1000).unwrap();
    spool.advance("a", batch.next, 2).unwrap();
    spool.relieve().unwrap();
    assert_eq!(spool.stats().lines, 4);
    // Without an upload the oldest give way to the newest.
    drop(spool);
    let spool = Spool::open(Options { destinations: Vec::new(), ..options(dir.path()) }).unwrap();
    spool.relieve().unwrap();
    assert_eq!(spool.stats().segments, 1);
}

#[test]
fn a_segment_that_is_delivered_makes_room_although_nothing_is_in_the_next_one_yet() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(Options { segment_bytes: 1 << 20, ..options(dir.path()) }).unwrap();
    (0..3).for_each(|n| put(&spool, &format!("line {n}")));
    spool.advance("a", spool.end(), 3).unwrap();
    // What an append does that finds no room.
    spool.roll(&mut lock(&spool.active)).unwrap();
    spool.relieve().unwrap();
    assert_eq!((spool.stats().lines, spool.stats().segments), (0, 1));
    put(&spool, "next");
    assert_eq!(texts(&spool.read(spool.cursor("a"), 10, 1000).unwrap()), ["next"]);
    assert_eq!(spool.stats().waiting, 1);
}
