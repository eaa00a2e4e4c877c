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
use crate::admission::Watch;
use crate::audit::{Audit, key::Key};
use crate::cache::{Store, embedded::Embedded};
use crate::feedback::{Feedback, queue::Queue, send};
use crate::langsmith::client::Client;
use crate::langsmith::config::Config;
use crate::langsmith::dead_letter::DeadLetters;
use crate::langsmith::deliver::{Delivery, Pace};
use crate::langsmith::retry::Policy;
use crate::langsmith::upload::Uploader;
use crate::metrics::Metrics;
use crate::spool::index::{self, Index};
use crate::spool::{self, Spool, durable};

/// How long the batch in work may take to end when the process is told to.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address to listen on.
    #[arg(long = "listen", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Port to listen on.
    #[arg(long = "port", env = "PARAPET_SIDECAR_PORT", default_value_t = 9090)]
    pub port: u16,
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
    /// Size at which the access log is rotated, in bytes; 0 leaves rotation to others.
    #[arg(long, env = "PARAPET_ROTATE_BYTES", default_value_t = 256 << 20)]
    pub rotate_bytes: u64,
    /// Memory of the answer cache, in bytes.
    #[arg(long, env = "PARAPET_CACHE_BYTES", default_value_t = 256 << 20)]
    pub cache_bytes: u64,
    /// Disk for runs that are uploaded or stay local, in bytes; what waits for upload is kept beyond it.
    #[arg(long, env = "PARAPET_SPOOL_BYTES", default_value_t = 1 << 30)]
    pub spool_bytes: u64,
    /// Replicas of vLLM whose load the gateway may ask for, separated by commas.
    #[arg(long, env = "VLLM_URL")]
    pub vllm_url: Option<String>,
    /// Hours that runs are kept after their upload.
    #[arg(long, env = "PARAPET_RETENTION_HOURS", default_value_t = 168)]
    pub retention_hours: u64,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let config = Config::from_env(|name| std::env::var(name).ok()).context("the LangSmith variables")?;
    if std::env::var("REDIS_URL").is_ok_and(|url| !url.is_empty()) {
        tracing::warn!("REDIS_URL is set, but the Redis store does not exist yet: the embedded cache is used");
    }
    let sidecar = start(options, config).await?;
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
pub async fn start(options: Options, mut config: Config) -> anyhow::Result<Sidecar> {
    let data = options.data_dir.clone();
    for dir in ["", "log", "spool", "audit", "cache", "run"] {
        let dir = data.join(dir);
        durable::private_dir(&dir).with_context(|| format!("the directory {} cannot be made", dir.display()))?;
    }
    let lock = lock(&data)?;
    let key = Key::load_or_make(&data.join("audit/key")).context("the key of text hashes cannot be read")?;
    config.shape.key = Some(Arc::new(key));
    let wanted = SocketAddr::new(options.listen, options.port);
    let listener = TcpListener::bind(wanted)
        .await
        .with_context(|| format!("{wanted} cannot be listened on; set PARAPET_SIDECAR_PORT to a free port"))?;
    let address = listener.local_addr()?;

    let metrics = Arc::new(Metrics::new());
    let opening = (options.clone(), config.clone(), Arc::clone(&metrics));
    let stores = tokio::task::spawn_blocking(move || Stores::open(&opening.0, &opening.1, opening.2)).await??;
    let Stores { spool, index, audit, cache, feedback, position } = stores;

    let access_log = options.access_log.clone().unwrap_or_else(|| data.join("log/access.jsonl"));
    let resume =
        position.load().context("the access log's position; remove the file to read the log from its start")?;
    let rotator = if options.rotate_bytes == 0 {
        None
    } else {
        let admin = options.admin_url.clone().unwrap_or_else(|| format!("http://127.0.0.1:{}", options.admin_port));
        Some(Rotator::new(access_log.clone(), options.rotate_bytes, &admin, Arc::clone(&metrics))?)
    };
    let stop = Arc::new(Stop::default());
    let (pipeline_alive, pipeline_ended) = oneshot::channel();
    let pipeline = Pipeline {
        tail: Tail::new(tail::Options::new(access_log), resume),
        position,
        spool: Arc::clone(&spool),
        index: Arc::clone(&index),
        audit,
        cache: Arc::clone(&cache),
        metrics: Arc::clone(&metrics),
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
    let config = Arc::new(config);
    let sender = |destination| send::Sender {
        feedback: Arc::clone(&feedback),
        destination,
        config: Arc::clone(&config),
        policy: Policy::default(),
        invisible: send::INVISIBLE,
        stop: stopping.clone(),
    };
    if !config.uploads() {
        tracing::info!("no LANGSMITH_API_KEY or LANGSMITH_ENDPOINT: runs stay in {}", data.join("spool").display());
        tasks.push(tokio::spawn(sender(None).run()));
    }
    let dead_letters = Arc::new(DeadLetters::new(&data.join("spool")));
    for destination in &config.destinations {
        tracing::info!("runs are uploaded to {} as project `{}`", destination.endpoint, destination.project);
        let client = Arc::new(Client::new(&config, destination)?);
        let name = destination.name.clone();
        let (receiver, letters) = (Arc::clone(&client), Arc::clone(&dead_letters));
        let receiver = send::Destination { name: name.clone(), client: receiver, dead_letters: letters };
        tasks.push(tokio::spawn(sender(Some(receiver)).run()));
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
    let load = Arc::new(Watch::new("vllm", options.vllm_url.as_deref().unwrap_or_default())?);
    tasks.push(tokio::spawn(Arc::clone(&load).run(stop_tasks.subscribe())));
    let shared = http::Shared { load, metrics, spool, cache, feedback, config };
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
    audit: Audit,
    cache: Arc<Store>,
    feedback: Arc<Feedback>,
    position: PositionFile,
}

impl Stores {
    fn open(options: &Options, config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let data = &options.data_dir;
        let destinations: Vec<String> = config.destinations.iter().map(|to| to.name.clone()).collect();
        let spool = Spool::open(spool::Options {
            dir: data.join("spool"),
            segment_bytes: (options.spool_bytes / 16).clamp(64 * 1024, 16 << 20),
            max_bytes: options.spool_bytes,
            retention: Duration::from_secs(options.retention_hours.saturating_mul(3600)),
            destinations: destinations.clone(),
        })
        .with_context(|| format!("the spool in {} cannot be opened", data.join("spool").display()))?;
        let mut index = Index::new(index::CAPACITY);
        pipeline::rebuild(&spool, &mut index).context("the spool cannot be read")?;
        let index = Arc::new(Mutex::new(index));
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let cache = Embedded::open(&data.join("cache/entries.jsonl"), options.cache_bytes, now_s)
            .context("the cache's file cannot be opened")?;
        let queue = Queue::open(&data.join("spool/feedback.jsonl"), &destinations)
            .context("the feedback queue cannot be opened")?;
        Ok(Self {
            spool: Arc::new(spool),
            audit: Audit::open(&data.join("audit"))?,
            cache: Arc::new(Store::Embedded(cache)),
            feedback: Arc::new(Feedback::new(queue, Arc::clone(&index), metrics)),
            index,
            position: PositionFile::new(data.join("run/accesslog-position.json")),
        })
    }
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
