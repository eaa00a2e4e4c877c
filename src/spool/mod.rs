//! The spool: every run's access log line, verbatim, in durable segments under `$DATA/spool`, with a cursor that says
//! how far the upload has come. It is the upload's queue, the local store of runs, and what deduplication is rebuilt
//! from, so a segment outlives its upload until the retention or the size bound takes it.
//!
//! What is not uploaded yet is never removed while an upload is configured.

pub mod durable;
pub mod index;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use durable::Lines;

#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    /// A segment that has grown past this is closed.
    pub segment_bytes: u64,
    /// Above this, closed segments that nobody waits for are removed, oldest first.
    pub max_bytes: u64,
    /// Closed segments that nobody waits for are removed when they are older.
    pub retention: Duration,
    /// Whether runs wait for an upload. Without one the spool is the local store alone, and what was stored meanwhile
    /// stays local when an upload is configured later.
    pub upload: bool,
}

/// A place between two lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    pub segment: u64,
    pub offset: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    #[serde(flatten)]
    cursor: Cursor,
    /// No upload was configured: what the spool holds at the next start is not waiting for one.
    #[serde(default)]
    local: bool,
}

/// Lines read for upload, and the cursor to advance to once they are delivered.
#[derive(Debug, Default)]
pub struct Batch {
    pub lines: Vec<Vec<u8>>,
    pub next: Cursor,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lines that wait for upload.
    pub waiting: u64,
    /// Lines kept.
    pub lines: u64,
    pub bytes: u64,
    pub segments: u64,
}

#[derive(Debug)]
pub struct Spool {
    options: Options,
    state: Mutex<State>,
    published: Notify,
}

#[derive(Debug)]
struct State {
    active: Lines,
    /// Length, lines and age of each segment, the active one last.
    segments: BTreeMap<u64, Segment>,
    cursor: Cursor,
    /// Readers see nothing behind this: the access log's position behind it is not saved yet.
    published: Cursor,
    waiting: u64,
    unpublished: u64,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    bytes: u64,
    lines: u64,
    touched: SystemTime,
}

impl Spool {
    /// Opens the spool and recovers its state; every line found is published.
    pub fn open(options: Options) -> io::Result<Self> {
        durable::private_dir(&options.dir)?;
        let mut segments = BTreeMap::new();
        for number in segment_numbers(&options.dir)? {
            let path = segment_path(&options.dir, number);
            let metadata = fs::metadata(&path)?;
            let touched = metadata.modified().unwrap_or_else(|_| SystemTime::now());
            segments.insert(number, Segment { bytes: metadata.len(), lines: count_lines(&path, 0)?, touched });
        }
        let number = segments.keys().next_back().copied().unwrap_or(1);
        let active = Lines::open(&segment_path(&options.dir, number))?;
        segments.entry(number).or_insert(Segment { bytes: 0, lines: 0, touched: SystemTime::now() }).bytes =
            active.len();
        let end = Cursor { segment: number, offset: active.len() };

        let path = options.dir.join("cursor.json");
        let saved: Saved = match fs::read(&path) {
            Ok(content) => serde_json::from_slice(&content).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{} is unreadable: {error}", path.display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Saved::default(),
            Err(error) => return Err(error),
        };
        let cursor = if saved.local || !options.upload { end } else { saved.cursor.min(end) };
        let mut waiting = 0;
        for (&number, segment) in segments.range(cursor.segment..) {
            waiting += if number == cursor.segment {
                count_lines(&segment_path(&options.dir, number), cursor.offset)?
            } else {
                segment.lines
            };
        }
        let spool = Self {
            options,
            state: Mutex::new(State { active, segments, cursor, published: end, waiting, unpublished: 0 }),
            published: Notify::new(),
        };
        spool.save_cursor(cursor)?;
        Ok(spool)
    }

