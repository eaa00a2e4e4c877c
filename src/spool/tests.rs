use super::*;

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        segment_bytes: 20,
        max_bytes: 1 << 30,
        retention: Duration::from_secs(3600),
        destinations: vec!["there".to_owned()],
    }
}

fn texts(batch: &Batch) -> Vec<String> {
    batch.lines.iter().map(|line| String::from_utf8(line.clone()).unwrap()).collect()
}

fn at(spool: &Spool) -> Cursor {
    spool.progress("there").cursor
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
        let batch = spool.read(at(&spool), 3, 1000).unwrap();
        if batch.lines.is_empty() {
            break;
        }
        seen.extend(texts(&batch));
        spool.advance("there", batch.next, batch.lines.len() as u64).unwrap();
    }
    assert_eq!(seen, expected);
    assert_eq!(spool.stats().waiting, 0);
    drop(spool);
    let spool = Spool::open(options(dir.path())).unwrap();
    assert_eq!(spool.stats().waiting, 0);
    assert!(spool.read(at(&spool), 3, 1000).unwrap().lines.is_empty());
}

#[test]
fn what_is_not_published_is_not_read_but_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(options(dir.path())).unwrap();
    spool.append(&[b"one"]).unwrap();
    assert!(spool.read(at(&spool), 10, 1000).unwrap().lines.is_empty());
    drop(spool);
    let spool = Spool::open(options(dir.path())).unwrap();
    assert_eq!(texts(&spool.read(at(&spool), 10, 1000).unwrap()), ["one"]);
}

#[test]
fn a_batch_is_bounded_by_bytes_but_one_long_line_passes() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(Options { segment_bytes: 1 << 20, ..options(dir.path()) }).unwrap();
    put(&spool, "a much longer line than the bound");
    put(&spool, "b");
    put(&spool, "c");
    let first = spool.read(at(&spool), 10, 5).unwrap();
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
    let batch = spool.read(at(&spool), 1, 1000).unwrap();
    spool.advance("there", batch.next, 1).unwrap();
    let batch = spool.read(at(&spool), 1, 1000).unwrap();
    assert_eq!(texts(&batch), ["a line of twenty 1"]);
    spool.advance("there", batch.next, 1).unwrap();
    assert!(spool.stats().lines < 9, "{:?}", spool.stats());
    let mut rest = 0;
    let mut at = at(&spool);
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
    assert_eq!(texts(&spool.read(at(&spool), 10, 1000).unwrap()), ["for upload"]);
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

fn both(dir: &Path) -> Options {
    Options { destinations: vec!["there".to_owned(), "elsewhere".to_owned()], max_bytes: 0, ..options(dir) }
}

#[tokio::test]
async fn each_destination_goes_its_own_way_and_the_slowest_keeps_the_segments() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(both(dir.path())).unwrap());
    (0..4).for_each(|n| put(&spool, &format!("a line of twenty bytes {n}")));
    let (mut fast, mut slow) = (spool.queue("there"), spool.queue("elsewhere"));
    for _ in 0..4 {
        let batch = fast.read(10, 1000).await.unwrap();
        fast.advance(&batch).unwrap();
    }
    assert_eq!((fast.waiting(), slow.waiting(), spool.stats().waiting), (0, 4, 4));
    assert_eq!(spool.stats().lines, 4, "nothing goes that one destination lacks");
    assert_eq!(spool.delivered(), Cursor { segment: 1, offset: 0 });
    drop((spool, fast, slow));

    let spool = Arc::new(Spool::open(both(dir.path())).unwrap());
    (fast, slow) = (spool.queue("there"), spool.queue("elsewhere"));
    assert_eq!((fast.waiting(), slow.waiting()), (0, 4));
    for n in 0..4 {
        let batch = slow.read(10, 1000).await.unwrap();
        assert_eq!(texts(&batch), [format!("a line of twenty bytes {n}")]);
        slow.advance(&batch).unwrap();
    }
    assert_eq!(spool.stats().segments, 1);
}

#[tokio::test]
async fn every_queue_is_woken() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(both(dir.path())).unwrap());
    let mut queues = [spool.queue("there"), spool.queue("elsewhere")];
    for queue in &mut queues {
        assert!(queue.read(1, 1).await.unwrap().lines.is_empty());
    }
    put(&spool, "one");
    for queue in &mut queues {
        queue.changed().await;
        assert_eq!(texts(&queue.read(1, 1).await.unwrap()), ["one"]);
    }
}

#[test]
fn a_destination_that_comes_later_gets_only_what_comes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(options(dir.path())).unwrap();
    put(&spool, "for one");
    drop(spool);
    let spool = Spool::open(both(dir.path())).unwrap();
    put(&spool, "for both");
    assert_eq!((spool.progress("there").waiting, spool.progress("elsewhere").waiting), (2, 1));
    drop(spool);
    // Gone in between: what it did not take stays local.
    drop(Spool::open(options(dir.path())).unwrap());
    let spool = Spool::open(both(dir.path())).unwrap();
    assert_eq!((spool.progress("there").waiting, spool.progress("elsewhere").waiting), (2, 0));
}
