//! What LangSmith or the OTLP collector refused for good, kept with its answer so that an operator can look and send it
//! again.
//!
//! `dead-letters.jsonl` and `dead-letters-otlp.jsonl` in the spool's directory; what is to be sent again waits in
//! `retry-<destination>.jsonl` (runs, and records for the collector) and `retry-feedback.jsonl`. Whoever touches one of them holds `dead-letters.lock`, so that `parapet spool` works beside a
//! running sidecar and without one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::spool::durable::{self, Lines};

/// Past this nothing more is parked, and the upload waits until an operator has looked.
const MAX_BYTES: u64 = 256 << 20;
/// What is taken for feedback's destination in the names of files.
const FEEDBACK: &str = "feedback";

#[derive(Debug)]
pub struct DeadLetters {
    dir: PathBuf,
    file: &'static str,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Letter {
    /// The run's, the record's, or the feedback's own.
    pub id: String,
    /// ISO 8601.
    pub time: String,
    pub destination: String,
    /// The server's; 0 where there was none.
    pub status: u16,
    /// The start of its answer, or why it was given up. May echo content.
    pub response: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feedback: Option<Box<RawValue>>,
    /// The access log's line, of which the spans are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<Box<RawValue>>,
}

/// Which letters a command means.
#[derive(Debug)]
pub enum Selection {
    All,
    Ids(BTreeSet<String>),
}

impl Selection {
    fn has(&self, letter: &Letter) -> bool {
        match self {
            Self::All => true,
            Self::Ids(ids) => ids.contains(&letter.id),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ParkError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(
        "there are {MAX_BYTES} bytes of dead letters: look at them with `parapet spool status`, then `retry` or `drop` them"
    )]
    Full,
}

/// The first letters of a file of retries, and how many bytes of it they are.
#[derive(Debug, Default)]
pub struct Retries {
    pub letters: Vec<Letter>,
    bytes: u64,
}

impl DeadLetters {
    /// LangSmith's, in the spool's directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: "dead-letters.jsonl" }
    }

    /// The OTLP collector's. One that refuses everything must not take the room of LangSmith's.
    pub fn otlp(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: "dead-letters-otlp.jsonl" }
    }

    /// The file's name.
    pub const fn file(&self) -> &'static str {
        self.file
    }

    /// Parks a letter; it is durable when this returns. A kill before the upload's cursor is saved can park one twice.
    pub fn park(&self, letter: &Letter) -> Result<(), ParkError> {
        let _lock = self.lock()?;
        let mut lines = Lines::open(&self.path())?;
        if lines.len() > MAX_BYTES {
            return Err(ParkError::Full);
        }
        Ok(lines.append(&line_of(letter)?)?)
    }

    /// Every letter that can be read, oldest first; the number of lines that cannot be.
    pub fn for_each(&self, mut visit: impl FnMut(&Letter)) -> io::Result<u64> {
        let _lock = self.lock()?;
        let mut unreadable = 0;
        each_line(&self.path(), |line| {
            match serde_json::from_slice(line) {
                Ok(letter) => visit(&letter),
                Err(_) => unreadable += 1,
            }
            Ok(())
        })?;
        Ok(unreadable)
    }

    /// Letters that wait to be sent again, by destination; feedback's under `feedback`.
    pub fn waiting(&self) -> io::Result<BTreeMap<String, u64>> {
        let _lock = self.lock()?;
        let mut waiting = BTreeMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let stem = name.to_str().and_then(|name| name.strip_prefix("retry-")?.strip_suffix(".jsonl"));
            let Some(destination) = stem else { continue };
            let mut count = 0;
            each_line(&entry.path(), |_| {
                count += 1;
                Ok(())
            })?;
            waiting.insert(destination.to_owned(), count);
        }
        Ok(waiting)
    }

    /// Has the letters sent again, by the sidecar that runs or the next one; how many.
    pub fn retry(&self, which: &Selection) -> io::Result<u64> {
        self.take(which, |letter| {
            let to = if letter.feedback.is_some() { FEEDBACK } else { &letter.destination };
            Lines::open(&self.retry_path(to))?.append(&line_of(letter)?)
        })
    }

    /// Forgets the letters; how many.
    pub fn forget(&self, which: &Selection) -> io::Result<u64> {
        self.take(which, |_| Ok(()))
    }

    /// Removes the letters that are meant, once `act` is done with them.
    fn take(&self, which: &Selection, mut act: impl FnMut(&Letter) -> io::Result<()>) -> io::Result<u64> {
        let _lock = self.lock()?;
        let path = self.path();
        if !path.exists() {
            return Ok(0);
        }
        let mut taken = 0;
        rewrite(&path, 0, |line| match serde_json::from_slice::<Letter>(line) {
            Ok(letter) if which.has(&letter) => {
                act(&letter)?;
                taken += 1;
                Ok(false)
            }
            _ => Ok(true),
        })?;
        Ok(taken)
    }

    /// What of the destination's is to be sent again: the first few.
    pub fn retries(&self, destination: &str, max: usize) -> io::Result<Retries> {
        let path = self.retry_path(destination);
        if !path.exists() {
            return Ok(Retries::default());
        }
        let _lock = self.lock()?;
        first_letters(&path, max)
    }

    /// Has feedback that is to be sent again taken up by `take`: the first few. None of it is taken up twice at a time.
    pub fn retries_of_feedback(&self, max: usize, mut take: impl FnMut(&Letter) -> io::Result<()>) -> io::Result<()> {
        let path = self.retry_path(FEEDBACK);
        if !path.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let retries = first_letters(&path, max)?;
        if retries.is_empty() {
            return Ok(());
        }
        retries.letters.iter().try_for_each(&mut take)?;
        rewrite(&path, retries.bytes, |_| Ok(true))
    }

    /// Forgets retries that were delivered or parked again.
    pub fn retried(&self, destination: &str, retries: &Retries) -> io::Result<()> {
        let _lock = self.lock()?;
        let path = self.retry_path(destination);
        rewrite(&path, retries.bytes, |_| Ok(true))
    }

    fn path(&self) -> PathBuf {
        self.dir.join(self.file)
    }

    fn retry_path(&self, destination: &str) -> PathBuf {
        self.dir.join(format!("retry-{destination}.jsonl"))
    }

    /// Held until the file is dropped.
    fn lock(&self) -> io::Result<File> {
        let path = self.dir.join("dead-letters.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(file)
    }
}

