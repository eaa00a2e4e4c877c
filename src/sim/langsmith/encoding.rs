//! `Content-Encoding` of a request, as far as the server takes it.

use std::io::{self, Read};

use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;

use super::run::Refusal;

/// What `GET /info` says the server takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Encodings {
    pub(super) zstd: bool,
    pub(super) gzip: bool,
}

/// The plain body, of at most `limit` bytes.
pub(super) fn decode(headers: &HeaderMap, body: Bytes, takes: Encodings, limit: usize) -> Result<Bytes, Refusal> {
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let compressed = body.len();
    let plain = match encoding.as_deref() {
        None | Some("identity") if compressed > limit => return Err(too_large(limit)),
        None | Some("identity") => body,
        Some("zstd") if takes.zstd => read(zstd::stream::read::Decoder::new(&body[..]), limit)?,
        Some("gzip") if takes.gzip => read(Ok(flate2::read::MultiGzDecoder::new(&body[..])), limit)?,
        Some(other) => {
            let message = format!("content-encoding {other} is not enabled");
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    };
    let needed = encoding.as_deref() == Some("zstd");
    for (name, actual) in [("x-pre-compressed-size", plain.len()), ("x-post-compressed-size", compressed)] {
        let said = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        match said {
            None if !needed => {}
            Some(said) if said == actual.to_string() => {}
            said => {
                let said = said.unwrap_or_else(|| "missing".to_owned());
                let message = format!("{name} is {said}, the body has {actual} bytes");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
            }
        }
    }
    Ok(plain)
}

fn read(decoder: io::Result<impl Read>, limit: usize) -> Result<Bytes, Refusal> {
    let mut plain = Vec::new();
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decoder
        .and_then(|decoder| decoder.take(bound).read_to_end(&mut plain))
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body cannot be decoded: {error}")))?;
    if plain.len() > limit { Err(too_large(limit)) } else { Ok(plain.into()) }
}

fn too_large(limit: usize) -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("body is above {limit} bytes"))
}
