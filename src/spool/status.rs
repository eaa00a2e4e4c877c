//! What the spool holds, read from its files alone: beside a running sidecar or without one.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;

use super::cursors::{Cursor, Cursors};
use super::segments::{count_lines, count_uploadable, load_cursors, segment_numbers, segment_path};
use crate::accesslog::line;

#[derive(Debug, Default)]
pub struct Status {
    /// Requests kept.
    pub lines: u64,
    pub bytes: u64,
    pub segments: u64,
    pub destinations: Vec<Destination>,
}

#[derive(Debug)]
pub struct Destination {
    pub name: String,
    /// Requests that wait.
    pub waiting: u64,
    /// When the one that waits longest had ended, microseconds since the Unix epoch.
    pub oldest_us: Option<u64>,
}

/// Reads the spool's directory. What a sidecar changes meanwhile may be counted or not.
pub fn inspect(dir: &Path) -> io::Result<Status> {
    let cursors = load_cursors(dir)?;
    let mut status = Status::default();
    let mut end = Cursor { segment: 1, offset: 0 };
    for number in segment_numbers(dir)? {
        let path = segment_path(dir, number);
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            // Its time was over.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        status.segments += 1;
        status.bytes += length;
        status.lines += count_lines(&path, 0, length)?;
        end = Cursor { segment: number, offset: length };
    }
    for (name, cursor) in cursors.iter() {
        let waiting = count_uploadable(dir, &cursors, cursor, end)?;
        let oldest = if waiting == 0 { None } else { first_line(dir, &cursors, cursor, end)? };
        let oldest_us = oldest.and_then(|bytes| line::parse(&bytes).ok()).map(|(line, _)| line.record.end_us);
        status.destinations.push(Destination { name: name.to_owned(), waiting, oldest_us });
    }
    Ok(status)
}

/// The first line behind `from` that is for upload.
fn first_line(dir: &Path, cursors: &Cursors, from: Cursor, end: Cursor) -> io::Result<Option<Vec<u8>>> {
    let mut place = from;
    for number in segment_numbers(dir)? {
        let (start, limit) = cursors.uploadable(place, end);
        if start >= limit {
            return Ok(None);
        }
        if number < start.segment {
            continue;
        }
        let offset = if number == start.segment { start.offset } else { 0 };
        let mut file = File::open(segment_path(dir, number))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut line = Vec::new();
        BufReader::new(file).read_until(b'\n', &mut line)?;
        if line.pop() == Some(b'\n') {
            return Ok(Some(line));
        }
        place = Cursor { segment: number + 1, offset: 0 };
    }
    Ok(None)
}
