//! Follows a file of lines over rotation, truncation and restarts.
//!
//! Lines are whole; the position behind them is handed out with them, to be saved once their effects are durable. A
//! rotated file is read to its end through the open handle before the new one is begun: its writer may go on with the
//! old one until it is told to reopen, so the switch waits until the new file holds something and a grace has passed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::position::{self, Position};

#[derive(Debug, Clone)]
pub struct Options {
    pub path: PathBuf,
    /// A line longer than this is skipped and counted.
    pub max_line: usize,
    /// How long a rotated file is still watched after its successor was first written to.
    pub grace: Duration,
}

impl Options {
    pub fn new(path: PathBuf) -> Self {
        Self { path, max_line: 16 << 20, grace: Duration::from_secs(1) }
    }
}

/// What one poll found.
#[derive(Debug, Default)]
pub struct Polled {
    /// Whole lines without their ends.
    pub lines: Vec<Vec<u8>>,
    /// Lines skipped for their length.
    pub too_long: u64,
    /// The place behind `lines`; none while no file was ever open.
    pub position: Option<Position>,
    /// The file was rotated and is read to its end; the position is in the next one.
    pub switched: bool,
    /// The file was cut (or replaced in place) and is read from its start.
    pub truncated: bool,
    /// The file of the saved position is gone; what it held behind the position is lost.
    pub lost: bool,
    /// Bytes that were read but are not whole lines yet.
    pub partial: usize,
}

impl Polled {
    /// Nothing new: no line, and no move that would have to be saved.
    pub fn is_idle(&self) -> bool {
        self.lines.is_empty() && self.too_long == 0 && !self.switched && !self.truncated && !self.lost
    }
}

#[derive(Debug)]
pub struct Tail {
    options: Options,
    resume: Option<Position>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    file: File,
    inode: u64,
    /// The start of the line that is being read.
    line_start: u64,
    /// The end of what was read.
    read_to: u64,
    /// What was read of that line; empty while a line is being skipped.
    partial: Vec<u8>,
    skipping: bool,
    /// The file's first bytes as they were when read.
    head: Vec<u8>,
    /// When the file was first seen to have a successor that is written to.
    successor_since: Option<Instant>,
}

impl Tail {
    /// A tail that goes on at the position, or at the file's start.
    pub fn new(options: Options, resume: Option<Position>) -> Self {
        Self { options, resume, current: None }
    }

