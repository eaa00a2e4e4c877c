//! The sidecar rotates Envoy's access log: renames it when it is long and read to its end, has Envoy open a new one,
//! and removes the old one when what it held is uploaded.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::tail::Tail;
use crate::metrics::Metrics;
use crate::spool::{Cursor, Spool, durable};

/// Between two requests to reopen.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Rotator {
    path: PathBuf,
    old: PathBuf,
    max_bytes: u64,
    reopen_url: String,
    http: reqwest::Client,
    runtime: tokio::runtime::Handle,
    metrics: Arc<Metrics>,
    asked: Option<Instant>,
    /// The spool's end when the old file was first seen to be read out.
    uploaded_at: Option<Cursor>,
}

impl Rotator {
    pub fn new(path: PathBuf, max_bytes: u64, admin_url: &str, metrics: Arc<Metrics>) -> reqwest::Result<Self> {
        crate::langsmith::client::install_crypto();
        // Envoy's admin is a neighbour: no proxy of the environment stands between.
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        Ok(Self {
            old: durable::sibling(&path, ".1"),
            path,
            max_bytes,
            reopen_url: format!("{}/reopen_logs", admin_url.trim_end_matches('/')),
            http,
            runtime: tokio::runtime::Handle::current(),
            metrics,
            asked: None,
            uploaded_at: None,
        })
    }

    /// Does what is due; called when the tail has read everything.
    pub fn tick(&mut self, tail: &Tail, spool: &Spool) -> io::Result<()> {
        let Some(reading) = tail.inode() else { return Ok(()) };
        let (current, old) = (inode(&self.path)?, inode(&self.old)?);
        if current == Some(reading) {
            if old.is_some() {
                let mark = *self.uploaded_at.get_or_insert_with(|| spool.end());
                if spool.delivered() >= mark {
                    fs::remove_file(&self.old)?;
                    self.uploaded_at = None;
                }
            }
            if tail.offset() >= self.max_bytes {
                // An older file that still waits for its upload goes: all of it is in the spool.
                fs::rename(&self.path, &self.old)?;
                durable::sync_parent(&self.path)?;
                self.uploaded_at = None;
                self.metrics.file_event("rotated");
                self.reopen();
            }
        } else if current.is_none() && old == Some(reading) && self.asked.is_none_or(|at| at.elapsed() > AGAIN) {
            self.reopen();
        }
        Ok(())
    }

    fn reopen(&mut self) {
        self.asked = Some(Instant::now());
        let request = self.http.post(&self.reopen_url);
        let (url, metrics) = (self.reopen_url.clone(), Arc::clone(&self.metrics));
        self.runtime.spawn(async move {
            if let Err(error) = request.send().await.and_then(reqwest::Response::error_for_status) {
                metrics.file_event("reopen_failed");
                tracing::warn!("Envoy did not reopen its access log: POST {url}: {error}; trying again");
            }
        });
    }
}

fn inode(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
