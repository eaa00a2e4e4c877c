//! The spool's files: `00000000000000000001.jsonl`, ... and `cursor.json`.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::cursors::{Cursor, Cursors};
use super::durable;

pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.jsonl"))
}

/// In order.
pub(super) fn segment_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    const DIGITS: usize = 20;
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".jsonl")).filter(|stem| stem.len() == DIGITS);
        let number: Option<u64> = stem.and_then(|stem| stem.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Lines of the file from `from` on, up to `to`.
pub(super) fn count_lines(path: &Path, from: u64, to: u64) -> io::Result<u64> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut file = file.take(to.saturating_sub(from));
    let mut block = vec![0_u8; 256 * 1024];
    let mut count = 0;
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(count);
        }
        count += block.iter().take(read).filter(|&&byte| byte == b'\n').count() as u64;
    }
}

/// Lines between the two places that are for upload. Segments that are gone count nothing.
pub(super) fn count_uploadable(dir: &Path, cursors: &Cursors, from: Cursor, end: Cursor) -> io::Result<u64> {
    let numbers = segment_numbers(dir)?;
    let mut count = 0;
    let mut place = from;
    loop {
        let (start, limit) = cursors.uploadable(place, end);
        if start >= limit {
            return Ok(count);
        }
        for &number in numbers.iter().filter(|number| (start.segment..=limit.segment).contains(number)) {
            let first = if number == start.segment { start.offset } else { 0 };
            let last = if number == limit.segment { limit.offset } else { u64::MAX };
            match count_lines(&segment_path(dir, number), first, last) {
                Ok(lines) => count += lines,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        place = limit;
    }
}

pub(super) fn load_cursors(dir: &Path) -> io::Result<Cursors> {
    let path = dir.join("cursor.json");
    match fs::read(&path) {
        Ok(content) => serde_json::from_slice(&content).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is unreadable: {error}; restore it, or move it away: then what is spooled so far stays here and is not uploaded", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Cursors::default()),
        Err(error) => Err(error),
    }
}

pub(super) fn save_cursors(dir: &Path, cursors: &Cursors) -> io::Result<()> {
    durable::replace(&dir.join("cursor.json"), &serde_json::to_vec(cursors)?)
}