impl Retries {
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

fn first_letters(path: &Path, max: usize) -> io::Result<Retries> {
    const MAX_BYTES: u64 = 4 << 20;
    let mut reader = match File::open(path) {
        Ok(file) => BufReader::new(file),
        // Another was quicker.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Retries::default()),
        Err(error) => return Err(error),
    };
    let mut retries = Retries::default();
    let mut line = Vec::new();
    while retries.letters.len() < max && retries.bytes < MAX_BYTES {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        retries.bytes += read as u64;
        match serde_json::from_slice(&line) {
            Ok(letter) => retries.letters.push(letter),
            Err(_) => tracing::error!("a line of {} cannot be read and is passed over", path.display()),
        }
    }
    Ok(retries)
}

fn line_of(letter: &Letter) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(letter)?;
    line.push(b'\n');
    Ok(line)
}

fn each_line(path: &Path, mut visit: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        // A last line without its end is being cut off: nobody was told that it is safe.
        if line.last() == Some(&b'\n') {
            visit(&line)?;
        }
        line.clear();
    }
    Ok(())
}

/// Replaces the file by the lines behind `from` that are to be kept; an empty one goes.
fn rewrite(path: &Path, from: u64, mut keep: impl FnMut(&[u8]) -> io::Result<bool>) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::new(file);
    let temporary = durable::sibling(path, ".tmp");
    let kept = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let mut writer = BufWriter::new(kept);
    let (mut line, mut any) = (Vec::new(), false);
    while reader.read_until(b'\n', &mut line)? > 0 {
        if line.last() == Some(&b'\n') && keep(&line)? {
            writer.write_all(&line)?;
            any = true;
        }
        line.clear();
    }
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    if any {
        fs::rename(&temporary, path)?;
    } else {
        fs::remove_file(path)?;
        fs::remove_file(&temporary)?;
    }
    durable::sync_parent(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: &str, destination: &str, is_run: bool) -> Letter {
        let content = || Some(RawValue::from_string(format!("{{\"id\":\"{id}\",\"n\":1e2}}")).unwrap());
        Letter {
            id: id.to_owned(),
            time: "t".to_owned(),
            destination: destination.to_owned(),
            status: 422,
            response: "no\nsuch field".to_owned(),
            run: if is_run { content() } else { None },
            feedback: if is_run { None } else { content() },
            line: None,
        }
    }

    fn ids(letters: &DeadLetters) -> Vec<String> {
        let mut ids = Vec::new();
        assert_eq!(letters.for_each(|letter| ids.push(letter.id.clone())).unwrap(), 0);
        ids
    }

    #[test]
    fn letters_go_back_to_their_destination_or_away_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let letters = DeadLetters::new(dir.path());
        assert_eq!(letters.retry(&Selection::All).unwrap(), 0);
        for (id, to, is_run) in
            [("1", "a", true), ("2", "a", true), ("3", "b", true), ("4", "a", false), ("5", "b", true)]
        {
            letters.park(&letter(id, to, is_run)).unwrap();
        }
        let only = |ids: &[&str]| Selection::Ids(ids.iter().map(|id| (*id).to_owned()).collect());
        assert_eq!(letters.forget(&only(&["5", "9"])).unwrap(), 1);
        assert_eq!(letters.retry(&only(&["1", "4"])).unwrap(), 2);
        assert_eq!(ids(&letters), ["2", "3"]);
        assert_eq!(letters.retry(&Selection::All).unwrap(), 2);
        assert!(ids(&letters).is_empty() && !dir.path().join("dead-letters.jsonl").exists());
        let waiting = letters.waiting().unwrap();
        assert_eq!(waiting, BTreeMap::from([("a".into(), 2), ("b".into(), 1), ("feedback".into(), 1)]));

        let first = letters.retries("a", 1).unwrap();
        assert_eq!(
            (first.letters[0].id.as_str(), first.letters[0].run.as_ref().unwrap().get()),
            ("1", "{\"id\":\"1\",\"n\":1e2}")
        );
        letters.retried("a", &first).unwrap();
        // What comes meanwhile is kept.
        let second = letters.retries("a", 10).unwrap();
        letters.park(&letter("6", "a", true)).unwrap();
        letters.retry(&Selection::All).unwrap();
        letters.retried("a", &second).unwrap();
        assert_eq!(letters.retries("a", 10).unwrap().letters[0].id, "6");
        let mut feedback = Vec::new();
        for _ in 0..2 {
            letters
                .retries_of_feedback(10, |letter| {
                    feedback.push(letter.id.clone());
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(feedback, ["4"]);
        assert!(letters.retries("c", 10).unwrap().is_empty());
    }
}
