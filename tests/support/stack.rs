//! Starting it, asking it, ending it.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use parapet::sim::langsmith::LangSmith;
use parapet::sim::{ChatOptions, Faults, KeyOptions, SeenRequest, Simulator, langsmith, llama_guard, openai, vllm};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{ALICE, CHAT, GUARD_KEY, OPENAI_KEY, Request, Response, VLLM_KEY, eventually, needed};

pub struct Builder {
    edits: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    langsmith: bool,
    impatient: bool,
    ejecting: bool,
    replicas: usize,
    guard: llama_guard::Family,
}

impl Builder {
    /// Another guard than the shipped one, by its dialect's name.
    pub fn guard(mut self, family: llama_guard::Family, dialect: &str) -> Self {
        self.guard = family;
        self.edit("dialect: llama_guard_3", &format!("dialect: {dialect}"))
    }

    /// Changes the shipped configuration, everywhere the text stands.
    pub fn edit(mut self, from: &str, to: &str) -> Self {
        self.edits.push((from.to_owned(), to.to_owned()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// First-token limits that a test can wait for.
    pub fn impatient(mut self) -> Self {
        self.impatient = true;
        self
    }

    /// Ejects replicas as the shipped configuration does. Else none is, however often a test makes them fail.
    pub fn ejecting(mut self) -> Self {
        self.ejecting = true;
        self
    }

    /// So many servers of vLLM, one at least.
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// Runs are uploaded to a simulated LangSmith.
    pub fn langsmith(mut self) -> Self {
        self.langsmith = true;
        self
    }

    /// The shipped configuration with the edits, in the data directory.
    pub fn configuration(&self, directory: &Path) -> PathBuf {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/envoy.yaml");
        let mut text = std::fs::read_to_string(shipped).unwrap();
        for (from, to) in &self.edits {
            assert!(text.contains(from), "the shipped configuration has no {from:?}");
            text = text.replace(from, to);
        }
        if !self.ejecting {
            let shipped = "consecutive_5xx: 5\n";
            assert!(text.contains(shipped), "the shipped configuration ejects otherwise");
            text = text.replace(shipped, "consecutive_5xx: 1000000\n");
        }
        if self.impatient {
            let (before, rest) = text.split_once("first_token: {").unwrap();
            let (_, after) = rest.split_once('}').unwrap();
            text = format!(
                "{before}first_token: {{stream_ms: 300, json_ms: 300, per_token_ms: 0, deadline_ms: 3000}}{after}"
            );
        }
        let file = directory.join("envoy.yaml");
        std::fs::write(&file, text).unwrap();
        file
    }

    pub async fn start(self) -> Stack {
        let data = tempfile::tempdir().unwrap();
        let key = |key: &str| KeyOptions { api_key: Some(key.into()), api_key_env: None };
        let quick = |key| ChatOptions { key, first_token_ms: 5, token_ms: 0, ..ChatOptions::default() };
        let mut replicas = Vec::new();
        for _ in 0..self.replicas {
            replicas.push(vllm::start(quick(key(VLLM_KEY))).await.unwrap());
        }
        let vllm_url = replicas.iter().map(Simulator::url).collect::<Vec<_>>().join(",");
        let openai = openai::start(quick(key(OPENAI_KEY))).await.unwrap();
        let options =
            llama_guard::Options { key: key(GUARD_KEY), latency_ms: 1, family: self.guard, ..Default::default() };
        let guard = llama_guard::start(options).await.unwrap();
        let langsmith = langsmith::start(langsmith::Options::default()).await.unwrap();

        let mut command = Command::new(env!("CARGO_BIN_EXE_parapet"));
        command
            .arg("up")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("ENVOY_BIN", needed("ENVOY_BIN"))
            .env("PARAPET_WASM", needed("PARAPET_WASM"))
            .env("PARAPET_DATA_DIR", data.path().join("data"))
            .env("PARAPET_CONFIG", self.configuration(data.path()))
            // One worker: what one request left in its memory the next one finds.
            .env("PARAPET_CONCURRENCY", "1")
            .envs(
                ["PARAPET_PORT", "PARAPET_ADMIN_PORT", "PARAPET_SIDECAR_PORT"]
                    .map(|port| (port, free_port().to_string())),
            )
            .env("VLLM_URL", vllm_url)
            .env("VLLM_API_KEY", VLLM_KEY)
            .env("OPENAI_BASE_URL", openai.url())
            .env("OPENAI_API_KEY", OPENAI_KEY)
            .env("LLAMAGUARD_URL", guard.url())
            .env("LLAMAGUARD_API_KEY", GUARD_KEY);
        if self.langsmith {
            command.env("LANGSMITH_ENDPOINT", langsmith.url()).env("LANGSMITH_API_KEY", "ls-key");
        }
        command.envs(self.environment);
        let log = data.path().join("up.log");
        let up = Up::start(&mut command, log);
        let address = up.address;
        let (admin, sidecar) = ports(data.path());
        self_checked(&guard).await;
        Stack {
            up,
            replicas: replicas.into_iter().map(Some).collect(),
            openai: Some(openai),
            guard: Some(guard),
            langsmith: Some(langsmith),
            address,
            admin,
            sidecar,
            command,
            data,
        }
    }
}

/// A port below those that the kernel gives to outgoing connections, of which these tests make thousands: one that is
/// free now stays free until the server that it is meant for has it. Processes begin at different places.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let offset = std::process::id().wrapping_mul(311).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + offset % COUNT).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The gateway asks the guard about a known text when it starts; what is seen from now on is the test's.
async fn self_checked(guard: &Simulator) {
    eventually("the guard's self-check", async || {
        guard.requests().first().filter(|call| call.finished_us.is_some()).map(|_| ())
    })
    .await;
    guard.clear_requests();
}

/// Where Envoy's admin interface and the sidecar listen: written in the configuration that Envoy got.
fn ports(directory: &Path) -> (SocketAddr, SocketAddr) {
    let rendered = std::fs::read_to_string(directory.join("data/run/envoy.yaml")).unwrap();
    let rendered: Value = serde_yaml_ng::from_str(&rendered).unwrap();
    let local = |socket: &Value| {
        let port = socket["socket_address"]["port_value"].as_u64().unwrap();
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()))
    };
    let clusters = rendered["static_resources"]["clusters"].as_array().unwrap();
    let sidecar = clusters.iter().find(|cluster| cluster["name"] == "sidecar").unwrap();
    let sidecar = &sidecar["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    (local(&rendered["admin"]["address"]), local(sidecar))
}

/// A running `parapet up`. Its children are tied to it: ended with it, however it ends.
struct Up {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Up {
    fn start(command: &mut Command, log: PathBuf) -> Self {
        let output = File::create(&log).unwrap();
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(output).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim_end().strip_prefix("parapet ready: http://") else {
            let _ = process.kill();
            let _ = process.wait();
            panic!("{line:?}: {}", std::fs::read_to_string(&log).unwrap_or_default());
        };
        let address = address.parse().unwrap();
        Self { process, address, log }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("parapet up said:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// The product and the servers around it.
pub struct Stack {
    // Dropped first: what follows is what it talks to.
    up: Up,
    replicas: Vec<Option<Simulator>>,
    openai: Option<Simulator>,
    guard: Option<Simulator>,
    langsmith: Option<LangSmith>,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub sidecar: SocketAddr,
    command: Command,
    data: TempDir,
}

impl Stack {
    pub fn builder() -> Builder {
        Builder {
            edits: Vec::new(),
            environment: Vec::new(),
            langsmith: false,
            impatient: false,
            ejecting: false,
            replicas: 1,
            guard: llama_guard::Family::default(),
        }
    }

    /// As shipped.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    pub fn vllm(&self) -> &Simulator {
        self.replica(0)
    }

    pub fn replica(&self, index: usize) -> &Simulator {
        self.replicas[index].as_ref().expect("this vLLM was stopped")
    }

    /// Those that run.
    pub fn running(&self) -> impl Iterator<Item = &Simulator> {
        self.replicas.iter().flatten()
    }

    pub fn openai(&self) -> &Simulator {
        self.openai.as_ref().expect("OpenAI was stopped")
    }

    pub fn guard(&self) -> &Simulator {
        self.guard.as_ref().expect("the guard was stopped")
    }

    pub fn langsmith(&self) -> &LangSmith {
        self.langsmith.as_ref().expect("LangSmith was stopped")
    }

    /// Connecting to it is refused from now on.
    pub async fn stop_vllm(&mut self) {
        self.stop_replica(0).await;
    }

    /// The port that it had, for a later start.
    pub async fn stop_replica(&mut self, index: usize) -> u16 {
        let server = self.replicas[index].take().unwrap();
        let port = server.address().port();
        server.stop().await;
        port
    }

    pub async fn start_replica(&mut self, index: usize, port: u16) {
        let key = KeyOptions { api_key: Some(VLLM_KEY.into()), api_key_env: None };
        let options = ChatOptions { port, key, first_token_ms: 5, token_ms: 0, ..ChatOptions::default() };
        self.replicas[index] = Some(vllm::start(options).await.unwrap());
    }

    pub async fn stop_openai(&mut self) {
        self.openai.take().unwrap().stop().await;
    }

    pub async fn stop_guard(&mut self) {
        self.guard.take().unwrap().stop().await;
    }

    /// The port that it had, for a later start.
    pub async fn stop_langsmith(&mut self) -> u16 {
        let server = self.langsmith.take().unwrap().into_server();
        let port = server.address().port();
        server.stop().await;
        port
    }

    pub async fn start_langsmith(&mut self, port: u16) {
        self.langsmith = Some(langsmith::start(langsmith::Options { port, ..Default::default() }).await.unwrap());
    }

    /// Ends everything and starts it again over the same data.
    pub async fn restart(&mut self) {
        kill_process(Pid::from_raw(self.up.process.id().try_into().unwrap()).unwrap(), Signal::TERM).unwrap();
        assert!(self.up.process.wait().unwrap().success());
        self.up = Up::start(&mut self.command, self.data.path().join("up-again.log"));
        self.address = self.up.address;
        (self.admin, self.sidecar) = ports(self.data.path());
        self_checked(self.guard()).await;
    }

    pub fn data(&self) -> PathBuf {
        self.data.path().join("data")
    }

    pub fn get(&self, path: &str) -> Request {
        Request::new(self.address, "GET", path)
    }

    pub fn post(&self, path: &str) -> Request {
        Request::new(self.address, "POST", path)
    }

    pub async fn chat(&self, key: &str, body: &Value) -> Response {
        self.post(CHAT).key(key).json(body).send().await
    }

    /// As alice, whose policy has everything.
    pub async fn alice(&self, body: &Value) -> Response {
        self.chat(ALICE, body).await
    }

    /// The access log's line of a request, which is written when the request is over.
    pub async fn line(&self, trace: &str) -> Value {
        eventually(&format!("the record of {trace}"), async || {
            let log = std::fs::read_to_string(self.data().join("log/access.jsonl")).unwrap_or_default();
            let line = log.split_inclusive('\n').find(|line| line.ends_with('\n') && line.contains(trace))?;
            Some(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        })
        .await
    }

    pub async fn record(&self, trace: &str) -> Value {
        self.line(trace).await["record"].clone()
    }

    /// Envoy's counters and gauges whose name has this in it.
    pub async fn stats(&self, part: &str) -> Vec<(String, u64)> {
        let text = Request::new(self.admin, "GET", "/stats").send().await.text().await;
        let values = text.lines().filter_map(|line| line.split_once(": "));
        values
            .filter(|(name, _)| name.contains(part))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// What vLLM has seen; nothing when it was stopped.
    pub fn vllm_requests(&self) -> Vec<SeenRequest> {
        self.running().flat_map(Simulator::requests).collect()
    }

    /// No VM was lost.
    pub async fn assert_lives(&self) {
        let reloads = self.stats("vm_reload").await;
        assert!(!reloads.is_empty(), "Envoy counts no reloads of VMs any more: the statistic has another name");
        assert!(reloads.iter().all(|(_, count)| *count == 0), "{reloads:?}");
    }

    /// No VM was lost, and a request is served as ever.
    pub async fn assert_well(&self) {
        self.assert_lives().await;
        let response = self.chat(super::OPEN, &super::ask("say: still well")).await;
        assert_eq!(response.status, 200);
        assert_eq!(response.into_json().await["choices"][0]["message"]["content"], "still well");
    }

    /// What `parapet up` and its children have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.up.log).unwrap_or_default()
    }

    pub fn children(&self) -> Vec<(i32, String)> {
        let pid = self.up.process.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let command = |pid: &str| {
            let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&raw).replace('\0', " ")
        };
        children.split_whitespace().map(|pid| (pid.parse().unwrap(), command(pid))).collect()
    }

    /// Sends a signal to the one child whose command line has this in it.
    pub fn signal(&self, what: &str, signal: Signal) {
        let children = self.children();
        let (pid, _) = children.iter().find(|(_, command)| command.contains(what)).unwrap();
        kill_process(Pid::from_raw(*pid).unwrap(), signal).unwrap();
    }
}

/// Waits until the simulator has found the asker of its only request gone, and that before its answer was whole.
pub async fn left_by_gateway(simulator: &Simulator) -> SeenRequest {
    eventually("the gateway leaves the provider", async || {
        simulator.requests().into_iter().find(SeenRequest::disconnected)
    })
    .await
}

pub fn fault(simulator: &Simulator, faults: Faults) {
    simulator.set_faults(faults).unwrap();
}

/// A sidecar of one's own beside a stack that was started with `PARAPET_SIDECAR_URL`: one that can be killed.
pub struct OwnSidecar(Child);

impl OwnSidecar {
    pub fn start(stack: &Stack, port: u16) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parapet"));
        command
            .arg("sidecar")
            .env_clear()
            .env("PARAPET_DATA_DIR", stack.data.path().join("sidecar"))
            .env("PARAPET_ACCESS_LOG", stack.data().join("log/access.jsonl"))
            .env("PARAPET_SIDECAR_PORT", port.to_string())
            .env("PARAPET_ROTATE_BYTES", "0")
            .env("LANGSMITH_ENDPOINT", stack.langsmith().url())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// As the kernel does it: without a chance to write anything down.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for OwnSidecar {
    fn drop(&mut self) {
        self.kill();
    }
}
