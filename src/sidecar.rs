//! The sidecar: one process beside Envoy that remembers and reports.

mod http;

use std::fs::{File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::accesslog::pipeline::{self, Pipeline, Stop};
use crate::accesslog::position::PositionFile;
use crate::accesslog::rotate::Rotator;
use crate::accesslog::tail::{self, Tail};
use crate::admission::Watches;
use crate::als;
use crate::audit::{Audit, key::Key};
use crate::cache::{Store, embedded::Embedded, redis::Redis};
use crate::dashboard::{self, Board, Envoy};
use crate::feedback::{Feedback, queue::Queue, send};
use crate::langsmith::client::Client;
use crate::langsmith::config::Config;
use crate::langsmith::dead_letter::DeadLetters;
use crate::langsmith::deliver::{Delivery, Pace};
use crate::langsmith::retry::Policy;
use crate::langsmith::upload::Uploader;
use crate::metrics::Metrics;
use crate::otel::client as otlp;
use crate::otel::export::Exporter;
use crate::otel::{self, config::Exports};
use crate::spool::index::{self, Index};
use crate::spool::{self, Spool, durable};

/// How long the batch in work may take to end when the process is told to.
const GRACE: Duration = Duration::from_secs(5);
/// Memory of lines that came over the network and are not durable yet.
const ARRIVALS_BYTES: usize = 64 << 20;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address to listen on.
    #[arg(long = "listen", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Port to listen on.
    #[arg(long = "port", env = "PARAPET_SIDECAR_PORT", default_value_t = 9090)]
    pub port: u16,
    /// Port of Envoy's gRPC access log service, on the same address; 0 serves none.
    #[arg(long, env = "PARAPET_ALS_PORT", default_value = "0", value_parser = port_or_none)]
    pub als_port: u16,
    /// Directory of everything that is remembered.
    #[arg(long, env = "PARAPET_DATA_DIR", default_value = ".parapet")]
    pub data_dir: PathBuf,
    /// Envoy's access log [default: log/access.jsonl in the data directory].
    #[arg(long, env = "PARAPET_ACCESS_LOG")]
    pub access_log: Option<PathBuf>,
    /// Port of Envoy's admin interface on this machine.
    #[arg(long, env = "PARAPET_ADMIN_PORT", default_value_t = 9901)]
    pub admin_port: u16,
    /// Envoy's admin interface [default: http://127.0.0.1:<admin port>].
    #[arg(long, env = "PARAPET_ADMIN_URL")]
    pub admin_url: Option<String>,
    /// The configuration that Envoy runs with, for the limits on the dashboard [default: run/envoy.yaml in the data
    /// directory].
    #[arg(long, env = "PARAPET_ENVOY_CONFIG")]
    pub envoy_config: Option<PathBuf>,
    /// Names under which the pages and the metrics are given out, besides localhost and IP addresses; comma-separated
    /// [default: none on loopback, else any].
    #[arg(long, env = "PARAPET_SIDECAR_HOSTS", value_delimiter = ',')]
    pub hosts: Vec<String>,
    /// Size at which the access log is rotated, in bytes; 0 leaves rotation to others.
    #[arg(long, env = "PARAPET_ROTATE_BYTES", default_value_t = 256 << 20)]
    pub rotate_bytes: u64,
    /// Memory of the answer cache, in bytes.
    #[arg(long, env = "PARAPET_CACHE_BYTES", default_value_t = 256 << 20)]
    pub cache_bytes: u64,
    /// A Redis in which sidecars share cached answers; the address may hold a password.
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: Option<String>,
    /// What keys in Redis begin with.
    #[arg(long, env = "PARAPET_REDIS_PREFIX", default_value = "parapet:cache:")]
    pub redis_prefix: String,
    /// Disk for runs that are uploaded or stay local, in bytes; what waits for upload is kept beyond it.
    #[arg(long, env = "PARAPET_SPOOL_BYTES", default_value_t = 1 << 30)]
    pub spool_bytes: u64,
    /// Replicas of vLLM whose load the gateway may ask for, separated by commas.
    #[arg(long, env = "VLLM_URL")]
    pub vllm_url: Option<String>,
    /// The same of other providers: NAME=URL,URL for each, separated by spaces.
    #[arg(long, env = "PARAPET_LOAD_URLS", default_value = "")]
    pub load_urls: String,
    /// Hours that runs are kept after their upload.
    #[arg(long, env = "PARAPET_RETENTION_HOURS", default_value_t = 168)]
    pub retention_hours: u64,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let config = Config::from_env(|name| std::env::var(name).ok()).context("the LangSmith variables")?;
    let exports = Exports::from_env(|name| std::env::var(name).ok(), &config).context("the OpenTelemetry variables")?;
    let sidecar = start(options, config, exports).await?;
    tracing::info!("sidecar ready: http://{}", sidecar.address);
    sidecar.until(terminated()?).await
}

