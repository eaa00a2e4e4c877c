//! What a LangSmith says it takes (`GET /info`).

use std::time::{Duration, Instant};

use serde::Deserialize;

/// What was learnt holds for so long; a server may have been upgraded since.
const FRESH: Duration = Duration::from_secs(3600);
/// A server that gave no answer is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// How much one upload may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub runs: usize,
    /// Before compression.
    pub bytes: usize,
}

impl Default for Limits {
    /// What LangSmith's SDK falls back to.
    fn default() -> Self {
        Self { runs: 200, bytes: 20_971_520 }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
}

/// What is known about the server.
#[derive(Debug, Clone, Copy)]
pub struct Negotiated {
    pub limits: Limits,
    pub compression: Compression,
    /// No `/runs/multipart`: `/runs/batch` it is.
    pub batch_only: bool,
    pub(super) until: Instant,
}

#[derive(Deserialize)]
pub struct Info {
    instance_flags: Option<Flags>,
    batch_ingest_config: Option<Ingest>,
}

#[derive(Deserialize, Default)]
struct Flags {
    zstd_compression_enabled: Option<bool>,
    gzip_body_enabled: Option<bool>,
}

#[derive(Deserialize, Default)]
struct Ingest {
    use_multipart_endpoint: Option<bool>,
    size_limit: Option<usize>,
    size_limit_bytes: Option<usize>,
}

impl Negotiated {
    /// What is assumed when the server does not say.
    pub fn assumed() -> Self {
        Self {
            limits: Limits::default(),
            compression: Compression::None,
            batch_only: false,
            until: Instant::now() + ASK_AGAIN,
        }
    }

    pub fn learnt(info: Info) -> Self {
        let usual = Limits::default();
        let flags = info.instance_flags.unwrap_or_default();
        let ingest = info.batch_ingest_config.unwrap_or_default();
        Self {
            limits: Limits {
                runs: ingest.size_limit.unwrap_or(usual.runs).clamp(1, 10_000),
                bytes: ingest.size_limit_bytes.unwrap_or(usual.bytes).clamp(64 * 1024, 64 << 20),
            },
            compression: if flags.zstd_compression_enabled == Some(true) {
                Compression::Zstd
            } else if flags.gzip_body_enabled == Some(true) {
                Compression::Gzip
            } else {
                Compression::None
            },
            batch_only: ingest.use_multipart_endpoint == Some(false),
            until: Instant::now() + FRESH,
        }
    }

    pub fn is_stale(&self) -> bool {
        Instant::now() > self.until
    }
}
