//! The chain's lines: `{...event...,"prev":"<hash>","hash":"<hash>"}`. A line's `hash` is the SHA-256 of its bytes up to
//! the comma before `"hash"`; its `prev` is the `hash` of the line before, or zeros at the start.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Event;
use crate::accesslog::position::hex;
use crate::spool::durable;

/// The `prev` of the first line.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

const HASH_FIELD: &[u8] = b",\"hash\":\"";
/// `,"hash":"` + 64 digits + `"}`.
const HASH_END: usize = HASH_FIELD.len() + 64 + 2;

/// An intact chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub lines: u64,
    /// The newest line's hash: written down elsewhere, it also proves that no end was cut off.
    pub head: String,
}

/// Where the chain is broken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Broken {
    /// Counted from 1.
    pub line: u64,
    pub why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("it is not a line of the audit log")]
    Unreadable,
    #[error("it was changed: its hash is another")]
    Changed,
    #[error("the line before it is not the one it was written after")]
    Unlinked,
    #[error("it has no end")]
    Torn,
    #[error("the file cannot be read: {0}")]
    Io(String),
}

/// A line and its place in the chain.
#[derive(Debug)]
pub struct Link {
    pub event: Event,
    pub prev: String,
    pub hash: String,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    event: &'a Event,
    prev: &'a str,
}

#[derive(Deserialize)]
struct Read {
    #[serde(flatten)]
    event: Event,
    prev: String,
}

/// Writes the event as a line behind the one whose hash is `prev`; gives the new line's hash.
pub fn write(to: &mut Vec<u8>, event: &Event, prev: &str) -> io::Result<String> {
    let mut line = serde_json::to_vec(&Written { event, prev })?;
    line.pop();
    let hash = hex(&Sha256::digest(&line));
    line.extend_from_slice(HASH_FIELD);
    line.extend_from_slice(hash.as_bytes());
    line.extend_from_slice(b"\"}\n");
    to.extend_from_slice(&line);
    Ok(hash)
}

/// Reads a line (without its end) and checks its own hash.
pub fn read(line: &[u8]) -> Result<Link, Why> {
    let at = line.len().checked_sub(HASH_END).ok_or(Why::Unreadable)?;
    let (body, end) = line.split_at_checked(at).ok_or(Why::Unreadable)?;
    let hash = end
        .strip_prefix(HASH_FIELD)
        .and_then(|rest| rest.strip_suffix(b"\"}"))
        .and_then(|hash| std::str::from_utf8(hash).ok())
        .ok_or(Why::Unreadable)?;
    if hex(&Sha256::digest(body)) != hash {
        return Err(Why::Changed);
    }
    let whole = [body, b"}"].concat();
    let Read { event, prev } = serde_json::from_slice(&whole).map_err(|_| Why::Unreadable)?;
    Ok(Link { event, prev, hash: hash.to_owned() })
}

/// Checks the whole chain.
pub fn verify(path: &Path) -> Result<Verified, Broken> {
    let mut verified = Verified { lines: 0, head: GENESIS.to_owned() };
    let io = |line: u64| move |error: io::Error| Broken { line, why: Why::Io(error.to_string()) };
    let mut reader = BufReader::new(File::open(path).map_err(io(1))?);
    let mut line = Vec::new();
    loop {
        let number = verified.lines + 1;
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(io(number))? == 0 {
            return Ok(verified);
        }
        let broken = |why| Broken { line: number, why };
        let text = line.strip_suffix(b"\n").ok_or(broken(Why::Torn))?;
        let link = read(text).map_err(broken)?;
        if link.prev != verified.head {
            return Err(broken(Why::Unlinked));
        }
        verified = Verified { lines: number, head: link.hash };
    }
}

/// The newest `count` events, oldest first. Lines that cannot be read are left out: `verify` names them.
pub fn tail(path: &Path, count: usize) -> io::Result<Vec<Event>> {
    // With a text of 8,000 bytes, each of which JSON may write as six.
    const LONGEST: u64 = 52_000;
    let lines = durable::read_tail(path, (count as u64).saturating_mul(LONGEST))?;
    let events: Vec<Event> =
        lines.split(|&byte| byte == b'\n').filter_map(|line| read(line).ok()).map(|link| link.event).collect();
    Ok(events.into_iter().rev().take(count).rev().collect())
}
