//! Lines on their way from the server to the pipeline's thread, bounded in bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes that one permit stands for.
const UNIT: usize = 1024;

/// The end that lines are put into. When there is no room it waits, and Envoy then with it.
#[derive(Debug, Clone)]
pub struct Entrance {
    lines: mpsc::UnboundedSender<Arrived>,
    room: Arc<Semaphore>,
    units: u32,
}

/// The end that they are taken from.
#[derive(Debug)]
pub struct Arrivals(mpsc::UnboundedReceiver<Arrived>);

/// A line, and its room, which is free again when this is dropped.
#[derive(Debug)]
pub struct Arrived {
    line: Vec<u8>,
    room: OwnedSemaphorePermit,
}

impl Arrived {
    /// The line, and its room, to be kept until the line's effects are durable.
    pub fn split(self) -> (Vec<u8>, OwnedSemaphorePermit) {
        (self.line, self.room)
    }
}

/// A line takes at least 1 KiB of `max_bytes`.
pub fn channel(max_bytes: usize) -> (Entrance, Arrivals) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let units = u32::try_from(max_bytes / UNIT).unwrap_or(u32::MAX).max(1);
    let room = Arc::new(Semaphore::new(units as usize));
    (Entrance { lines: sender, room, units }, Arrivals(receiver))
}

impl Entrance {
    /// Waits for room; false when nobody takes lines any more.
    pub async fn put(&self, line: Vec<u8>) -> bool {
        // More than there is at all waits for all of it.
        let units = u32::try_from(line.len().div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.units);
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(units).await else { return false };
        self.lines.send(Arrived { line, room }).is_ok()
    }
}

impl Arrivals {
    /// What is there, about `max_bytes` of it at most. Never waits.
    pub fn take(&mut self, max_bytes: usize) -> Vec<Arrived> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < max_bytes
            && let Ok(arrived) = self.0.try_recv()
        {
            bytes += arrived.line.len();
            taken.push(arrived);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn lines_wait_for_room_and_come_out_in_order() {
        let (entrance, mut arrivals) = channel(4 * UNIT);
        for line in ["a", "b", "c", "d"] {
            assert!(entrance.put(line.into()).await);
        }
        let mut waiting = tokio::spawn({
            let entrance = entrance.clone();
            async move { entrance.put(vec![b'e'; 100 * UNIT]).await }
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.is_err(), "there is no room");
        let taken = arrivals.take(3);
        assert_eq!(taken.iter().map(|arrived| arrived.line.as_slice()).collect::<Vec<_>>(), [b"a", b"b", b"c"]);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.is_err(), "they are still at work");
        drop(taken);
        drop(arrivals.take(1));
        assert!(waiting.await.unwrap());
        assert_eq!(arrivals.take(1)[0].line.len(), 100 * UNIT);
        drop(arrivals);
        assert!(!entrance.put(b"late".to_vec()).await);
    }
}
