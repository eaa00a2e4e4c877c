//! The spool: every run's access log line, verbatim, in durable segments under `$DATA/spool`, with a cursor that says
//! how far the upload to each destination has come. It is the uploads' queue, the local store of runs, and what
//! deduplication is rebuilt from, so a segment outlives its upload until the retention or the size bound takes it.
//!
//! What a configured destination still lacks is never removed.

pub mod command;
mod cursors;
pub mod durable;
pub mod index;
mod queue;
mod segments;
pub mod status;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

pub use cursors::{Cursor, Cursors};
use durable::Lines;
pub use queue::Queue;
use segments::{count_lines, count_uploadable, segment_numbers, segment_path};

#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    /// A segment that has grown past this is closed.
    pub segment_bytes: u64,
    /// Above this, closed segments that nobody waits for are removed, oldest first.
    pub max_bytes: u64,
    /// Closed segments that nobody waits for are removed when they are older.
    pub retention: Duration,
    /// Who gets the runs, by name. Without any the spool is the local store alone.
    pub destinations: Vec<String>,
}

/// Lines read for upload, and the cursor to advance to once they are delivered.
#[derive(Debug, Default)]
pub struct Batch {
    pub lines: Vec<Vec<u8>>,
    pub next: Cursor,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lines that wait for upload, at the destination where the most do.
    pub waiting: u64,
    /// Lines kept.
    pub lines: u64,
    pub bytes: u64,
    pub segments: u64,
}