    /// Appends lines (without their `\n`); they are on the disk when this returns, or not in the spool at all.
    pub fn append(&self, lines: &[&[u8]]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut content = Vec::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
        for line in lines {
            content.extend_from_slice(line);
            content.push(b'\n');
        }
        let mut state = self.lock();
        if state.active.len() >= self.options.segment_bytes {
            self.roll(&mut state)?;
        }
        state.active.append(&content)?;
        let (count, bytes) = (lines.len() as u64, content.len() as u64);
        state.unpublished += count;
        if let Some(mut last) = state.segments.last_entry() {
            let segment = last.get_mut();
            segment.bytes += bytes;
            segment.lines += count;
            segment.touched = SystemTime::now();
        }
        Ok(())
    }

    /// Lets readers see what was appended; called when the access log's position behind it is saved.
    pub fn publish(&self) {
        let mut state = self.lock();
        state.published = state.end();
        if self.options.upload {
            state.waiting += state.unpublished;
        } else {
            state.cursor = state.published;
        }
        state.unpublished = 0;
        drop(state);
        self.published.notify_one();
    }

    /// Returns when something was published after the last call (or may have been).
    pub async fn changed(&self) {
        self.published.notified().await;
    }

    pub fn cursor(&self) -> Cursor {
        self.lock().cursor
    }

    /// Where the published lines end.
    pub fn end(&self) -> Cursor {
        self.lock().published
    }

    /// Published lines behind `from`: at most `max_lines`, at most `max_bytes` unless one line alone is longer.
    pub fn read(&self, from: Cursor, max_lines: usize, max_bytes: usize) -> io::Result<Batch> {
        let (mut from, published, end_of_segment) = {
            let state = self.lock();
            let from = state.skip_to_existing(from);
            let end = if from.segment == state.published.segment {
                state.published.offset
            } else {
                state.segments.get(&from.segment).map_or(0, |segment| segment.bytes)
            };
            (from, state.published, end)
        };
        if from >= published {
            return Ok(Batch { lines: Vec::new(), next: from });
        }
        let mut file = File::open(segment_path(&self.options.dir, from.segment))?;
        file.seek(SeekFrom::Start(from.offset))?;
        let mut reader = BufReader::with_capacity(256 * 1024, file.take(end_of_segment - from.offset));
        let mut lines = Vec::new();
        let mut bytes = 0;
        while lines.len() < max_lines && bytes < max_bytes {
            let mut line = Vec::new();
            let read = reader.read_until(b'\n', &mut line)?;
            if line.pop() != Some(b'\n') || (bytes > 0 && bytes + read > max_bytes) {
                break;
            }
            bytes += read;
            from.offset += read as u64;
            lines.push(line);
        }
        Ok(Batch { lines, next: from })
    }

    /// Saves that everything before `to` is delivered, and removes what nobody needs any more.
    pub fn advance(&self, to: Cursor, lines: u64) -> io::Result<()> {
        self.save_cursor(to)?;
        let mut state = self.lock();
        state.cursor = to;
        state.waiting = state.waiting.saturating_sub(lines);
        drop(state);
        self.remove_expired()
    }

    /// Removes closed segments that are delivered (or need no delivery) and too old, or too many.
    pub fn remove_expired(&self) -> io::Result<()> {
        let mut state = self.lock();
        let cursor = state.skip_to_existing(state.cursor);
        let mut total: u64 = state.segments.values().map(|segment| segment.bytes).sum();
        while let Some((&number, &segment)) = state.segments.iter().next() {
            let old = segment.touched.elapsed().is_ok_and(|age| age > self.options.retention);
            let active = state.segments.len() == 1;
            if active || number >= cursor.segment || !(old || total > self.options.max_bytes) {
                break;
            }
            fs::remove_file(segment_path(&self.options.dir, number))?;
            state.segments.remove(&number);
            total -= segment.bytes;
        }
        Ok(())
    }