/// A sidecar at work.
pub struct Sidecar {
    pub address: SocketAddr,
    listener: TcpListener,
    shared: http::Shared,
    stop: Arc<Stop>,
    stop_tasks: watch::Sender<bool>,
    pipeline_ended: oneshot::Receiver<()>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _lock: File,
}

/// Opens everything and starts the work; requests are served by [`Sidecar::until`].
///
/// # Errors
/// When another sidecar holds the data directory, the port is taken, or something stored cannot be read.
pub async fn start(options: Options, mut config: Config, mut exports: Exports) -> anyhow::Result<Sidecar> {
    let data = options.data_dir.clone();
    for dir in ["", "log", "spool", "audit", "cache", "run"] {
        let dir = data.join(dir);
        durable::private_dir(&dir).with_context(|| format!("the directory {} cannot be made", dir.display()))?;
    }
    let lock = lock(&data)?;
    let key = Key::load_or_make(&data.join("audit/key")).context("the key of text hashes cannot be read")?;
    config.shape.key = Some(Arc::new(key));
    if let Some(otlp) = &mut exports.otlp {
        otlp.shape.runs.key.clone_from(&config.shape.key);
    }
    let wanted = SocketAddr::new(options.listen, options.port);
    let listener = TcpListener::bind(wanted)
        .await
        .with_context(|| format!("{wanted} cannot be listened on; set PARAPET_SIDECAR_PORT to a free port"))?;
    let address = listener.local_addr()?;

    let als_listener = match options.als_port {
        0 => None,
        port => {
            let wanted = SocketAddr::new(options.listen, port);
            let listener = TcpListener::bind(wanted).await;
            Some(
                listener
                    .with_context(|| format!("{wanted} cannot be listened on; set PARAPET_ALS_PORT to a free port"))?,
            )
        }
    };

    let metrics = Arc::new(Metrics::new());
    let opening = (options.clone(), config.clone(), exports.clone(), Arc::clone(&metrics));
    let stores =
        tokio::task::spawn_blocking(move || Stores::open(&opening.0, &opening.1, &opening.2, opening.3)).await??;
    let Stores { spool, index, board, audit, cache, feedback, position } = stores;

    let access_log = options.access_log.clone().unwrap_or_else(|| data.join("log/access.jsonl"));
    let resume =
        position.load().context("the access log's position; remove the file to read the log from its start")?;
    let admin = options.admin_url.clone().unwrap_or_else(|| format!("http://127.0.0.1:{}", options.admin_port));
    let rotator = if options.rotate_bytes == 0 {
        None
    } else {
        Some(Rotator::new(access_log.clone(), options.rotate_bytes, &admin, Arc::clone(&metrics))?)
    };
    let stop = Arc::new(Stop::default());
    let (pipeline_alive, pipeline_ended) = oneshot::channel();
    let (entrance, arrivals) = als::arrivals::channel(ARRIVALS_BYTES);
    let pipeline = Pipeline {
        arrivals: als_listener.is_some().then_some(arrivals),
        tail: Tail::new(tail::Options::new(access_log), resume),
        position,
        spool: Arc::clone(&spool),
        index: Arc::clone(&index),
        others: Index::new(pipeline::OTHERS),
        audit,
        cache: Arc::clone(&cache),
        metrics: Arc::clone(&metrics),
        board: Arc::clone(&board),
        rotator,
        stop: Arc::clone(&stop),
        sampled: None,
    };
    std::thread::Builder::new().name("accesslog".to_owned()).spawn(move || {
        pipeline.run();
        drop(pipeline_alive);
    })?;

    let (stop_tasks, stopping) = watch::channel(false);
    let mut tasks = Vec::new();
    if let Some(listener) = als_listener {
        tracing::info!("Envoy's gRPC access logs are taken at {}", listener.local_addr()?);
        let server = als::server::Server { entrance, metrics: Arc::clone(&metrics) };
        tasks.push(tokio::spawn(server.run(listener, stopping.clone())));
    }
    let config = Arc::new(config);
    let sender = |destination| send::Sender {
        feedback: Arc::clone(&feedback),
        destination,
        config: Arc::clone(&config),
        policy: Policy::default(),
        invisible: send::INVISIBLE,
        stop: stopping.clone(),
    };
    if let Some(otlp) = exports.otlp.clone() {
        tracing::info!("spans are exported to {}", otlp.endpoint);
        let exporter = Exporter {
            client: Arc::new(otlp::Client::new(otlp)?),
            sampling: Arc::clone(&config),
            queue: spool.queue(otel::DESTINATION),
            dead_letters: Arc::new(DeadLetters::otlp(&data.join("spool"))),
            metrics: Arc::clone(&metrics),
            policy: Policy::default(),
            stop: stopping.clone(),
        };
        tasks.push(tokio::spawn(exporter.run()));
    }
    if !exports.langsmith && exports.otlp.is_none() {
        tracing::info!(
            "no LANGSMITH_API_KEY, LANGSMITH_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT: runs stay in {}",
            data.join("spool").display()
        );
    }
    if !config.uploads() {
        tasks.push(tokio::spawn(sender(None).run()));
    }
    let dead_letters = Arc::new(DeadLetters::new(&data.join("spool")));
    for destination in &config.destinations {
        let client = Arc::new(Client::new(&config, destination)?);
        let name = destination.name.clone();
        let (receiver, letters) = (Arc::clone(&client), Arc::clone(&dead_letters));
        let receiver = send::Destination { name: name.clone(), client: receiver, dead_letters: letters };
        tasks.push(tokio::spawn(sender(Some(receiver)).run()));
        if !exports.langsmith {
            continue;
        }
        metrics.announce_destination(&name);
        tracing::info!("runs are uploaded to {} as project `{}`", destination.endpoint, destination.project);
        let delivery = Delivery {
            destination: name,
            client,
            dead_letters: Arc::clone(&dead_letters),
            metrics: Arc::clone(&metrics),
            policy: Policy::default(),
            stop: stopping.clone(),
            pace: Pace::default(),
        };
        let uploader = Uploader {
            delivery: Arc::new(delivery),
            shape: config.shape_for(destination),
            config: Arc::clone(&config),
            queue: spool.queue(&destination.name),
            feedback: Arc::clone(&feedback),
        };
        tasks.push(tokio::spawn(uploader.run()));
    }
    let pages = dashboard::Shared {
        board,
        limits: dashboard::limits_source(options.envoy_config.unwrap_or_else(|| data.join("run/envoy.yaml"))),
        envoy: Arc::new(Envoy::new(&admin)?),
        metrics: Arc::clone(&metrics),
        spool: Arc::clone(&spool),
        cache: Arc::clone(&cache),
        feedback: Arc::clone(&feedback),
        upload: uploads_to(&config, &exports),
    };
    let hosts = dashboard::hosts::Hosts::new(options.listen, &options.hosts);
    let load = Arc::new(Watches::new(options.vllm_url.as_deref().unwrap_or_default(), &options.load_urls)?);
    tasks.push(tokio::spawn(Arc::clone(&load).run(stop_tasks.subscribe())));
    let shared = http::Shared { load, metrics, spool, cache, feedback, config, pages, hosts };
    Ok(Sidecar { address, listener, shared, stop, stop_tasks, pipeline_ended, tasks, _lock: lock })
}

