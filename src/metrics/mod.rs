//! What Prometheus reads at `/metrics`. Names, attributes and buckets follow OpenTelemetry's GenAI conventions (v1.41)
//! where one exists; a bucket is added wherever a service level has its target or its alert. Every label is bounded.

pub mod labels;
mod observe;
pub mod outcome;
pub mod slo;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use labels::{Bound, Labels};

type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;
/// Of a GenAI metric: an attribute without a value is left out.
type Attributes = Labels<5>;
type Conventional = Family<Attributes, Histogram, fn() -> Histogram>;
type Level = Gauge<i64, std::sync::atomic::AtomicI64>;

/// The convention's, and 2 and 5 s.
pub const DURATION: [f64; 16] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.0, 2.56, 5.0, 5.12, 10.24, 20.48, 40.96, 81.92];
/// The convention's, and 0.3 s.
pub const FIRST_TOKEN: [f64; 17] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const TOKENS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0,
    67108864.0,
];
const GUARD: [f64; 12] = [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24];
pub const COST: [f64; 13] = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

fn durations() -> Histogram {
    Histogram::new(DURATION)
}

fn first_tokens() -> Histogram {
    Histogram::new(FIRST_TOKEN)
}

fn tokens() -> Histogram {
    Histogram::new(TOKENS)
}

fn guards() -> Histogram {
    Histogram::new(GUARD)
}

#[derive(Debug)]
struct Bounds {
    tenant: Bound,
    status: Bound,
    reason: Bound,
    model: Bound,
    provider: Bound,
    /// The record's small vocabularies: apis, verdicts, outcomes.
    word: Bound,
    category: Bound,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    bounds: Bounds,

