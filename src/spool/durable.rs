//! Files that survive a kill: private modes, atomic replacement, appends that are whole or undone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// Makes the directory and its parents, readable by their owner only.
pub fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path)
}

/// Replaces a whole file so that a reader after a crash sees either the old content or the new one.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = sibling(path, ".tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Makes creations, renames and removals in the file's directory durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// The path with something after its file name.
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A file of lines that only grows. An append is durable when it returns, or it has left no trace.
#[derive(Debug)]
pub struct Lines {
    file: File,
    len: u64,
}

impl Lines {
    /// Opens or creates the file. A last line without its end, left by a crash in mid-write, is cut off: no caller was
    /// ever told that it was safe.
    pub fn open(path: &Path) -> io::Result<Self> {
        let is_new = !path.exists();
        let file = OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).open(path)?;
        if is_new {
            sync_parent(path)?;
        }
        let found = file.metadata()?.len();
        let len = whole_lines(&file, found)?;
        if len < found {
            file.set_len(len)?;
            file.sync_all()?;
        }
        Ok(Self { file, len })
    }

    pub const fn len(&self) -> u64 {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends whole lines (each ended by `\n`) and waits until the disk has them.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        // A disk that filled up may have taken a part of the last append, and even the cut below may have failed.
        if self.file.metadata()?.len() != self.len {
            self.file.set_len(self.len)?;
        }
        match (&self.file).write_all(lines).and_then(|()| self.file.sync_data()) {
            Ok(()) => {
                self.len += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(self.len)?;
                Err(error)
            }
        }
    }

    /// Everything, from the start.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        self.read_tail(self.len)
    }

    /// The last `max` bytes, from the start of a line on.
    pub fn read_tail(&self, max: u64) -> io::Result<Vec<u8>> {
        tail_of(&self.file, self.len, max)
    }
}

/// The last `max` bytes of a file of lines that another process may be writing, from the start of a line on.
pub fn read_tail(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    tail_of(&file, len, max)
}

fn tail_of(mut file: &File, len: u64, max: u64) -> io::Result<Vec<u8>> {
    let from = len.saturating_sub(max);
    file.seek(SeekFrom::Start(from))?;
    let mut content = Vec::new();
    file.take(len - from).read_to_end(&mut content)?;
    if from > 0 {
        let mut before = [0_u8; 1];
        file.read_exact_at(&mut before, from - 1)?;
        if before != *b"\n" {
            let cut = content.iter().position(|&byte| byte == b'\n').map_or(content.len(), |at| at + 1);
            content.drain(..cut);
        }
    }
    Ok(content)
}

/// The length up to and with the last line end.
fn whole_lines(file: &File, len: u64) -> io::Result<u64> {
    const STEP: u64 = 64 * 1024;
    let mut end = len;
    while end > 0 {
        let start = end.saturating_sub(STEP);
        let mut block = vec![0_u8; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(&mut block, start)?;
        if let Some(at) = block.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_torn_last_line_is_cut_off_at_every_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let whole = b"one\ntwo\nthree\n";
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut lines = Lines::open(&path).unwrap();
            lines.append(b"next\n").unwrap();
            let kept = whole[..cut].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            let expected = [&whole[..kept], b"next\n"].concat();
            assert_eq!(fs::read(&path).unwrap(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_tail_begins_at_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines");
        let mut lines = Lines::open(&path).unwrap();
        lines.append(b"one\ntwo\nthree\n").unwrap();
        assert_eq!(lines.read_tail(8).unwrap(), b"three\n");
        assert_eq!(lines.read_tail(6).unwrap(), b"three\n");
        assert_eq!(lines.read_tail(5).unwrap(), b"");
        assert_eq!(lines.read_tail(100).unwrap(), b"one\ntwo\nthree\n");
    }

    #[test]
    fn files_and_directories_are_private() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        private_dir(&dir).unwrap();
        let path = dir.join("file");
        replace(&path, b"x").unwrap();
        Lines::open(&dir.join("lines")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&path), mode(&dir.join("lines"))), (0o700, 0o600, 0o600));
    }
}