impl Sidecar {
    /// Serves until `shutdown` is ready, then brings everything to a durable end.
    pub async fn until(self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let Self { listener, shared, stop, stop_tasks, mut pipeline_ended, tasks, .. } = self;
        let mut closing = stop_tasks.subscribe();
        let server = axum::serve(listener, http::router(shared)).with_graceful_shutdown(async move {
            // An error says that the sender is gone: the same.
            let _ = closing.wait_for(|stop| *stop).await;
        });
        let server = tokio::spawn(async move { server.await });
        let died = tokio::select! {
            () = shutdown => false,
            _ = &mut pipeline_ended => true,
        };
        stop.stop();
        // No receiver is left only when every task has ended already.
        let _ = stop_tasks.send(true);
        let end = async {
            if !died {
                // The thread drops its end; there is no value.
                let _ = (&mut pipeline_ended).await;
            }
            for task in tasks {
                if let Err(error) = task.await {
                    tracing::error!("a task failed: {error}");
                }
            }
            // Connections that are kept open would hold the server; they hold nothing that could be lost.
            let _ = server.await;
        };
        if tokio::time::timeout(GRACE, end).await.is_err() {
            tracing::warn!("not everything ended within {GRACE:?}; what was in work is repeated at the next start");
        }
        if died {
            bail!("the access log's thread ended; see the log above");
        }
        Ok(())
    }
}

