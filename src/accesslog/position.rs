//! Where the tail stands, saved so that a restart goes on there.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::spool::durable;

/// So many bytes at the start of a file tell it from another that got the same inode, or from itself cut and grown
/// again: the first line holds a record's id.
pub const HEAD: usize = 256;

/// A place between two lines of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub inode: u64,
    pub offset: u64,
    /// How many of the file's first bytes `head_sha256` covers.
    #[serde(default)]
    pub head_len: usize,
    #[serde(default)]
    pub head_sha256: String,
}

impl Position {
    pub fn new(inode: u64, offset: u64, head: &[u8]) -> Self {
        Self { inode, offset, head_len: head.len(), head_sha256: fingerprint(head) }
    }
}

pub fn fingerprint(head: &[u8]) -> String {
    hex(&Sha256::digest(head))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The file that holds the position.
#[derive(Debug, Clone)]
pub struct PositionFile(PathBuf);

impl PositionFile {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The saved position; none when nothing was saved yet.
    pub fn load(&self) -> io::Result<Option<Position>> {
        match std::fs::read(&self.0) {
            Ok(content) => serde_json::from_slice(&content).map(Some).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{} is unreadable: {error}", self.0.display()))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Saves the position; it is durable when this returns.
    pub fn save(&self, position: &Position) -> io::Result<()> {
        durable::replace(&self.0, &serde_json::to_vec(position)?)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}
