//! Standard error, shared by the supervisor and its children's output.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Lines that may wait for a slow terminal.
const CAPACITY: usize = 1024;

/// Writes lines from a thread of its own: a terminal that is stopped, or a pipe that nobody reads, must not stop the
/// supervisor with it. What does not fit is dropped and counted.
#[derive(Clone)]
pub(super) struct Console {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
}

/// Resolves when everything was written; see [`Closing::wait`].
pub(super) struct Closing(Receiver<()>);

impl Console {
    pub(super) fn open() -> (Self, Closing) {
        let (lines, waiting) = sync_channel::<String>(CAPACITY);
        let (finished, closing) = sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let missed = Arc::clone(&dropped);
        std::thread::spawn(move || {
            for line in waiting {
                let mut stderr = std::io::stderr().lock();
                // A closed standard error has no reader to be told.
                let _ = writeln!(stderr, "{line}");
                let missed = missed.swap(0, Ordering::Relaxed);
                if missed > 0 {
                    let _ = writeln!(stderr, "parapet: {missed} lines were dropped: standard error is too slow");
                }
            }
            let _ = finished.send(());
        });
        (Self { lines, dropped }, Closing(closing))
    }

    pub(super) fn line(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A line of the supervisor's own.
    pub(super) fn say(&self, text: impl std::fmt::Display) {
        self.line(format!("parapet: {text}"));
    }
}

impl Closing {
    /// Waits, a second at most, for the last lines once every [`Console`] is gone.
    pub(super) fn wait(self) {
        let _ = self.0.recv_timeout(Duration::from_secs(1));
    }
}
