//! A request's body, compressed as the server takes it.

use std::io::{self, Write as _};

use reqwest::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};

use super::super::info::Compression;

/// LangSmith's SDK uses the same.
const ZSTD_LEVEL: i32 = 1;

#[derive(Debug)]
pub(super) struct Body {
    pub(super) content_type: String,
    pub(super) headers: HeaderMap,
    pub(super) bytes: Vec<u8>,
}

impl Body {
    pub(super) fn plain(content_type: String, bytes: Vec<u8>) -> Self {
        Self { content_type, headers: HeaderMap::new(), bytes }
    }

    pub(super) fn new(content_type: String, plain: Vec<u8>, compression: Compression) -> io::Result<Self> {
        let mut headers = HeaderMap::new();
        let bytes = match compression {
            Compression::None => plain,
            Compression::Gzip => {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&plain)?;
                encoder.finish()?
            }
            Compression::Zstd => {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("zstd"));
                let compressed = zstd::bulk::compress(&plain, ZSTD_LEVEL)?;
                headers.insert("x-pre-compressed-size", HeaderValue::from(plain.len()));
                headers.insert("x-post-compressed-size", HeaderValue::from(compressed.len()));
                compressed
            }
        };
        Ok(Self { content_type, headers, bytes })
    }
}