struct Stores {
    spool: Arc<Spool>,
    index: Arc<Mutex<Index>>,
    board: Arc<Board>,
    audit: Audit,
    cache: Arc<Store>,
    feedback: Arc<Feedback>,
    position: PositionFile,
}

impl Stores {
    fn open(options: &Options, config: &Config, exports: &Exports, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let data = &options.data_dir;
        let destinations: Vec<String> = config.destinations.iter().map(|to| to.name.clone()).collect();
        let uploads = destinations.iter().filter(|_| exports.langsmith).cloned();
        let otlp = exports.otlp.as_ref().map(|_| otel::DESTINATION.to_owned());
        let spool = Spool::open(spool::Options {
            dir: data.join("spool"),
            segment_bytes: (options.spool_bytes / 16).clamp(64 * 1024, 16 << 20),
            max_bytes: options.spool_bytes,
            retention: Duration::from_secs(options.retention_hours.saturating_mul(3600)),
            destinations: uploads.chain(otlp).collect(),
        })
        .with_context(|| format!("the spool in {} cannot be opened", data.join("spool").display()))?;
        let mut index = Index::new(index::CAPACITY);
        let board = Arc::new(Board::default());
        pipeline::rebuild(&spool, &mut index, &board).context("the spool cannot be read")?;
        let index = Arc::new(Mutex::new(index));
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let cache = Embedded::open(&data.join("cache/entries.jsonl"), options.cache_bytes, now_s)
            .context("the cache's file cannot be opened")?;
        let shared = options.redis_url.as_deref().map(str::trim).filter(|url| !url.is_empty());
        let shared = shared.map(|url| Redis::new(url, &options.redis_prefix, Arc::clone(&metrics))).transpose()?;
        let queue = Queue::open(&data.join("spool/feedback.jsonl"), &destinations)
            .context("the feedback queue cannot be opened")?;
        Ok(Self {
            spool: Arc::new(spool),
            audit: Audit::open(&data.join("audit"))?,
            cache: Arc::new(Store::new(cache, shared)),
            feedback: Arc::new(Feedback::new(
                queue,
                Arc::clone(&index),
                metrics,
                config.shape.hide_inputs || config.shape.hide_outputs,
            )),
            index,
            board,
            position: PositionFile::new(data.join("run/accesslog-position.json")),
        })
    }
}

/// Where runs go, for people.
fn uploads_to(config: &Config, exports: &Exports) -> Option<String> {
    let langsmith = config.destinations.iter().filter(|_| exports.langsmith);
    let mut all: Vec<&str> = langsmith.map(|destination| destination.endpoint.as_str()).collect();
    all.extend(exports.otlp.iter().map(|_| "OpenTelemetry's collector"));
    (!all.is_empty()).then(|| all.join(", "))
}

/// An empty variable counts as absent: that is how compose files pass what is not set.
fn port_or_none(text: &str) -> Result<u16, std::num::ParseIntError> {
    if text.is_empty() { Ok(0) } else { text.parse() }
}

/// Two sidecars in one data directory would each upload half and corrupt the rest.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("run/sidecar.lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("the lock {} cannot be opened", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("another sidecar works in {}: stop it, or set PARAPET_DATA_DIR to another directory", data.display())
        }
        Err(error) => Err(error).with_context(|| format!("the lock {} cannot be taken", path.display())),
    }
}

fn terminated() -> anyhow::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests;
