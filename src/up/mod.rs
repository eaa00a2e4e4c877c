//! `parapet up`: the whole product in the foreground, with a stand-in for every server that is not given; `parapet
//! render` and `parapet check`, its first steps by themselves.

mod chains;
mod check;
mod children;
mod console;
mod document;
mod endpoint;
mod envoy;
mod files;
mod options;
mod ports;
mod probe;
mod render;
mod replicas;
mod supervise;
mod tied;
mod tls;
mod yaml;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use options::{EnvoyOptions, Options};
pub use probe::status;
pub use tied::run as run_tied;

use console::Console;
use document::Document;
use endpoint::Endpoint;
use options::Settings;
use supervise::{Death, Supervisor};

/// The name under which Envoy's output and death are announced.
const ENVOY: &str = "envoy";

/// Runs everything until a signal asks for the end (`Ok`) or a part of it ends by itself (`Err` says which and why).
///
/// Must run on the main thread of a current-thread runtime: see [`supervise::Supervisor::start`].
pub async fn run(options: &Options, envoy: &EnvoyOptions) -> anyhow::Result<()> {
    let settings = options.settings()?;
    let mut shutdown = Shutdown::listen()?;
    let (console, closing) = Console::open();
    let (mut supervisor, mut deaths) = Supervisor::new(console.clone());
    let ended = tokio::select! {
        // A death explains more than the wait for what died.
        biased;
        () = shutdown.asked() => Ok(()),
        Some(death) = deaths.recv() => Err(explain(&death, &settings)),
        result = serve(&settings, envoy, &mut supervisor, &console) => result,
    };
    supervisor.stop(shutdown.asked()).await;
    drop(console);
    closing.wait();
    ended
}

/// Starts everything, announces it, and stays. Returns only with what kept it from starting.
async fn serve(
    settings: &Settings,
    options: &EnvoyOptions,
    supervisor: &mut Supervisor,
    console: &Console,
) -> anyhow::Result<()> {
    let mut document = read(&settings.config)?;
    refuse_unsound(&settings.config, &document)?;
    let (workers, log_level) = (options.workers()?, options.log_level()?);
    let binary = envoy::find(options.binary()).await?;
    let data = files::DataDir::open(&settings.data_dir)?;

    let mut rendering = settings.rendering();
    rendering.listener = ports::claim("PARAPET_PORT", settings.listener)?;
    rendering.admin = ports::claim("PARAPET_ADMIN_PORT", settings.admin)?;
    let mut claims = vec![("PARAPET_PORT", rendering.listener), ("PARAPET_ADMIN_PORT", rendering.admin)];
    let own_sidecar = match &settings.sidecar {
        Some(_) => None,
        None => {
            let wanted = SocketAddr::from(([127, 0, 0, 1], settings.sidecar_port));
            let claimed = ports::claim("PARAPET_SIDECAR_PORT", wanted)?;
            claims.push(("PARAPET_SIDECAR_PORT", claimed));
            rendering.sidecar = Some(Endpoint::local(claimed.port()));
            Some(claimed)
        }
    };
    ports::distinct(&claims)?;
    rendering.module = data.install_module(&settings.module)?;

    let keys = children::Keys::from_environment(&rendering);
    let simulators = children::simulators(&document, &mut rendering, &keys)?;
    for simulator in &simulators {
        console.say(&simulator.announcement);
        supervisor.start(children::simulator(simulator)?)?;
    }
    if let Some(address) = own_sidecar {
        console.say(format_args!("starting the sidecar on {address}"));
        let admin = probe::reachable(rendering.admin);
        supervisor.start(children::sidecar(&settings.data_dir, address, admin, &rendering.vllm.endpoints)?)?;
        probe::answers("the sidecar", address, "/healthz").await?;
    }
    for simulator in &simulators {
        probe::accepts(simulator.name, SocketAddr::from(([127, 0, 0, 1], simulator.port))).await?;
    }

    render::render(&mut document, &rendering).with_context(|| format!("{}", settings.config.display()))?;
    let config = data.rendered_config();
    files::write_private(&config, document.to_yaml().as_bytes())?;
    console.say(format_args!("starting Envoy ({}, {workers} workers) with {}", binary.display(), config.display()));
    supervisor.start(children::envoy(&binary, &config, workers, log_level, &document, &keys))?;
    let (admin, listener) = (probe::reachable(rendering.admin), probe::reachable(rendering.listener));
    probe::answers("Envoy", admin, "/ready").await?;
    // A real request: the filters are loaded and answer.
    probe::answers("the gateway", listener, "/healthz").await?;

    announce(listener);
    // `data` holds the directory's lock, which must last as long as the children.
    std::future::pending::<()>().await;
    drop(data);
    Ok(())
}

