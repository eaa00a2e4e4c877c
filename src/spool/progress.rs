//! How far each destination has come, in a file of its own: `cursor-<name>.json` beside the segments.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::{Batch, Cursor, Spool, durable};

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    pub(super) cursor: Cursor,
    /// Published lines behind the cursor.
    pub(super) waiting: u64,
}

/// One destination's view of the spool. It is the only one to move that destination's cursor.
#[derive(Debug)]
pub struct Queue {
    spool: Arc<Spool>,
    destination: String,
    published: watch::Receiver<()>,
}

impl Queue {
    pub(super) fn new(spool: Arc<Spool>, destination: String, published: watch::Receiver<()>) -> Self {
        Self { spool, destination, published }
    }

    pub fn destination(&self) -> &str {
        &self.destination
    }

    /// The next lines: at most `max_lines`, at most `max_bytes` unless one line alone is longer. The same ones again
    /// until [`Queue::advance`].
    pub async fn read(&mut self, max_lines: usize, max_bytes: usize) -> io::Result<Batch> {
        // Seen before the read: what is published meanwhile ends the next wait.
        self.published.mark_unchanged();
        let (spool, cursor) = (Arc::clone(&self.spool), self.spool.progress(&self.destination).cursor);
        let read = tokio::task::spawn_blocking(move || spool.read(cursor, max_lines, max_bytes));
        read.await.map_err(io::Error::other)?
    }

    /// Saves that the batch is delivered, and removes what nobody needs any more.
    pub fn advance(&self, batch: &Batch) -> io::Result<()> {
        self.spool.advance(&self.destination, batch.next, batch.lines.len() as u64)
    }

    /// Returns when something was published after the last read (or may have been).
    pub async fn changed(&mut self) {
        if self.published.changed().await.is_err() {
            // The spool outlives its queues; without a publisher nothing comes any more.
            std::future::pending().await
        }
    }

    /// Lines that wait for this destination.
    pub fn waiting(&self) -> u64 {
        self.spool.progress(&self.destination).waiting
    }
}

fn path(dir: &Path, destination: &str) -> PathBuf {
    dir.join(format!("cursor-{destination}.json"))
}

/// The saved cursor of a destination. One that was not configured at the last start begins at `end`.
pub(super) fn open(dir: &Path, destination: &str, end: Cursor) -> io::Result<Cursor> {
    let path = path(dir, destination);
    let cursor = match fs::read(&path) {
        Ok(content) => serde_json::from_slice::<Cursor>(&content).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is unreadable: {error}", path.display()))
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => end,
        Err(error) => return Err(error),
    };
    let cursor = cursor.min(end);
    save(dir, destination, cursor)?;
    Ok(cursor)
}

pub(super) fn save(dir: &Path, destination: &str, cursor: Cursor) -> io::Result<()> {
    durable::replace(&path(dir, destination), &serde_json::to_vec(&cursor)?)
}

/// Removes the cursors of destinations that are no longer configured.
pub(super) fn forget_others(dir: &Path, destinations: &[String]) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let destination = name.to_str().and_then(|name| name.strip_prefix("cursor-")?.strip_suffix(".json"));
        if destination.is_some_and(|destination| destinations.iter().all(|known| known != destination)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
