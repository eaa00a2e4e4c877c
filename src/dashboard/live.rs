//! What is under way now, from Envoy's own gauges: the access log only knows what is over.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde::Deserialize;

/// A page does not wait longer for Envoy.
const TIMEOUT: Duration = Duration::from_millis(500);
const MOST_BYTES: usize = 256 << 10;
const MOST_CLUSTERS: usize = 20;
const STATS: &str = "/stats?format=json&usedonly&filter=%5E(http%5C.%5B%5E.%5D%2B%5C.downstream_rq_active%7Ccluster%5C..%2B%5C.upstream_rq_active)%24";

#[derive(Debug)]
pub struct Envoy {
    http: reqwest::Client,
    url: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Requests of clients.
    pub clients: u64,
    /// Requests to each cluster, by its name.
    pub clusters: Vec<(String, u64)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    #[error("Envoy's admin interface does not answer")]
    NoAnswer(#[from] reqwest::Error),
    #[error("Envoy's admin interface answers with status {0}")]
    Status(u16),
    #[error("Envoy's admin interface answers with something else than its statistics")]
    NotStats,
}

#[derive(Deserialize)]
struct Stats {
    stats: Vec<Stat>,
}

#[derive(Deserialize)]
struct Stat {
    #[serde(default)]
    name: String,
    #[serde(default)]
    value: u64,
}

impl Envoy {
    /// `admin` is the address of the admin interface, as `http://127.0.0.1:9901`.
    pub fn new(admin: &str) -> reqwest::Result<Self> {
        crate::langsmith::client::install_crypto();
        // A neighbour: no proxy of the environment stands between.
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        Ok(Self { http, url: format!("{}{STATS}", admin.trim_end_matches('/')) })
    }

    pub async fn in_flight(&self) -> Result<InFlight, Unreachable> {
        let response = self.http.get(&self.url).send().await?;
        if !response.status().is_success() {
            return Err(Unreachable::Status(response.status().as_u16()));
        }
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            body.extend_from_slice(&chunk?);
            if body.len() > MOST_BYTES {
                return Err(Unreachable::NotStats);
            }
        }
        read(&body).ok_or(Unreachable::NotStats)
    }
}

fn read(body: &[u8]) -> Option<InFlight> {
    let stats: Stats = serde_json::from_slice(body).ok()?;
    let mut found = InFlight::default();
    for Stat { name, value } in stats.stats {
        if let Some(cluster) = name.strip_prefix("cluster.").and_then(|name| name.strip_suffix(".upstream_rq_active")) {
            if found.clusters.len() < MOST_CLUSTERS {
                found.clusters.push((cluster.to_owned(), value));
            }
        } else if name != "http.admin.downstream_rq_active" && name.ends_with(".downstream_rq_active") {
            found.clients = found.clients.saturating_add(value);
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoy_s_gauges_are_read_and_its_admin_does_not_count_itself() {
        let body = br#"{"stats":[{"name":"cluster.vllm.upstream_rq_active","value":3},{"histograms":{}},
            {"name":"http.admin.downstream_rq_active","value":1},{"name":"http.parapet.downstream_rq_active","value":4}]}"#;
        let expected = InFlight { clients: 4, clusters: vec![("vllm".to_owned(), 3)] };
        assert_eq!(read(body), Some(expected));
        assert_eq!(read(b"<html>"), None);
    }
}
