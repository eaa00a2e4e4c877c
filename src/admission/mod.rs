//! How busy the model servers are: their gauges, polled for as long as a gateway asks.
//!
//! vLLM never refuses a request by itself, it queues it; what it says of its queue lets the gateway go elsewhere first.

mod gauges;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::future::join_all;
use parapet_engine::admission::{self, Load};
use tokio::sync::{Notify, watch};

/// Between two looks at a replica.
const PERIOD: Duration = Duration::from_millis(admission::PERIOD_MS);
/// A replica that is slower to tell is as if it were silent.
const TIMEOUT: Duration = Duration::from_secs(1);
/// What a replica said longer ago is not passed on.
const FRESH: Duration = Duration::from_secs(1);
/// When nobody has asked for so long, nobody is polled.
const INTEREST: Duration = Duration::from_secs(5);
/// Of one answer: a server with many models and adapters says some 100 KiB.
const MAX_BYTES: usize = 4 << 20;

/// More than any configuration has.
const MAX_PROVIDERS: usize = 64;

/// Every provider whose load is known.
#[derive(Debug)]
pub struct Watches(Vec<Watch>);

impl Watches {
    /// `vllm`: the replicas of the provider of that name, as in `VLLM_URL`. `others`: as in `PARAPET_LOAD_URLS`,
    /// `NAME=URL,URL` for each further provider, separated by spaces.
    ///
    /// # Errors
    /// When something is not of that form, a provider stands twice, or there are too many.
    pub fn new(vllm: &str, others: &str) -> anyhow::Result<Self> {
        let mut watches = vec![Watch::new("vllm", vllm).context("VLLM_URL")?];
        for other in others.split_whitespace() {
            let (name, urls) = other.split_once('=').filter(|(name, urls)| !name.is_empty() && !urls.is_empty()).context(
                "PARAPET_LOAD_URLS: write it like NAME=http://127.0.0.1:8000,http://127.0.0.1:8001, one for each provider",
            )?;
            if watches.iter().any(|known| known.provider == name) {
                bail!("PARAPET_LOAD_URLS: `{name}` stands twice, or is vLLM, whose replicas VLLM_URL names");
            }
            if watches.len() >= MAX_PROVIDERS {
                bail!("PARAPET_LOAD_URLS: more than {MAX_PROVIDERS} providers");
            }
            watches.push(Watch::new(name, urls).with_context(|| format!("PARAPET_LOAD_URLS: `{name}`"))?);
        }
        Ok(Self(watches))
    }

    /// What is known at this moment, in the gateway's form, and that somebody wants to know.
    pub fn report(&self) -> String {
        self.0.iter().map(Watch::report).collect()
    }

    /// Polls while somebody asks, until `stop` says so.
    pub async fn run(self: Arc<Self>, stop: watch::Receiver<bool>) {
        join_all(self.0.iter().map(|watch| watch.run(stop.clone()))).await;
    }
}

/// The replicas of one provider.
#[derive(Debug)]
struct Watch {
    /// Its name in the gateway's configuration.
    provider: String,
    replicas: Vec<Replica>,
    http: reqwest::Client,
    asked: Mutex<Option<Instant>>,
    wake: Notify,
}

#[derive(Debug)]
struct Replica {
    url: String,
    said: Mutex<Option<(Load, Instant)>>,
}

impl Watch {
    /// `urls`: comma-separated; what stands behind the host (`/v1`) is not where the gauges are.
    ///
    /// # Errors
    /// When a URL is none, or TLS cannot be set up.
    fn new(provider: &str, urls: &str) -> anyhow::Result<Self> {
        crate::langsmith::client::install_crypto();
        let named = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
        let replicas = named.map(Replica::new).collect::<anyhow::Result<_>>()?;
        let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { provider: provider.to_owned(), replicas, http, asked: Mutex::new(None), wake: Notify::new() })
    }

    fn report(&self) -> String {
        *lock(&self.asked) = Some(Instant::now());
        self.wake.notify_one();
        let said = self.replicas.iter().filter_map(|replica| *lock(&replica.said));
        let fresh = said.filter(|(_, at)| at.elapsed() <= FRESH).map(|(load, _)| load);
        // As long as one replica has room, the provider has.
        let least = fresh.reduce(|one, other| Load {
            waiting: one.waiting.min(other.waiting),
            kv_cache: one.kv_cache.min(other.kv_cache),
        });
        least.map(|load| admission::line(&self.provider, load)).unwrap_or_default()
    }

    async fn run(&self, mut stop: watch::Receiver<bool>) {
        let work = async {
            loop {
                self.wake.notified().await;
                while lock(&self.asked).is_some_and(|at| at.elapsed() < INTEREST) {
                    join_all(self.replicas.iter().map(|replica| replica.look(&self.http))).await;
                    tokio::time::sleep(PERIOD).await;
                }
            }
        };
        tokio::select! {
            () = work => {}
            // An error says that the sender is gone: the same.
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

impl Replica {
    fn new(url: &str) -> anyhow::Result<Self> {
        // The URL is not repeated: it may hold a password.
        let url = reqwest::Url::parse(url).and_then(|url| url.join("/metrics"));
        let url = url.context("no URL: write it like http://127.0.0.1:8000")?;
        Ok(Self { url: url.into(), said: Mutex::new(None) })
    }

    /// A replica that says nothing is not known; what it said before grows stale.
    async fn look(&self, http: &reqwest::Client) {
        match self.read(http).await {
            Ok(Some(load)) => *lock(&self.said) = Some((load, Instant::now())),
            Ok(None) => tracing::debug!("a model server has no gauge that is known here"),
            Err(error) => tracing::debug!("a model server does not tell its load: {}", error.without_url()),
        }
    }

    async fn read(&self, http: &reqwest::Client) -> reqwest::Result<Option<Load>> {
        let mut response = http.get(&self.url).send().await?.error_for_status()?;
        let mut text = Vec::new();
        while let Some(piece) = response.chunk().await? {
            if text.len() + piece.len() > MAX_BYTES {
                return Ok(None);
            }
            text.extend_from_slice(&piece);
        }
        Ok(gauges::load(&String::from_utf8_lossy(&text)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