    pub fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            waiting: state.waiting,
            lines: state.segments.values().map(|segment| segment.lines).sum(),
            bytes: state.segments.values().map(|segment| segment.bytes).sum(),
            segments: state.segments.len() as u64,
        }
    }

    /// Every line kept, oldest first.
    pub fn for_each(&self, mut visit: impl FnMut(&[u8])) -> io::Result<()> {
        let numbers: Vec<u64> = self.lock().segments.keys().copied().collect();
        for number in numbers {
            let mut reader = BufReader::with_capacity(256 * 1024, File::open(segment_path(&self.options.dir, number))?);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line)? > 0 {
                if line.pop() == Some(b'\n') {
                    visit(&line);
                }
                line.clear();
            }
        }
        Ok(())
    }

    /// The newest published lines, newest first; reads at most `max_bytes`.
    pub fn newest(&self, limit: usize, max_bytes: u64) -> io::Result<Vec<Vec<u8>>> {
        let (segments, published) = {
            let state = self.lock();
            (state.segments.clone(), state.published)
        };
        let mut found = Vec::new();
        let mut left = max_bytes;
        for (&number, segment) in segments.iter().rev() {
            let end = if number == published.segment { published.offset } else { segment.bytes };
            let start = end.saturating_sub(left);
            left -= end - start;
            let mut file = match File::open(segment_path(&self.options.dir, number)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            file.seek(SeekFrom::Start(start))?;
            let mut content = Vec::new();
            file.take(end - start).read_to_end(&mut content)?;
            let mut lines: Vec<&[u8]> = content.split(|&byte| byte == b'\n').collect();
            lines.pop();
            if start > 0 && !lines.is_empty() {
                lines.remove(0);
            }
            found.extend(lines.iter().rev().take(limit - found.len()).map(|line| line.to_vec()));
            if found.len() >= limit || left == 0 {
                break;
            }
        }
        Ok(found)
    }

    /// The oldest published line that waits for upload.
    pub fn oldest_waiting(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.read(self.cursor(), 1, 1)?.lines.pop())
    }

    /// Shows each line until one is the wanted one; the newest segment first.
    pub fn find(&self, mut is_wanted: impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
        let numbers: Vec<u64> = self.lock().segments.keys().rev().copied().collect();
        for number in numbers {
            let file = match File::open(segment_path(&self.options.dir, number)) {
                Ok(file) => file,
                // Its time was over meanwhile, and that of older ones.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            let mut reader = BufReader::with_capacity(256 * 1024, file);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line)? > 0 {
                if line.pop() == Some(b'\n') && is_wanted(&line) {
                    return Ok(true);
                }
                line.clear();
            }
        }
        Ok(false)
    }

    fn roll(&self, state: &mut State) -> io::Result<()> {
        let number = state.segments.keys().next_back().map_or(1, |last| last + 1);
        state.active = Lines::open(&segment_path(&self.options.dir, number))?;
        state.segments.insert(number, Segment { bytes: 0, lines: 0, touched: SystemTime::now() });
        Ok(())
    }

    fn save_cursor(&self, cursor: Cursor) -> io::Result<()> {
        let saved = Saved { cursor, local: !self.options.upload };
        durable::replace(&self.options.dir.join("cursor.json"), &serde_json::to_vec(&saved)?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&self) -> Cursor {
        Cursor { segment: self.segments.keys().next_back().copied().unwrap_or(1), offset: self.active.len() }
    }

    /// The same place, written as the start of the next segment where this one is read out or gone.
    fn skip_to_existing(&self, mut at: Cursor) -> Cursor {
        while at.segment < self.published.segment
            && self.segments.get(&at.segment).is_none_or(|segment| at.offset >= segment.bytes)
        {
            at = Cursor { segment: at.segment + 1, offset: 0 };
        }
        at
    }
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.jsonl"))
}

fn segment_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: Option<u64> =
            name.to_str().and_then(|name| name.strip_suffix(".jsonl")).and_then(|stem| stem.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn count_lines(path: &Path, from: u64) -> io::Result<u64> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut block = vec![0_u8; 256 * 1024];
    let mut count = 0;
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(count);
        }
        count += block[..read].iter().filter(|&&byte| byte == b'\n').count() as u64;
    }
}

#[cfg(test)]
mod tests;
