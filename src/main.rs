//! The command line.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use parapet::{audit, sidecar, sim, spool, up};

/// An LLM gateway: a stock Envoy with Rust filters, and what stands beside it.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Audit {
    /// Find the first broken link of the chain of hashes
    Verify(AuditLog),
    /// Print the newest events
    Tail {
        #[command(flatten)]
        log: AuditLog,
        /// How many
        #[arg(long, default_value_t = 10, value_name = "N")]
        last: usize,
    },
}

#[derive(clap::Args)]
struct AuditLog {
    /// The log [default: audit/audit.jsonl in the data directory]
    file: Option<PathBuf>,
    #[arg(long, env = "PARAPET_DATA_DIR", default_value = ".parapet", hide = true)]
    data_dir: PathBuf,
}

impl AuditLog {
    fn path(self) -> PathBuf {
        self.file.unwrap_or_else(|| self.data_dir.join("audit/audit.jsonl"))
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in the foreground; simulate what is not given
    Up {
        #[command(flatten)]
        options: Box<up::Options>,
        #[command(flatten)]
        envoy: up::EnvoyOptions,
    },
    /// Print the Envoy configuration that `up` would run with this environment
    Render {
        #[command(flatten)]
        options: Box<up::Options>,
        /// Write it here instead, with a copy of the module beside it
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Say what is wrong with an Envoy configuration; start nothing
    Check {
        /// The configuration to check
        file: PathBuf,
    },
    /// Check the audit log's chain of hashes and print its newest events
    #[command(subcommand)]
    Audit(Audit),
    /// Show what waits for LangSmith, and deal with what it refused
    #[command(subcommand)]
    Spool(spool::command::Command),
    /// Run the sidecar: the ledger's reader, the cache, metrics, uploads
    Sidecar(Box<sidecar::Options>),
    /// Run a simulated server
    #[command(subcommand)]
    Sim(sim::Command),
    /// Ask whether a local server answers 200 (for health checks where there is no curl)
    #[command(hide = true)]
    Probe { address: std::net::SocketAddr, path: String },
    /// Run a command that ends with its parent
    #[command(hide = true)]
    Tied {
        parent: i32,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "parapet: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up { options, envoy } => single_threaded()?.block_on(up::run(&options, &envoy)),
        Command::Render { options, output } => match up::render(&options, output.as_deref())? {
            Some(yaml) => print(&yaml),
            None => Ok(()),
        },
        Command::Check { file } => {
            up::check(&file)?;
            print(&format!("{}: sound\n", file.display()))
        }
        Command::Audit(Audit::Verify(log)) => verify(&log.path()),
        Command::Audit(Audit::Tail { log, last }) => tail(&log.path(), last),
        Command::Spool(command) => print(&spool::command::run(&command)?),
        Command::Sidecar(options) => {
            log_to_stderr();
            multi_threaded()?.block_on(sidecar::run(*options))
        }
        Command::Sim(command) => {
            log_to_stderr();
            multi_threaded()?.block_on(sim::run(command))
        }
        Command::Probe { address, path } => {
            let status = single_threaded()?.block_on(up::status(address, &path));
            match status.with_context(|| format!("http://{address}{path} does not answer"))? {
                200 => Ok(()),
                status => anyhow::bail!("http://{address}{path} answers {status}"),
            }
        }
        Command::Tied { parent, command } => up::run_tied(parent, &command).map(|never| match never {}),
    }
}

/// Events as JSON lines on standard output, the verdict on standard error.
fn verify(file: &Path) -> anyhow::Result<()> {
    let verified = audit::verify(file).with_context(|| format!("{} is not whole", file.display()))?;
    print(&format!("{} lines, each chained to the one before; the newest hash is {}\n", verified.lines, verified.head))
}

fn tail(file: &Path, last: usize) -> anyhow::Result<()> {
    let events = audit::tail(file, last).with_context(|| format!("cannot read {}", file.display()))?;
    events.iter().try_for_each(|event| print(&format!("{}\n", serde_json::to_string(event)?)))
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// For the supervisor, whose children must be started by the main thread.
fn single_threaded() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

fn multi_threaded() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// `RUST_LOG` says how much; information and worse by default.
fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
