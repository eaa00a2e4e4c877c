//! One destination's view of the spool.

use std::io;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Batch, Cursor, Spool};

/// The only one to move its destination's cursor.
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

    /// How far everything is delivered.
    pub fn cursor(&self) -> Cursor {
        self.spool.cursor(&self.destination)
    }

    /// The next lines: at most `max_lines`, at most `max_bytes` unless one line alone is longer. The same ones again
    /// until [`Queue::advance`].
    pub async fn read(&mut self, max_lines: usize, max_bytes: usize) -> io::Result<Batch> {
        let from = self.cursor();
        self.read_from(from, max_lines, max_bytes).await
    }

    /// The same from a place of one's own, for who delivers several batches at a time.
    pub async fn read_from(&mut self, from: Cursor, max_lines: usize, max_bytes: usize) -> io::Result<Batch> {
        // Seen before the read: what is published meanwhile ends the next wait.
        self.published.mark_unchanged();
        let spool = Arc::clone(&self.spool);
        let read = tokio::task::spawn_blocking(move || spool.read(from, max_lines, max_bytes));
        read.await.map_err(io::Error::other)?
    }

    /// Saves that the batch is delivered, and removes what nobody needs any more.
    pub fn advance(&self, batch: &Batch) -> io::Result<()> {
        self.spool.advance(&self.destination, batch.next, batch.lines.len() as u64)
    }

    /// The same up to a place, with the number of lines until there.
    pub async fn advance_to(&self, to: Cursor, lines: u64) -> io::Result<()> {
        let (spool, destination) = (Arc::clone(&self.spool), self.destination.clone());
        let saved = tokio::task::spawn_blocking(move || spool.advance(&destination, to, lines));
        saved.await.map_err(io::Error::other)?
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
        self.spool.waiting(&self.destination)
    }
}
