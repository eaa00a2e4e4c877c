//! `parapet up` as an operator meets it: it serves, it ends, it leaves nothing behind, and it says what is wrong.
//!
//! `scripts/test e2e` sets what this needs: `ENVOY_BIN`, `PARAPET_WASM`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails by panicking, as a test does")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

fn needed(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: run scripts/test e2e")).into()
}

/// `parapet up` on free ports and with nothing from the caller's environment but what it needs.
fn parapet_up(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parapet"));
    command
        .arg("up")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("ENVOY_BIN", needed("ENVOY_BIN"))
        .env("PARAPET_WASM", needed("PARAPET_WASM"))
        .env("PARAPET_DATA_DIR", data)
        .envs(["PARAPET_PORT", "PARAPET_ADMIN_PORT", "PARAPET_SIDECAR_PORT"].map(|port| (port, "0")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A running one. Its children are tied to it, so that a failed test leaves none.
struct Up {
    process: Child,
    address: SocketAddr,
}

impl Up {
    fn start(command: &mut Command) -> Self {
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim_end().strip_prefix("parapet ready: http://") else {
            let _ = process.kill();
            panic!("{line:?}: {}", rest(&mut process));
        };
        let address = address.parse().unwrap();
        Self { process, address }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// The children as (pid, command line).
    fn children(&self) -> Vec<(i32, String)> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(|child| (child.parse().unwrap(), command_line(child))).collect()
    }

    fn child(&self, what: &str) -> i32 {
        let children = self.children();
        let found = children.iter().find(|(_, command)| command.contains(what));
        found.unwrap_or_else(|| panic!("no {what} in {children:?}")).0
    }

    /// The exit code (`None`: a signal) and standard error, once it has ended.
    fn ended(mut self) -> (Option<i32>, String) {
        let text = rest(&mut self.process);
        (self.process.wait().unwrap().code(), text)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn rest(process: &mut Child) -> String {
    let mut text = String::new();
    process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

fn command_line(pid: &str) -> String {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ")
}

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Waits until none of these processes is left. One that only waits to be collected has ended.
fn all_gone(children: &[(i32, String)]) {
    let runs = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        status.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<_> =
            children.iter().filter(|(pid, command)| runs(pid) && command_line(&pid.to_string()) == *command).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Runs one that is expected to give up: exit status 1 and one line about why.
fn refused(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert_eq!(String::from_utf8(stdout).unwrap(), "", "the ready line is for those who are ready");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("parapet: error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(stderr.trim_end().ends_with(errors[0]), "the reason is not the last line: {stderr}");
    errors[0].to_owned()
}

#[test]
fn it_serves_when_it_says_so_and_ends_when_asked() {
    for signal in [Signal::TERM, Signal::INT] {
        let data = tempfile::tempdir().unwrap();
        let up = Up::start(&mut parapet_up(data.path()));
        assert!(get(up.address, "/healthz").starts_with("HTTP/1.1 200 "));
        let children = up.children();
        assert_eq!(children.len(), 5, "three simulators, sidecar, Envoy: {children:?}");
        kill(up.pid(), signal);
        let (code, stderr) = up.ended();
        assert_eq!(code, Some(0), "{stderr}");
        all_gone(&children);
    }
}

#[test]
fn a_child_that_dies_is_named_and_takes_everything_down() {
    for (name, what) in [("sidecar", " sidecar "), ("envoy", "--config-path"), ("sim vllm", "sim vllm")] {
        let data = tempfile::tempdir().unwrap();
        let up = Up::start(&mut parapet_up(data.path()));
        let children = up.children();
        kill(up.child(what), Signal::KILL);
        let (code, stderr) = up.ended();
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(&format!("parapet: error: {name} ended with signal: 9 (SIGKILL)")), "{stderr}");
        all_gone(&children);
    }
}

#[test]
fn nothing_outlives_a_killed_supervisor() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(&mut parapet_up(data.path()));
    let children = up.children();
    kill(up.pid(), Signal::KILL);
    assert_eq!(up.ended().0, None);
    all_gone(&children);
    // The lock on the data directory went with it.
    let again = Up::start(&mut parapet_up(data.path()));
    kill(again.pid(), Signal::TERM);
    assert_eq!(again.ended().0, Some(0));
}

#[test]
fn a_child_that_does_not_end_is_killed() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(&mut parapet_up(data.path()));
    let children = up.children();
    kill(up.child(" sidecar "), Signal::STOP);
    kill(up.pid(), Signal::TERM);
    let (code, stderr) = up.ended();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("parapet: sidecar does not end; killing it"), "{stderr}");
    all_gone(&children);
}

#[test]
fn each_child_has_its_own_keys_and_no_others() {
    let keys = ["VLLM_API_KEY", "LLAMAGUARD_API_KEY", "OPENAI_API_KEY", "LANGSMITH_API_KEY"];
    let data = tempfile::tempdir().unwrap();
    // An endpoint that refuses connections: the sidecar keeps what it cannot send.
    let up = Up::start(
        parapet_up(data.path()).envs(keys.map(|key| (key, "k-secret"))).env("LANGSMITH_ENDPOINT", "http://127.0.0.1:9"),
    );
    let table: [(&str, &[&str]); 5] = [
        ("--config-path", &["VLLM_API_KEY", "LLAMAGUARD_API_KEY", "OPENAI_API_KEY"]),
        (" sidecar ", &["LANGSMITH_API_KEY"]),
        ("sim vllm", &["VLLM_API_KEY"]),
        ("sim llama-guard", &["LLAMAGUARD_API_KEY"]),
        ("sim openai", &["OPENAI_API_KEY"]),
    ];
    for (what, expected) in table {
        let environment = std::fs::read(format!("/proc/{}/environ", up.child(what))).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        let has = |key: &str| environment.split('\0').any(|entry| entry.starts_with(&format!("{key}=")));
        let found: Vec<&str> = keys.into_iter().filter(|key| has(key)).collect();
        assert_eq!(found, expected, "{what}");
    }
    assert!(up.children().iter().all(|(_, command)| !command.contains("k-secret")), "a key is in a command line");
    kill(up.pid(), Signal::TERM);
    let (_, stderr) = up.ended();
    assert!(!stderr.contains("k-secret"), "{stderr}");
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    for variable in ["PARAPET_PORT", "PARAPET_ADMIN_PORT", "PARAPET_SIDECAR_PORT"] {
        let data = tempfile::tempdir().unwrap();
        let error = refused(parapet_up(data.path()).env(variable, &port));
        let expected =
            format!("port {port} on 127.0.0.1 is in use: stop what listens there or set {variable} to another");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn a_configuration_that_envoy_refuses_is_one_clear_line() {
    let data = tempfile::tempdir().unwrap();
    let shipped = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/envoy.yaml")).unwrap();
    let table = [
        ("request_headers_timeout: 10s", "request_header_timeout: 10s", "no such field: 'request_header_timeout'"),
        ("connect_timeout: 0.25s", "connect_timeout: -1s", "Expected positive duration"),
    ];
    for (right, wrong, expected) in table {
        assert!(shipped.contains(right), "{right}");
        let file = data.path().join("broken.yaml");
        std::fs::write(&file, shipped.replacen(right, wrong, 1)).unwrap();
        let error = refused(parapet_up(data.path()).env("PARAPET_CONFIG", &file));
        assert!(error.contains("Envoy refuses what") && error.contains(expected), "{error}");
    }
}

#[test]
fn what_is_missing_is_one_clear_line() {
    let data = tempfile::tempdir().unwrap();
    let table = [
        ("ENVOY_BIN", "/nowhere/envoy", "ENVOY_BIN names /nowhere/envoy, which is no file"),
        ("ENVOY_BIN", "", "there is no Envoy on the PATH: run scripts/up"),
        ("PARAPET_WASM", "/nowhere/parapet.wasm", "run scripts/build-wasm or set PARAPET_WASM"),
        ("PARAPET_CONFIG", "/nowhere/envoy.yaml", "cannot read /nowhere/envoy.yaml"),
        ("PARAPET_PORT", "65536", "PARAPET_PORT is `65536`"),
        ("VLLM_URL", "127.0.0.1:8000", "VLLM_URL is no URL"),
    ];
    for (variable, value, expected) in table {
        let error = refused(parapet_up(data.path()).env("PATH", "/nowhere").env(variable, value));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn one_data_directory_serves_one_gateway() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(&mut parapet_up(data.path()));
    let error = refused(&mut parapet_up(data.path()));
    assert!(error.contains("another `parapet up` uses") && error.contains("PARAPET_DATA_DIR"), "{error}");
    assert!(get(up.address, "/healthz").starts_with("HTTP/1.1 200 "));
}
