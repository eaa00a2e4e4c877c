//! Records whose spans the collector refused for good, kept with its answer so that an operator can look and send them
//! again. Bounded: a full file is put aside as `<name>.1`, and the one that was there before goes.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::langsmith::order;
use crate::spool::durable::{self, Lines};

const MAX_BYTES: u64 = 64 << 20;

#[derive(Debug)]
pub struct DeadLetters {
    lines: Lines,
    path: PathBuf,
}

#[derive(Serialize)]
struct Letter<'a> {
    time: String,
    status: u16,
    response: &'a str,
    /// The access log's line, of which the spans are made.
    line: &'a RawValue,
}

impl DeadLetters {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { lines: Lines::open(path)?, path: path.to_owned() })
    }

    /// Parks the record; it is durable when this returns. A kill before the export's progress is saved can park it
    /// twice.
    pub fn park(&mut self, line: &[u8], status: u16, response: &str, now_us: u64) -> io::Result<()> {
        let line: &RawValue = serde_json::from_slice(line)?;
        let mut letter = serde_json::to_vec(&Letter { time: order::iso(now_us), status, response, line })?;
        letter.push(b'\n');
        if !self.lines.is_empty() && self.lines.len() + letter.len() as u64 > MAX_BYTES {
            std::fs::rename(&self.path, durable::sibling(&self.path, ".1"))?;
            self.lines = Lines::open(&self.path)?;
        }
        self.lines.append(&letter)
    }
}