/// The configuration with this environment put into it, as `parapet up` would give it to Envoy.
///
/// With `output`, it is written there, readable by its owner only, and the module is copied beside it under a name that
/// holds its hash, which the configuration names; else it is returned.
pub fn render(options: &Options, output: Option<&Path>) -> anyhow::Result<Option<String>> {
    let settings = options.settings()?;
    let mut rendering = settings.rendering();
    for (variable, port) in [
        ("PARAPET_PORT", rendering.listener.port()),
        ("PARAPET_ADMIN_PORT", rendering.admin.port()),
        ("PARAPET_SIDECAR_PORT", settings.sidecar_port),
    ] {
        if port == 0 {
            bail!("{variable} is 0: only `parapet up` can choose a port; name one");
        }
    }
    let mut document = read(&settings.config)?;
    if let Some(file) = output {
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        files::create_private_dir(directory)?;
        if let Some(logs) = rendering.access_log.parent() {
            files::create_private_dir(logs)?;
        }
        rendering.module = files::copy_module(&settings.module, &std::path::absolute(directory)?)?;
    }
    render::render(&mut document, &rendering).with_context(|| format!("{}", settings.config.display()))?;
    let yaml = document.to_yaml();
    match output {
        Some(file) => {
            files::write_private(file, yaml.as_bytes())?;
            Ok(None)
        }
        None => Ok(Some(yaml)),
    }
}

/// Says what is wrong with a configuration file; starts nothing.
pub fn check(file: &Path) -> anyhow::Result<()> {
    refuse_unsound(file, &read(file)?)
}

/// What the gateway filter of a configuration would run with.
pub fn policy(yaml: &str) -> anyhow::Result<parapet_engine::config::Config> {
    let document = Document::parse(yaml)?;
    let section = document.filters().into_iter().find_map(|filter| filter.get("configuration")?.get("value"));
    let section = section.context("no Parapet filter with a `configuration.value`")?;
    Ok(parapet_engine::config::Config::parse(&serde_json::to_vec(section)?)?)
}

fn read(file: &Path) -> anyhow::Result<Document> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Document::parse(&text).with_context(|| format!("{}", file.display()))
}

fn refuse_unsound(file: &Path, document: &Document) -> anyhow::Result<()> {
    let findings = check::findings(document);
    if findings.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = findings.iter().map(|finding| format!("{}: {finding}", file.display())).collect();
    bail!("{}", lines.join("\n"))
}

fn explain(death: &Death, settings: &Settings) -> anyhow::Error {
    let refusal = (death.name == ENVOY).then(|| envoy::refusal(&death.tail)).flatten();
    match refusal {
        Some(refusal) => anyhow::anyhow!("Envoy refuses what {} became: {refusal}", settings.config.display()),
        None => anyhow::anyhow!("{}", death.explain()),
    }
}

/// The one line on standard output, for people and scripts that wait for it.
fn announce(listener: SocketAddr) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    // Nobody may be reading; the gateway serves all the same.
    let _ = writeln!(stdout, "parapet ready: http://{listener}");
    let _ = stdout.flush();
}

/// The signals that ask for the end.
struct Shutdown([Signal; 3]);

impl Shutdown {
    fn listen() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self([on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?]))
    }

    /// Resolves at the next of them.
    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
