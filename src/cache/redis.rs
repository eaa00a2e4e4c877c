//! The shared half of the cache: what one sidecar stored, others find. It is an accelerator and no more: a Redis that is
//! slow, full or away makes misses, never errors.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parapet_engine::cache::Entry;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::metrics::Metrics;

/// A lookup is part of a request: the gateway itself waits 10 ms for the sidecar.
const LOOKUP: Duration = Duration::from_millis(5);
const WRITE: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_secs(2);
/// After a failed lookup none is tried for so long, so that a Redis that is away costs little.
const REST: Duration = Duration::from_secs(1);
/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(500);
/// Longer entries are not shared, and what is longer under one of our keys is not ours.
const MAX_ENTRY: usize = 1 << 20;
/// Entries that wait to be written; those beyond it are dropped and counted.
const QUEUE_KIB: usize = 32 << 10;

#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// Without the value and without the cause, which may quote it: it holds a password.
    #[error(
        "REDIS_URL is no Redis address; expected redis://[user:password@]host[:port][/database], or rediss:// for TLS"
    )]
    Url,
}

pub struct Redis {
    connection: ConnectionManager,
    prefix: String,
    writes: mpsc::UnboundedSender<Write>,
    room: Arc<Semaphore>,
    resting_until: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
}

struct Write {
    key: String,
    json: Bytes,
    expires_s: u64,
    _room: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Redis").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects in the background, now and whenever the connection is lost. Keys begin with `prefix`. Needs the runtime.
    ///
    /// # Errors
    /// When `url` is none.
    pub fn new(url: &str, prefix: &str, metrics: Arc<Metrics>) -> Result<Self, RedisError> {
        crate::langsmith::client::install_crypto();
        let client = redis::Client::open(url).map_err(|_| RedisError::Url)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(WRITE))
            .set_min_delay(RECONNECT)
            .set_max_delay(RECONNECT)
            .set_number_of_retries(1);
        let connection = ConnectionManager::new_lazy_with_config(client, config).map_err(|_| RedisError::Url)?;
        let (writes, queue) = mpsc::unbounded_channel();
        tokio::spawn(write(connection.clone(), queue, Arc::clone(&metrics)));
        Ok(Self {
            connection,
            prefix: prefix.to_owned(),
            writes,
            room: Arc::new(Semaphore::new(QUEUE_KIB)),
            resting_until: Mutex::new(None),
            metrics,
        })
    }

    /// The entry and its JSON, unless it is unknown, too old at `now_s` or not to be had in time.
    pub async fn get(&self, key: &str, now_s: u64) -> Option<(Bytes, Entry)> {
        if self.resting().is_some_and(|until| Instant::now() < until) {
            self.metrics.redis("get", "resting");
            return None;
        }
        let mut connection = self.connection.clone();
        let mut command = redis::cmd("GETRANGE");
        // Bounded, whatever somebody put there; an unknown key is empty.
        command.arg(self.key(key)).arg(0).arg(MAX_ENTRY);
        let json: Vec<u8> = match tokio::time::timeout(LOOKUP, command.query_async(&mut connection)).await {
            Ok(Ok(json)) => json,
            failed => {
                *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST);
                self.metrics.redis("get", if failed.is_err() { "timeout" } else { "failed" });
                return None;
            }
        };
        if json.is_empty() {
            self.metrics.redis("get", "miss");
            return None;
        }
        let entry = (json.len() <= MAX_ENTRY).then(|| serde_json::from_slice::<Entry>(&json).ok()).flatten();
        let Some(entry) = entry else {
            self.metrics.redis("get", "invalid");
            return None;
        };
        let live = entry.expires_s > now_s;
        self.metrics.redis("get", if live { "hit" } else { "miss" });
        live.then(|| (json.into(), entry))
    }

    /// Has the entry written soon; what there is no room for is dropped.
    pub fn offer(&self, key: &str, entry: &Entry) {
        let Ok(json) = serde_json::to_vec(entry) else { return };
        if json.len() > MAX_ENTRY {
            self.metrics.redis("set", "too_large");
            return;
        }
        let kib = u32::try_from(json.len().div_ceil(1024)).unwrap_or(u32::MAX).max(1);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(kib) else {
            self.metrics.redis("set", "dropped");
            return;
        };
        let write = Write { key: self.key(key), json: json.into(), expires_s: entry.expires_s, _room: room };
        // An error says that the process ends.
        let _ = self.writes.send(write);
    }

    fn resting(&self) -> Option<Instant> {
        *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// Writes one after the other. What cannot be written is not tried again: the next answer is written anew.
async fn write(mut connection: ConnectionManager, mut queue: mpsc::UnboundedReceiver<Write>, metrics: Arc<Metrics>) {
    let mut complained = false;
    // The first lookup finds a connection.
    let _ = redis::cmd("PING").query_async::<()>(&mut connection).await;
    while let Some(write) = queue.recv().await {
        let mut command = redis::cmd("SET");
        command.arg(&write.key).arg(&*write.json).arg("EXAT").arg(write.expires_s);
        match command.query_async::<()>(&mut connection).await {
            Ok(()) => {
                metrics.redis("set", "stored");
                if std::mem::take(&mut complained) {
                    tracing::info!("Redis takes answers again");
                }
            }
            Err(error) => {
                metrics.redis("set", "failed");
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!("Redis does not take answers ({}); they are cached here alone", error.category());
                }
            }
        }
    }
}
