//! The rig that Parapet is measured with. `parapet-bench rig` takes a load per line of standard input (JSON, see
//! [`load::Plan`]) and answers each with a line of JSON; `parapet-bench json` turns YAML into JSON.

mod client;
mod guard;
mod http;
mod load;
mod messages;
mod model;
mod rig;
mod wire;

use std::io::{self, BufRead, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc;

use serde_json::{Value, json};

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("rig") => rig(),
        Some("json") => to_json(),
        _ => Err(io::Error::other("usage: parapet-bench rig|json")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "parapet-bench: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Aliases are resolved on the way.
fn to_json() -> io::Result<()> {
    let mut yaml = String::new();
    io::stdin().read_to_string(&mut yaml)?;
    let value: Value = serde_yaml_ng::from_str(&yaml).map_err(io::Error::other)?;
    say(&value)
}

fn say(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

/// Ends with its standard input.
fn rig() -> io::Result<()> {
    let mut rig = rig::Rig::open()?;
    let waker = rig.waker()?;
    let (sender, plans) = mpsc::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() || waker.wake().is_err() {
                return;
            }
        }
        drop(sender);
        let _ = waker.wake();
    });
    say(&json!({"port": rig.port()?}))?;
    let mut events = mio::Events::with_capacity(1024);
    loop {
        if !rig.is_busy() {
            match plans.try_recv() {
                Ok(line) => {
                    let started =
                        serde_json::from_str(&line).map_err(io::Error::other).and_then(|plan| rig.start(plan));
                    if let Err(error) = started {
                        say(&json!({"error": error.to_string()}))?;
                    }
                }
                Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                Err(mpsc::TryRecvError::Empty) => {}
            }
        }
        if let Some(report) = rig.turn(&mut events)? {
            say(&report)?;
        }
    }
}
