//! Runs that LangSmith refused for good, kept with its answer so that an operator can look and send them again.

use std::io;
use std::path::Path;

use serde::Serialize;
use serde_json::value::RawValue;

use super::order;
use super::run::Run;
use crate::spool::durable::Lines;

#[derive(Debug)]
pub struct DeadLetters(Lines);

#[derive(Serialize)]
struct Letter<'a> {
    time: String,
    status: u16,
    response: &'a str,
    run: &'a RawValue,
}

impl DeadLetters {
    pub fn open(path: &Path) -> io::Result<Self> {
        Lines::open(path).map(Self)
    }

    /// Parks the run; it is durable when this returns. A kill before the upload's cursor is saved can park a run twice.
    pub fn park(&mut self, run: &Run, status: u16, response: &str, now_us: u64) -> io::Result<()> {
        let whole = String::from_utf8(run.whole()?).map_err(io::Error::other)?;
        let whole = RawValue::from_string(whole)?;
        let mut line = serde_json::to_vec(&Letter { time: order::iso(now_us), status, response, run: &whole })?;
        line.push(b'\n');
        self.0.append(&line)
    }
}
