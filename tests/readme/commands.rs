//! The README's commands, run as they stand against a stack of their own, and their outputs compared with what is shown.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::page::Page;

const PATIENCE: Duration = Duration::from_secs(10);

/// `parapet up` with simulators. Its children are tied to it.
struct Stack {
    process: Child,
    /// Where the README says 127.0.0.1:8080 and 127.0.0.1:9090.
    gateway: String,
    sidecar: String,
    data: tempfile::TempDir,
}

pub(crate) fn needed(variable: &str) -> std::ffi::OsString {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: run scripts/test e2e"))
}

impl Stack {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let messages = data.path().join("stderr");
        // The sidecar's port is not announced on standard output: one that was free a moment ago.
        let sidecar = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut process = Command::new(needed("PARAPET_BIN"))
            .arg("up")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("ENVOY_BIN", needed("ENVOY_BIN"))
            .env("PARAPET_WASM", needed("PARAPET_WASM"))
            .env("PARAPET_CONFIG", concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/envoy.yaml"))
            .env("PARAPET_DATA_DIR", data.path().join("data"))
            .envs(["PARAPET_PORT", "PARAPET_ADMIN_PORT"].map(|port| (port, "0")))
            .env("PARAPET_SIDECAR_PORT", sidecar.port().to_string())
            // Whoever types is slower than the log; a test that repeats a request at once must meet the same worker.
            .env("PARAPET_CONCURRENCY", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&messages).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(gateway) = line.trim_end().strip_prefix("parapet ready: http://").map(str::to_owned) else {
            let _ = process.kill();
            panic!("{line:?}: {}", std::fs::read_to_string(messages).unwrap());
        };
        Self { process, gateway, sidecar: sidecar.to_string(), data }
    }

    /// What a command of the README prints here.
    fn run(&self, command: &str) -> String {
        let here = command.replace("127.0.0.1:8080", &self.gateway).replace("127.0.0.1:9090", &self.sidecar);
        let output = Command::new("sh").arg("-c").arg(&here).stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("not found"), "{stderr}: what the README needs is missing (apt-get install curl)");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What differs between two runs, made equal: ids, dates, seconds that pass.
fn normalised(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = without_uuids(line.trim_end_matches('\r'));
        match line.split_once(": ") {
            Some(("date", _)) => "date: D".to_owned(),
            Some(("age", _)) => "age: N".to_owned(),
            _ => ["\"created\":", "ttl=", "429 retry-after: "]
                .into_iter()
                .fold(line, |line, before| without_number(&line, before)),
        }
    });
    lines.flat_map(|line| [line, "\n".to_owned()]).collect::<String>().trim_end().to_owned()
}

/// A UUID is 36 characters of hexadecimal digits and dashes; no other word of the outputs is so long.
fn without_uuids(line: &str) -> String {
    let mut result = String::new();
    let mut rest = line;
    while let Some(character) = rest.chars().next() {
        let id = rest.get(..36).is_some_and(|id| {
            id.char_indices().all(|(i, c)| if matches!(i, 8 | 13 | 18 | 23) { c == '-' } else { c.is_ascii_hexdigit() })
        });
        let taken = if id { 36 } else { character.len_utf8() };
        result.push_str(if id { "UUID" } else { &rest[..taken] });
        rest = &rest[taken..];
    }
    result
}

fn without_number(line: &str, before: &str) -> String {
    let Some((start, rest)) = line.split_once(before) else { return line.to_owned() };
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{start}{before}N{rest}")
}

/// Whether `shown` is `real` with a `...` for what was left out. The order of headers is nobody's promise.
fn shows(shown: &str, real: &str) -> bool {
    let (Some((shown_head, shown_body)), Some((real_head, real_body))) = (head_and_body(shown), head_and_body(real))
    else {
        return shows_text(shown, real);
    };
    let real: BTreeSet<&str> = real_head.lines().collect();
    let (gaps, lines): (Vec<&str>, Vec<&str>) = shown_head.lines().partition(|line| *line == "...");
    let whole = !gaps.is_empty() || lines.len() == real.len();
    whole && lines.iter().all(|line| real.contains(line)) && shows_text(shown_body, real_body)
}

fn head_and_body(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix("HTTP/1.1 ")?.split_once("\n\n")
}

fn shows_text(shown: &str, real: &str) -> bool {
    let mut pieces = shown.split("...");
    let Some(mut rest) = pieces.next().and_then(|first| real.strip_prefix(first)) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn the_readme_shows_what_a_real_stack_answers() {
    let stack = Stack::start();
    let page = Page::open("README.md");
    let mut blocks = page.blocks().into_iter().peekable();
    let mut compared = 0;
    while let Some(command) = blocks.next() {
        if command.info != "sh test" {
            continue;
        }
        let shown = blocks.next_if(|output| output.follows).unwrap_or_else(|| panic!("no output: {}", command.text));
        let shown = normalised(&shown.text);
        // What the sidecar knows comes by way of the log.
        let waits = command.text.contains("127.0.0.1:9090");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let real = normalised(&stack.run(&command.text));
            if shows(&shown, &real) {
                break;
            }
            assert!(
                waits && Instant::now() < deadline,
                "{}\nshown:\n{shown}\nreal:\n{real}\n{}",
                command.text,
                std::fs::read_to_string(stack.data.path().join("stderr")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        compared += 1;
    }
    assert!(compared >= 10, "only {compared} commands were found");
}

#[test]
fn every_endpoint_has_a_command() {
    let commands: String = Page::open("README.md")
        .blocks()
        .iter()
        .filter(|block| block.info == "sh test")
        .map(|block| block.text.as_str())
        .collect();
    for path in ["/v1/chat/completions", "/chat ", "/v1/models", "/feedback", "/healthz", "/metrics"] {
        assert!(commands.contains(path), "{path}");
    }
}

#[test]
fn a_shown_output_may_leave_out_but_not_invent() {
    for (shown, real, is_so) in [
        ("a b c", "a b c", true),
        ("a...c", "a b c", true),
        ("a...", "a b c", true),
        ("a...b...c", "a b c", true),
        ("a...x...c", "a b c", false),
        ("a b", "a b c", false),
        ("b...", "a b c", false),
        ("...b", "a b c", false),
        ("HTTP/1.1 200 OK\nb: 2\na: 1\n\nx", "HTTP/1.1 200 OK\na: 1\nb: 2\n\nx", true),
        ("HTTP/1.1 200 OK\na: 1\n...\n\nx", "HTTP/1.1 200 OK\na: 1\nb: 2\n\nx", true),
        ("HTTP/1.1 200 OK\na: 1\n\nx", "HTTP/1.1 200 OK\na: 1\nb: 2\n\nx", false),
        ("HTTP/1.1 200 OK\nc: 1\n...\n\nx", "HTTP/1.1 200 OK\na: 1\n\nx", false),
        ("HTTP/1.1 200 OK\n...\n\nx", "HTTP/1.1 403 Forbidden\n\nx", false),
    ] {
        assert_eq!(shows(shown, real), is_so, "{shown}");
    }
    assert_eq!(
        normalised("x-id: 01a20cba-c1c9-7d97-9ecd-d25013a084b8\r\nage: 3\n{\"created\":12,\"a\":1}\n"),
        "x-id: UUID\nage: N\n{\"created\":N,\"a\":1}"
    );
}