#[derive(Debug)]
pub struct Spool {
    options: Options,
    /// The segment that grows. Taken before `state`, and held while the disk is waited for, as `state` never is.
    active: Mutex<Lines>,
    state: Mutex<State>,
    /// Held while cursors are saved: one destination's progress must not overwrite another's.
    saving: Mutex<()>,
    /// Progress that is in memory alone was complained of.
    unsaved: AtomicBool,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Length, lines and age of each segment, the active one last.
    segments: BTreeMap<u64, Segment>,
    cursors: Cursors,
    /// Readers see nothing behind this: the access log's position behind it is not saved yet.
    published: Cursor,
    /// Lines that wait, by destination.
    waiting: BTreeMap<String, u64>,
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
            segments
                .insert(number, Segment { bytes: metadata.len(), lines: count_lines(&path, 0, u64::MAX)?, touched });
        }
        let number = segments.keys().next_back().copied().unwrap_or(1);
        let active = Lines::open(&segment_path(&options.dir, number))?;
        segments.entry(number).or_insert(Segment { bytes: 0, lines: 0, touched: SystemTime::now() }).bytes =
            active.len();
        let end = Cursor { segment: number, offset: active.len() };

        let mut cursors = segments::load_cursors(&options.dir)?;
        for gone in cursors.adopt(&options.destinations, end) {
            tracing::warn!(
                "the upload to {gone} is not configured any more: what waited for it goes to whoever is new"
            );
        }
        let mut waiting = BTreeMap::new();
        for name in &options.destinations {
            let from = cursors.get(name).unwrap_or(end);
            waiting.insert(name.clone(), count_uploadable(&options.dir, &cursors, from, end)?);
        }
        let spool = Self {
            options,
            active: Mutex::new(active),
            state: Mutex::new(State { segments, cursors, published: end, waiting, unpublished: 0 }),
            saving: Mutex::new(()),
            unsaved: AtomicBool::new(false),
            changed: watch::Sender::new(()),
        };
        match segments::save_cursors(&spool.options.dir, &spool.lock().cursors) {
            // No reason not to start: it is saved with the first progress there is.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::error!("the spool's cursors cannot be saved: {error}; going on");
            }
            done => done?,
        }
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
        let mut active = lock(&self.active);
        if active.len() >= self.options.segment_bytes {
            self.roll(&mut active)?;
        }
        match active.append(&content) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // Closed, a segment can go once it is delivered.
                if !active.is_empty() {
                    self.roll(&mut active)?;
                }
                self.relieve()?;
                active.append(&content)?;
            }
            done => done?,
        }
        let mut state = self.lock();
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

    /// The same for as many of the lines, from the first on, as a disk that is nearly full has room for: how many. At least
    /// one, or it is an error.
    pub fn append_some(&self, lines: &[&[u8]]) -> io::Result<usize> {
        let mut count = lines.len();
        loop {
            match self.append(lines.get(..count).unwrap_or_default()) {
                Ok(()) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::StorageFull && count > 1 => count /= 2,
                Err(error) => return Err(error),
            }
        }
    }

    fn roll(&self, active: &mut Lines) -> io::Result<()> {
        let mut state = self.lock();
        let number = state.segments.keys().next_back().map_or(1, |last| last + 1);
        *active = Lines::open(&segment_path(&self.options.dir, number))?;
        state.segments.insert(number, Segment { bytes: 0, lines: 0, touched: SystemTime::now() });
        Ok(())
    }

    /// Lets readers see what was appended; called when the access log's position behind it is saved.
    pub fn publish(&self) {
        let mut state = self.lock();
        state.published = state.end();
        let count = std::mem::take(&mut state.unpublished);
        state.waiting.values_mut().for_each(|waiting| *waiting += count);
        drop(state);
        self.changed.send_replace(());
    }

    /// What the destination is to get.
    pub fn queue(self: &Arc<Self>, destination: &str) -> Queue {
        Queue::new(Arc::clone(self), destination.to_owned(), self.changed.subscribe())
    }

    /// Lines that wait for the destination.
    pub fn waiting(&self, destination: &str) -> u64 {
        self.lock().waiting.get(destination).copied().unwrap_or_default()
    }

    /// How far the upload to the destination has come; the end for one that does not exist.
    pub fn cursor(&self, destination: &str) -> Cursor {
        let state = self.lock();
        state.cursors.get(destination).unwrap_or(state.published)
    }

    /// What every destination has; the end when there is none.
    pub fn delivered(&self) -> Cursor {
        let state = self.lock();
        if self.options.destinations.is_empty() {
            return state.published;
        }
        state.cursors.last().unwrap_or(state.published)
    }

    /// Where the published lines end.
    pub fn end(&self) -> Cursor {
        self.lock().published
    }

    /// Published lines for upload behind `from`: at most `max_lines`, at most `max_bytes` unless one line alone is longer.
    pub fn read(&self, from: Cursor, max_lines: usize, max_bytes: usize) -> io::Result<Batch> {
        let (mut from, limit, end_of_segment) = {
            let state = self.lock();
            let (from, limit) = state.cursors.uploadable(state.skip_to_existing(from), state.published);
            let from = state.skip_to_existing(from);
            let end = if from.segment == limit.segment {
                limit.offset
            } else {
                state.segments.get(&from.segment).map_or(0, |segment| segment.bytes)
            };
            (from, limit, end)
        };
        if from >= limit {
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

    /// Saves that the destination has everything before `to`, and removes what nobody needs any more. A full disk does not
    /// hold the upload up, whose progress is what empties it: until it is saved a kill would repeat it.
    pub fn advance(&self, destination: &str, to: Cursor, lines: u64) -> io::Result<()> {
        let saving = lock(&self.saving);
        let cursors = {
            let mut state = self.lock();
            state.cursors.set(destination, to);
            state.cursors.clone()
        };
        match segments::save_cursors(&self.options.dir, &cursors) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                // It is delivered all the same: what it took makes room for the file that says so.
                self.relieve()?;
                match segments::save_cursors(&self.options.dir, &cursors) {
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        if !self.unsaved.swap(true, Ordering::Relaxed) {
                            tracing::error!("the upload's progress cannot be saved: {error}; going on");
                        }
                    }
                    done => self.saved(done)?,
                }
            }
            done => self.saved(done)?,
        }
        let mut state = self.lock();
        if let Some(waiting) = state.waiting.get_mut(destination) {
            *waiting = waiting.saturating_sub(lines);
        }
        drop((state, saving));
        self.remove_expired()
    }

    fn saved(&self, done: io::Result<()>) -> io::Result<()> {
        done?;
        if self.unsaved.swap(false, Ordering::Relaxed) {
            tracing::info!("the upload's progress is saved again");
        }
        Ok(())
    }

    /// Removes closed segments that are delivered (or need no delivery) and too old, or too many.
    pub fn remove_expired(&self) -> io::Result<()> {
        let (retention, max_bytes) = (self.options.retention, self.options.max_bytes);
        let is_over = |segment: &Segment, total: u64| {
            total > max_bytes || segment.touched.elapsed().is_ok_and(|age| age > retention)
        };
        self.remove(is_over).map(drop)
    }

    /// Makes room on a full disk: every closed segment that is delivered (or needs no delivery) goes before its time.
    pub fn relieve(&self) -> io::Result<()> {
        let removed = self.remove(|_, _| true)?;
        if removed > 0 {
            tracing::warn!("the disk is full: {removed} bytes of delivered runs were removed before their time");
        }
        Ok(())
    }

    /// Bytes removed.
    fn remove(&self, is_over: impl Fn(&Segment, u64) -> bool) -> io::Result<u64> {
        let mut state = self.lock();
        let needed = if self.options.destinations.is_empty() { None } else { state.cursors.last() };
        let needed = state.skip_to_existing(needed.unwrap_or(state.published));
        let before: u64 = state.segments.values().map(|segment| segment.bytes).sum();
        let mut total = before;
        while let Some((&number, &segment)) = state.segments.iter().next() {
            let active = state.segments.len() == 1;
            if active || number >= needed.segment || !is_over(&segment, total) {
                break;
            }
            fs::remove_file(segment_path(&self.options.dir, number))?;
            state.segments.remove(&number);
            total -= segment.bytes;
        }
        Ok(before - total)
    }

    pub fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            waiting: state.waiting.values().max().copied().unwrap_or(0),
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

    /// The oldest line that some destination does not have.
    pub fn oldest_waiting(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.read(self.delivered(), 1, 1)?.lines.pop())
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

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn end(&self) -> Cursor {
        let (segment, offset) = self.segments.iter().next_back().map_or((1, 0), |(&number, last)| (number, last.bytes));
        Cursor { segment, offset }
    }

    /// The same place, written as the start of the next segment where this one is read out or gone.
    fn skip_to_existing(&self, mut at: Cursor) -> Cursor {
        // Not what is published bounds it: behind a closed segment that is delivered the next one may hold nothing yet,
        // and on a full disk never would if this one did not go.
        while at.segment < self.end().segment
            && self.segments.get(&at.segment).is_none_or(|segment| at.offset >= segment.bytes)
        {
            at = Cursor { segment: at.segment + 1, offset: 0 };
        }
        at
    }
}

#[cfg(test)]
mod tests;