    /// The inode of the file being read.
    pub fn inode(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.inode)
    }

    /// The start of the line that would come next.
    pub fn offset(&self) -> u64 {
        self.current.as_ref().map_or(0, |current| current.line_start)
    }

    /// Bytes of the file that are not handed out as lines yet.
    pub fn backlog(&self) -> u64 {
        let Some(current) = &self.current else { return 0 };
        current.file.metadata().map_or(0, |metadata| metadata.len().saturating_sub(current.line_start))
    }

    /// Reads on: at most about `max_bytes` at a time. Never waits.
    pub fn poll(&mut self, max_bytes: usize) -> io::Result<Polled> {
        let mut polled = Polled::default();
        if self.current.is_none() {
            self.current = self.open(&mut polled)?;
            if self.current.is_some() {
                self.resume = None;
            }
        }
        let Some(current) = &mut self.current else { return Ok(polled) };
        if current.was_rewritten()? {
            current.restart();
            polled.truncated = true;
        }
        let at_end = current.read(max_bytes, self.options.max_line, &mut polled)?;
        if at_end && polled.lines.is_empty() && polled.too_long == 0 {
            self.follow_rotation(&mut polled)?;
        }
        if let Some(current) = &self.current {
            polled.partial = current.partial.len();
            polled.position = Some(current.position());
        }
        Ok(polled)
    }

    fn open(&self, polled: &mut Polled) -> io::Result<Option<Current>> {
        if let Some(resume) = &self.resume {
            for sibling in self.siblings()? {
                if sibling.inode != resume.inode {
                    continue;
                }
                let mut current = Current::open(&sibling.path)?;
                if current.resume_at(resume)? {
                    return Ok(Some(current));
                }
                polled.truncated = sibling.path == self.options.path;
            }
        }
        // Without a position (or with one of a file that is gone) every file there may hold lines that nobody has read;
        // those that somebody has are known by their ids.
        let oldest = self.siblings()?.into_iter().find(|sibling| !sibling.is_empty && !polled.truncated);
        let path = oldest.map_or_else(|| self.options.path.clone(), |sibling| sibling.path);
        match Current::open(&path) {
            Ok(current) => {
                polled.lost = self.resume.is_some() && !polled.truncated;
                Ok(Some(current))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                polled.truncated = false;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// At the end of the file: goes on to its successor, if it has one and is certainly finished.
    fn follow_rotation(&mut self, polled: &mut Polled) -> io::Result<()> {
        let Some(inode) = self.inode() else { return Ok(()) };
        let successor = self.successor(inode)?;
        let Some(current) = &mut self.current else { return Ok(()) };
        let Some(successor) = successor else {
            current.successor_since = None;
            return Ok(());
        };
        let since = *current.successor_since.get_or_insert_with(Instant::now);
        // Whoever wrote it has long been told, if its last write is that old.
        let written = current.file.metadata()?.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
        if since.elapsed().max(written) < self.options.grace {
            return Ok(());
        }
        // The writer may have ended between the read and the look at the successor.
        if current.read(1 << 20, self.options.max_line, polled)? && polled.lines.is_empty() {
            let next = Current::open(&successor)?;
            let torn = std::mem::take(&mut current.partial);
            if !torn.is_empty() {
                polled.lines.push(torn);
            }
            polled.switched = true;
            self.current = Some(next);
        }
        Ok(())
    }

    /// The first file with content that was written after the one with this inode: several rotations may have passed
    /// in a restart, and the newest file may be empty yet.
    fn successor(&self, inode: u64) -> io::Result<Option<PathBuf>> {
        match fs::metadata(&self.options.path) {
            // The usual case, and the cheap one: nobody rotated.
            Ok(metadata) if metadata.ino() == inode => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let siblings = self.siblings()?;
        let own = siblings.iter().position(|sibling| sibling.inode == inode);
        // When ours was removed meanwhile, its place among the others is unknown: only the newest comes after it for sure.
        let later = own.map_or(siblings.len().saturating_sub(1), |at| at + 1);
        let next = siblings.into_iter().skip(later).find(|sibling| !sibling.is_empty);
        Ok(next.filter(|sibling| own.is_some() || sibling.newest).map(|sibling| sibling.path))
    }

    /// The file and its rotated predecessors (`access.jsonl.1`, ...), by the time of their last write, the file itself last.
    fn siblings(&self) -> io::Result<Vec<Sibling>> {
        let path = &self.options.path;
        let (Some(dir), Some(base)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Ok(Vec::new());
        };
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(suffix) = name.to_str().and_then(|name| name.strip_prefix(base)) else { continue };
            let compressed = [".gz", ".zst", ".xz", ".bz2"].iter().any(|end| suffix.ends_with(end));
            if (!suffix.is_empty() && !suffix.starts_with('.')) || compressed {
                continue;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Sibling {
                    newest: suffix.is_empty(),
                    is_empty: metadata.len() == 0,
                    written,
                    inode: metadata.ino(),
                    path: entry.path(),
                });
            }
        }
        found.sort_by_key(|sibling| (sibling.newest, sibling.written));
        Ok(found)
    }
}

#[derive(Debug)]
struct Sibling {
    newest: bool,
    is_empty: bool,
    written: SystemTime,
    inode: u64,
    path: PathBuf,
}

impl Current {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            file,
            inode,
            line_start: 0,
            read_to: 0,
            partial: Vec::new(),
            skipping: false,
            head: Vec::new(),
            successor_since: None,
        })
    }

    /// Goes to the position if the file is still the one it was saved for.
    fn resume_at(&mut self, position: &Position) -> io::Result<bool> {
        if self.file.metadata()?.len() < position.offset || position.head_len > position::HEAD {
            return Ok(false);
        }
        let mut head = vec![0_u8; position.head_len];
        if self.file.read_exact_at(&mut head, 0).is_err() || position::fingerprint(&head) != position.head_sha256 {
            return Ok(false);
        }
        self.head = head;
        self.line_start = position.offset;
        self.read_to = position.offset;
        Ok(true)
    }

    /// Whether the file was cut, or cut and filled again, since it was last read.
    fn was_rewritten(&self) -> io::Result<bool> {
        let len = self.file.metadata()?.len();
        if len < self.read_to {
            return Ok(true);
        }
        if len == self.read_to {
            return Ok(false);
        }
        let mut head = [0_u8; position::HEAD];
        let head = head.get_mut(..self.head.len()).unwrap_or_default();
        self.file.read_exact_at(head, 0)?;
        Ok(*head != *self.head)
    }

    fn restart(&mut self) {
        self.line_start = 0;
        self.read_to = 0;
        self.partial.clear();
        self.skipping = false;
        self.head.clear();
    }

    fn position(&self) -> Position {
        let known = usize::try_from(self.line_start).unwrap_or(usize::MAX).min(self.head.len());
        Position::new(self.inode, self.line_start, self.head.get(..known).unwrap_or_default())
    }

    /// Reads lines until about `max_bytes` were read; true at the end of the file.
    fn read(&mut self, max_bytes: usize, max_line: usize, polled: &mut Polled) -> io::Result<bool> {
        const BLOCK: usize = 256 * 1024;
        let mut block = vec![0_u8; BLOCK.min(max_bytes.max(1))];
        let mut read_now = 0;
        while read_now < max_bytes {
            let read = match self.file.read_at(&mut block, self.read_to) {
                Ok(0) => return Ok(true),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let fresh = block.get(..read).unwrap_or_default();
            let begin = usize::try_from(self.read_to).unwrap_or(usize::MAX);
            if begin == self.head.len() && begin < position::HEAD {
                self.head.extend(fresh.iter().take(position::HEAD - begin));
            }
            self.split(fresh, max_line, polled);
            read_now += read;
        }
        Ok(false)
    }

    fn split(&mut self, fresh: &[u8], max_line: usize, polled: &mut Polled) {
        let mut rest = fresh;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
            let (piece, behind) = rest.split_at(end);
            rest = behind;
            self.read_to += piece.len() as u64;
            let text = piece.strip_suffix(b"\n");
            if self.skipping || self.partial.len() + piece.len() > max_line {
                if !self.skipping {
                    self.skipping = true;
                    polled.too_long += 1;
                    self.partial = Vec::new();
                }
            } else {
                self.partial.extend_from_slice(text.unwrap_or(piece));
            }
            if text.is_some() {
                self.line_start = self.read_to;
                let line = std::mem::take(&mut self.partial);
                if !std::mem::take(&mut self.skipping) && !line.is_empty() {
                    polled.lines.push(line);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