    requests: Counters<5>,
    request_duration: Conventional,
    time_to_first_token: Conventional,
    operation_duration: Conventional,
    token_usage: Conventional,
    tokens: Counters<2>,
    attempts: Counters<2>,
    sent: Counters<1>,
    guard_verdicts: Counters<3>,
    guard_categories: Counters<2>,
    guard_duration: Histograms<1>,
    cache: Counters<1>,
    cache_lookups: Counters<1>,
    cache_redis: Counters<2>,
    cache_entries: Level,
    cache_bytes: Level,
    cost: Histogram,
    quota_refusals: Counters<2>,
    records: Counter,
    duplicates: Counter,
    skipped: Counters<1>,
    file_events: Counters<1>,
    backlog: Level,
    retries: Counter,
    spool_depth: Level,
    spool_bytes: Level,
    spool_age: Gauge<f64, std::sync::atomic::AtomicU64>,
    upload_runs: Counters<2>,
    upload_requests: Counters<2>,
    /// Of all destinations, since the start.
    parked: std::sync::atomic::AtomicU64,
    als_entries: Counters<1>,
    otlp_spans: Counters<1>,
    otlp_requests: Counters<1>,
    feedback: Counters<1>,
    feedback_pending: Level,
    audit_events: Counters<1>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let bounds = Bounds {
            tenant: Bound::new(50),
            status: Bound::new(40),
            reason: Bound::new(40),
            model: Bound::new(50),
            provider: Bound::new(20),
            word: Bound::new(60),
            category: Bound::new(40),
        };
        let mut add = Registrar(&mut registry);
        let metrics = Self {
            requests: add.counters("parapet_requests", "Requests, by how they ended"),
            request_duration: add.conventional(
                "gen_ai_server_request_duration_seconds",
                "From a chat request's head to the end of its answer",
                durations,
            ),
            time_to_first_token: add.conventional(
                "gen_ai_server_time_to_first_token_seconds",
                "From a chat request's head to its first token; of an answer that is not streamed, to the answer",
                first_tokens,
            ),
            operation_duration: add.conventional(
                "gen_ai_client_operation_duration_seconds",
                "One attempt at a provider",
                durations,
            ),
            token_usage: add.conventional("gen_ai_client_token_usage", "Tokens of a request, by provider", tokens),
            tokens: add.counters("parapet_tokens", "Tokens that providers read and wrote, by tenant"),
            attempts: add.counters("parapet_attempts", "Attempts at providers, by outcome"),
            sent: add.counters(
                "parapet_provider_requests",
                "Requests that went to a provider, and whether they needed another one",
            ),
            guard_verdicts: add.counters("parapet_guard_verdicts", "Guard verdicts, by side and what was done"),
            guard_categories: add.counters("parapet_guard_categories", "Categories of unsafe verdicts"),
            guard_duration: add.histograms(
                "parapet_guard_duration_seconds",
                "From the guard's first call to its last verdict",
                guards,
            ),
            cache: add.counters("parapet_cache_requests", "Requests, by what the cache did"),
            cache_lookups: add.counters("parapet_cache_lookups", "Lookups in the sidecar's cache"),
            cache_redis: add.counters("parapet_cache_redis", "What was asked of Redis, by outcome"),
            cache_entries: add.level("parapet_cache_entries", "Entries in the sidecar's cache"),
            cache_bytes: add.level("parapet_cache_bytes", "Memory of the sidecar's cache"),
            cost: add.add(
                "parapet_cost_usd",
                "What a request cost at its provider, in US dollars",
                Histogram::new(COST),
            ),
            quota_refusals: add.counters("parapet_quota_refusals", "Requests refused for a limit, by tenant"),
            records: add.counter("parapet_accesslog_records", "Records read from the access log"),
            duplicates: add.counter("parapet_accesslog_duplicates", "Records that had been read before"),
            skipped: add.counters("parapet_accesslog_skipped_lines", "Lines of the access log without a record"),
            file_events: add.counters("parapet_accesslog_file_events", "Rotations, truncations, losses"),
            backlog: add.level("parapet_accesslog_backlog_bytes", "Bytes of the access log not read yet"),
            retries: add.counter("parapet_accesslog_write_retries", "Writes to the data directory that failed"),
            spool_depth: add.level("parapet_spool_depth", "Requests that wait for upload"),
            spool_bytes: add.level("parapet_spool_bytes", "Size of the spool"),
            spool_age: add.add(
                "parapet_spool_oldest_age_seconds",
                "Since the end of the oldest request that waits for upload; 0 when none does",
                Gauge::default(),
            ),
            upload_runs: add
                .counters("parapet_upload_runs", "Runs, by the LangSmith they are for and what became of their upload"),
            upload_requests: add.counters("parapet_upload_requests", "Requests to each LangSmith, by outcome"),
            parked: std::sync::atomic::AtomicU64::new(0),
            als_entries: add
                .counters("parapet_als_entries", "Entries of the gRPC access log service, by what became of them"),
            otlp_spans: add.counters("parapet_otlp_spans", "Spans, by what became of their export"),
            otlp_requests: add.counters("parapet_otlp_requests", "Requests to the OTLP collector, by outcome"),
            feedback: add.counters("parapet_feedback", "Feedback, by what became of it"),
            feedback_pending: add.level("parapet_feedback_pending", "Feedback that waits"),
            audit_events: add.counters("parapet_audit_events", "Lines of the audit log, by side"),
            registry,
            bounds,
        };
        metrics.announce();
        metrics
    }

    /// The OpenMetrics text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    fn add<M: prometheus_client::registry::Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.add(name, help, Counter::default())
    }

    fn counters<const N: usize>(&mut self, name: &str, help: &str) -> Counters<N> {
        self.add(name, help, Counters::<N>::default())
    }

    fn level(&mut self, name: &str, help: &str) -> Level {
        self.add(name, help, Level::default())
    }

    fn conventional(&mut self, name: &str, help: &str, make: fn() -> Histogram) -> Conventional {
        self.add(name, help, Family::new_with_constructor(make))
    }

    fn histograms<const N: usize>(&mut self, name: &str, help: &str, make: fn() -> Histogram) -> Histograms<N> {
        self.add(name, help, Family::new_with_constructor(make))
    }
}
