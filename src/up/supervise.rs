//! Children: started, watched, their output told apart, ended in order.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::console::Console;

/// How long a child has to end by itself.
const GRACE: Duration = Duration::from_secs(5);
/// Lines of a child that are kept to explain its death.
const TAIL: usize = 20;
/// Longer lines are cut into several.
const MAX_LINE: usize = 16 * 1024;
/// More children than there are: their deaths never wait for a place.
const CHILDREN: usize = 16;

/// A program to run under supervision.
pub(super) struct Program {
    /// What its lines and its death are announced with.
    pub(super) name: &'static str,
    pub(super) path: OsString,
    pub(super) arguments: Vec<OsString>,
    /// Its whole environment: nothing is inherited, so that no child sees another's keys.
    pub(super) environment: Vec<(OsString, OsString)>,
}

/// A child that ended without being asked.
#[derive(Debug)]
pub(super) struct Death {
    pub(super) name: &'static str,
    pub(super) status: Option<ExitStatus>,
    pub(super) tail: Vec<String>,
}

impl Death {
    /// Which child, how it ended, and its last words.
    pub(super) fn explain(&self) -> String {
        let status = self.status.map_or_else(|| "for an unknown reason".to_owned(), |status| format!("with {status}"));
        let mut text = format!("{} ended {status}", self.name);
        match self.tail.len() {
            0 => text.push_str("; it said nothing"),
            _ => text.push_str("; its last lines were:"),
        }
        for line in &self.tail {
            text.push_str("\n  ");
            text.push_str(line);
        }
        text
    }
}

struct Handle {
    name: &'static str,
    /// Closed when the child is gone.
    signals: mpsc::Sender<Signal>,
}

/// Starts children and ends them in the reverse order.
pub(super) struct Supervisor {
    console: Console,
    children: Vec<Handle>,
    deaths: mpsc::Sender<Death>,
}

impl Supervisor {
    pub(super) fn new(console: Console) -> (Self, mpsc::Receiver<Death>) {
        let (deaths, receiver) = mpsc::channel(CHILDREN);
        (Self { console, children: Vec::new(), deaths }, receiver)
    }

    /// Starts a program, tied to this process (see [`super::tied`]). Must be called on the main thread: the kernel ends
    /// a tied child when the *thread* that started it ends.
    pub(super) fn start(&mut self, program: Program) -> anyhow::Result<()> {
        let binary = std::env::current_exe().context("cannot find the running binary")?;
        let mut child = Command::new(binary)
            .arg("tied")
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(&program.path)
            .args(&program.arguments)
            .env_clear()
            .envs(program.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal goes to a whole process group; children are ended by us, in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.name))?;
        let tail = Tail::default();
        let readers = [
            child.stdout.take().map(|stream| self.relay(program.name, stream, &tail)),
            child.stderr.take().map(|stream| self.relay(program.name, stream, &tail)),
        ];
        let (signals, orders) = mpsc::channel(4);
        self.children.push(Handle { name: program.name, signals });
        tokio::spawn(watch(program.name, child, orders, readers, tail, self.deaths.clone()));
        Ok(())
    }

    /// Ends the children, the last started first, each with five seconds to finish. When `hurry` resolves, whatever
    /// still runs is killed.
    pub(super) async fn stop(self, hurry: impl Future<Output = ()>) {
        if !self.children.is_empty() {
            self.console.say("stopping");
        }
        let gently = async {
            for child in self.children.iter().rev() {
                if child.signals.send(Signal::TERM).await.is_err() {
                    continue;
                }
                if timeout(GRACE, child.signals.closed()).await.is_err() {
                    self.console.say(format_args!("{} does not end; killing it", child.name));
                    let _ = child.signals.send(Signal::KILL).await;
                    child.signals.closed().await;
                }
            }
        };
        tokio::select! {
            () = gently => return,
            () = hurry => {}
        }
        for child in &self.children {
            let _ = child.signals.try_send(Signal::KILL);
        }
        for child in &self.children {
            child.signals.closed().await;
        }
    }

    fn relay(
        &self,
        name: &'static str,
        stream: impl AsyncRead + Unpin + Send + 'static,
        tail: &Tail,
    ) -> JoinHandle<()> {
        let (console, tail) = (self.console.clone(), tail.clone());
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            while let Some(line) = next_line(&mut stream).await {
                console.line(format!("{name}| {line}"));
                tail.push(line);
            }
        })
    }
}

async fn watch(
    name: &'static str,
    mut child: Child,
    mut orders: mpsc::Receiver<Signal>,
    readers: [Option<JoinHandle<()>>; 2],
    tail: Tail,
    deaths: mpsc::Sender<Death>,
) {
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.ok(),
            Some(signal) = orders.recv() => {
                // Not waited for yet, so the number is still this child's.
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                if let Some(pid) = pid {
                    let _ = kill_process(pid, signal);
                }
            }
        }
    };
    for reader in readers.into_iter().flatten() {
        // Its own children may hold the pipe open.
        let _ = timeout(Duration::from_millis(500), reader).await;
    }
    let _ = deaths.try_send(Death { name, status, tail: tail.lines() });
}

/// The next line without its end, cut at [`MAX_LINE`]; `None` at the end of the stream.
async fn next_line(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut line = Vec::new();
    loop {
        let available = stream.fill_buf().await.ok()?;
        if available.is_empty() {
            return (!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned());
        }
        let room = MAX_LINE.saturating_sub(line.len()).min(available.len());
        let (chunk, _) = available.split_at_checked(room)?;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = chunk.get(..end.unwrap_or(room)).unwrap_or_default();
        line.extend_from_slice(taken);
        let used = taken.len() + usize::from(end.is_some());
        stream.consume(used);
        if end.is_some() || line.len() >= MAX_LINE {
            return Some(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned());
        }
    }
}

#[derive(Clone, Default)]
struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[tokio::test]
    async fn output_comes_line_by_line_and_endless_lines_are_cut() {
        let long = "x".repeat(MAX_LINE + 5);
        let text = format!("one\r\n\n{long}\nlast");
        let mut stream = BufReader::with_capacity(7, text.as_bytes());
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut stream).await {
            lines.push(line);
        }
        assert_eq!(lines, ["one", "", &long[..MAX_LINE], "xxxxx", "last"]);
    }

    #[test]
    fn a_death_says_who_how_and_the_last_words() {
        let death = |raw, tail: &[&str]| Death {
            name: "envoy",
            status: Some(ExitStatus::from_raw(raw)),
            tail: tail.iter().map(|line| (*line).to_owned()).collect(),
        };
        assert_eq!(death(0x100, &[]).explain(), "envoy ended with exit status: 1; it said nothing");
        assert_eq!(
            death(9, &["a", "b"]).explain(),
            "envoy ended with signal: 9 (SIGKILL); its last lines were:\n  a\n  b"
        );
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let tail = Tail::default();
        (0..TAIL + 3).for_each(|number| tail.push(number.to_string()));
        assert_eq!((tail.lines().len(), tail.lines()[0].as_str()), (TAIL, "3"));
    }
}
