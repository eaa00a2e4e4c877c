//! What is counted, and when.

use std::sync::atomic::Ordering;

use parapet_engine::record::{GuardRecord, Record};

use super::labels::{Labels, Value, labels};
use super::outcome::Outcome;
use super::slo::{Observation, first_token_us, seconds};
use super::{Attributes, Metrics};
use crate::accesslog::line::Skipped;
use crate::langsmith::client::Outcome as Uploaded;
use crate::spool;

const OPERATION: &str = "gen_ai_operation_name";
const PROVIDER: &str = "gen_ai_provider_name";
const MODEL: &str = "gen_ai_request_model";
const ERROR: &str = "error_type";
/// The provider's name where no provider was asked: the answer came from the cache, or is Parapet's own.
const OURSELVES: &str = "parapet";

/// What a GenAI metric must say, and whatever else has a value.
fn attributes(
    provider: Value,
    model: Value,
    (name, value): (&'static str, Value),
    outcome: Option<&'static str>,
) -> Attributes {
    let outcome = ("parapet_outcome", outcome.unwrap_or_default().into());
    labels([(OPERATION, "chat".into()), (PROVIDER, provider), (MODEL, model), (name, value), outcome])
}

impl Metrics {
    /// Series that a ratio or an alert is made of exist from the start: a counter that is born at 1 has no rate.
    pub(super) fn announce(&self) {
        for side in ["input", "output"] {
            for (verdict, action) in [
                ("safe", "pass"),
                ("unsafe", "block"),
                ("unsafe", "flag"),
                ("failed", "block"),
                ("failed", "flag"),
                // The request ended before anything was decided.
                ("pending", "none"),
            ] {
                drop(self.guard_verdicts.get_or_create(&verdict_labels(side, verdict.into(), action.into())));
            }
            drop(self.guard_duration.get_or_create(&labels([("side", side.into())])));
        }
        for fallback in [false, true] {
            drop(self.sent.get_or_create(&labels([("fallback", fallback.into())])));
        }
        for outcome in ["hit", "miss", "bypass"] {
            drop(self.cache.get_or_create(&labels([("outcome", outcome.into())])));
        }
        for outcome in ["accepted", "refused"] {
            drop(self.feedback.get_or_create(&labels([("outcome", outcome.into())])));
        }
        for reason in ["unrecorded", "not_ours", "unknown_version", "bad_record", "bad_id", "too_long"] {
            drop(self.skipped.get_or_create(&labels([("reason", reason.into())])));
        }
        for event in ["rotated", "switched", "truncated", "lost", "rotate_failed"] {
            drop(self.file_events.get_or_create(&labels([("event", event.into())])));
        }
    }

    /// The same for a LangSmith. Its name is of the configuration, which bounds how many there are.
    pub fn announce_destination(&self, name: &str) {
        for outcome in ["accepted", "duplicate", "parked", "not_sampled", "unreadable"] {
            drop(self.upload_runs.get_or_create(&destination_labels(name, outcome)));
        }
        for outcome in ["accepted", "duplicate", "too_large", "rejected", "not_found", "misconfigured", "retry"] {
            drop(self.upload_requests.get_or_create(&destination_labels(name, outcome)));
        }
    }

    /// Counts a request that is over.
    pub fn record(&self, record: &Record) {
        self.records.inc();
        let bounds = &self.bounds;
        let tenant = bounds.tenant.label(&record.tenant);
        let reason = bounds.reason.label(record.reason.as_deref().unwrap_or_default());
        let outcome = Outcome::of(record);
        self.requests
            .get_or_create(&labels([
                ("tenant", tenant.clone()),
                ("api", bounds.word.label(&record.api)),
                ("status", bounds.status.label(&record.status.to_string())),
                ("reason", reason.clone()),
                ("outcome", outcome.label().into()),
            ]))
            .inc();
        if matches!(record.reason.as_deref(), Some("rate_limit_exceeded" | "budget_exceeded")) {
            self.quota_refusals.get_or_create(&labels([("tenant", tenant.clone()), ("reason", reason.clone())])).inc();
        }
        let Some(observation) = Observation::of(record) else { return };
        self.chat(record, &observation, reason);
        self.attempts(record);
        self.paid(record, &observation, tenant);
        for (side, guard) in [("input", &record.input_guard), ("output", &record.output_guard)] {
            if let Some(guard) = guard {
                self.guard(side, guard);
            }
        }
        if let Some(cache) = &record.cache {
            self.cache.get_or_create(&labels([("outcome", bounds.word.label(&cache.outcome))])).inc();
        }
    }

    fn chat(&self, record: &Record, observation: &Observation, reason: Value) {
        // Until a request is let in its model is whatever the client wrote: such names must not use up the bound.
        let model = match observation.outcome {
            Outcome::Refused => "none".into(),
            _ => self.bounds.model.label(&record.model),
        };
        let provider = match record.attempts.last() {
            Some(last) => self.bounds.provider.label(&last.provider),
            None => OURSELVES.into(),
        };
        let error = match (observation.outcome, reason.as_str()) {
            (Outcome::Answered | Outcome::OutputBlocked, _) => "".into(),
            (Outcome::Aborted, _) => "aborted".into(),
            (_, "none") => "cut".into(),
            _ => reason,
        };
        let outcome = Some(observation.outcome.label());
        self.request_duration
            .get_or_create(&attributes(provider.clone(), model.clone(), (ERROR, error), outcome))
            .observe(seconds(record.start_us, record.end_us));
        // For the service level only streams count; here the label tells them apart.
        if let Some(first) = first_token_us(record) {
            self.time_to_first_token
                .get_or_create(&attributes(provider, model, ("parapet_stream", record.stream.into()), None))
                .observe(seconds(record.start_us, first));
        }
    }

    fn attempts(&self, record: &Record) {
        let bounds = &self.bounds;
        for attempt in &record.attempts {
            let provider = bounds.provider.label(&attempt.provider);
            let outcome = bounds.word.label(&attempt.outcome);
            if let Some(end) = attempt.end_us {
                let error = if attempt.outcome == "ok" { "".into() } else { outcome.clone() };
                self.operation_duration
                    .get_or_create(&attributes(
                        provider.clone(),
                        bounds.model.label(&attempt.model),
                        (ERROR, error),
                        None,
                    ))
                    .observe(seconds(attempt.start_us, end));
            }
            self.attempts.get_or_create(&labels([("provider", provider), ("outcome", outcome)])).inc();
        }
    }

    fn paid(&self, record: &Record, observation: &Observation, tenant: Value) {
        if let Some(fell_back) = observation.fell_back {
            self.sent.get_or_create(&labels([("fallback", fell_back.into())])).inc();
        }
        if let Some(cost) = observation.cost {
            self.cost.observe(cost);
        }
        // A cached answer's usage was paid for once, by the request that made it.
        let (Some(usage), Some(last)) = (record.usage, record.attempts.last()) else { return };
        for (kind, count) in [("input", usage.prompt), ("output", usage.completion)] {
            self.tokens.get_or_create(&labels([("tenant", tenant.clone()), ("type", kind.into())])).inc_by(count);
            self.token_usage
                .get_or_create(&attributes(
                    self.bounds.provider.label(&last.provider),
                    self.bounds.model.label(&last.model),
                    ("gen_ai_token_type", kind.into()),
                    None,
                ))
                .observe(count as f64);
        }
    }

    fn guard(&self, side: &'static str, guard: &GuardRecord) {
        let bounds = &self.bounds;
        let (verdict, action) = (bounds.word.label(&guard.verdict), bounds.word.label(&guard.action));
        self.guard_verdicts.get_or_create(&verdict_labels(side, verdict, action)).inc();
        for category in &guard.categories {
            self.guard_categories
                .get_or_create(&labels([("side", side.into()), ("category", bounds.category.label(category))]))
                .inc();
        }
        if let (Some(start), Some(end)) = (guard.start_us, guard.end_us) {
            self.guard_duration.get_or_create(&labels([("side", side.into())])).observe(seconds(start, end));
        }
    }

    pub fn duplicate(&self) {
        self.duplicates.inc();
    }

    pub fn skipped(&self, why: &Skipped, lines: u64) {
        self.skipped.get_or_create(&labels([("reason", why.label().into())])).inc_by(lines);
    }

    /// `rotated`, `truncated`, `lost` or `rotate_failed`.
    pub fn file_event(&self, event: &'static str) {
        self.file_events.get_or_create(&labels([("event", event.into())])).inc();
    }

    pub fn write_failed(&self) {
        self.retries.inc();
    }

    pub fn backlog(&self, bytes: u64) {
        self.backlog.set(level(bytes));
    }

    /// Bytes of the access log that were not read at the last look.
    pub fn backlog_bytes(&self) -> u64 {
        u64::try_from(self.backlog.get()).unwrap_or(0)
    }

    /// Runs that went to the dead-letter file since the start.
    pub fn parked(&self) -> u64 {
        self.parked.load(Ordering::Relaxed)
    }

    pub fn spool(&self, stats: spool::Stats) {
        self.spool_depth.set(level(stats.waiting));
        self.spool_bytes.set(level(stats.bytes));
    }

    /// Of the oldest request that waits for upload, in seconds.
    pub fn spool_age(&self, seconds: f64) {
        self.spool_age.set(seconds);
    }

    pub fn cache_size(&self, entries: u64, bytes: u64) {
        self.cache_entries.set(level(entries));
        self.cache_bytes.set(level(bytes));
    }

    pub fn cache_lookup(&self, hit: bool) {
        let result = if hit { "hit" } else { "miss" };
        self.cache_lookups.get_or_create(&labels([("result", result.into())])).inc();
    }

    /// What became of runs: `accepted`, `duplicate`, `parked`, `not_sampled`, `unreadable`.
    pub fn uploaded(&self, destination: &str, outcome: &'static str, runs: u64) {
        self.upload_runs.get_or_create(&destination_labels(destination, outcome)).inc_by(runs);
        if outcome == "parked" {
            self.parked.fetch_add(runs, Ordering::Relaxed);
        }
    }

    pub fn upload_request(&self, destination: &str, outcome: &Uploaded) {
        let label = match outcome {
            Uploaded::Accepted => "accepted",
            Uploaded::Duplicate => "duplicate",
            Uploaded::TooLarge => "too_large",
            Uploaded::Rejected { .. } => "rejected",
            Uploaded::NotFound => "not_found",
            Uploaded::Misconfigured { .. } => "misconfigured",
            Uploaded::Retry { .. } => "retry",
        };
        self.upload_requests.get_or_create(&destination_labels(destination, label)).inc();
    }

    /// `get`: `hit`, `miss`, `timeout`, `failed`, `invalid` (not an entry of ours) or `resting` (not asked after a
    /// failure); `set`: `stored`, `failed`, `too_large` or `dropped`.
    pub fn redis(&self, operation: &'static str, outcome: &'static str) {
        self.cache_redis.get_or_create(&labels([("operation", operation.into()), ("outcome", outcome.into())])).inc();
    }

    /// `taken`, `without_line`, `not_a_line`, `too_long`; and `stream_broken`, which may have lost some.
    pub fn als_entry(&self, outcome: &'static str) {
        self.als_entries.get_or_create(&labels([("outcome", outcome.into())])).inc();
    }

    /// What became of spans: `accepted`, `rejected` (by a collector that took the others), `parked`, `not_sampled`,
    /// `unreadable`.
    pub fn otlp_spans(&self, outcome: &'static str, spans: u64) {
        self.otlp_spans.get_or_create(&labels([("outcome", outcome.into())])).inc_by(spans);
    }

    pub fn otlp_request(&self, outcome: &'static str) {
        self.otlp_requests.get_or_create(&labels([("outcome", outcome.into())])).inc();
    }

    pub fn feedback(&self, outcome: &'static str) {
        self.feedback.get_or_create(&labels([("outcome", outcome.into())])).inc();
    }

    pub fn feedback_pending(&self, count: usize) {
        self.feedback_pending.set(level(count as u64));
    }

    pub fn audited(&self, side: &'static str) {
        self.audit_events.get_or_create(&labels([("side", side.into())])).inc();
    }
}

fn verdict_labels(side: &'static str, verdict: Value, action: Value) -> Labels<3> {
    labels([("side", side.into()), ("verdict", verdict), ("action", action)])
}

fn destination_labels(destination: &str, outcome: &'static str) -> Labels<2> {
    labels([("destination", destination.to_owned().into()), ("outcome", outcome.into())])
}

fn level(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use parapet_engine::record::{Attempt, Usage};

    use super::*;

    #[test]
    fn a_request_is_in_the_metrics_under_the_known_names() {
        let metrics = Metrics::new();
        let attempt = |provider: &str, outcome: &str| Attempt {
            provider: provider.to_owned(),
            outcome: outcome.to_owned(),
            end_us: Some(1_000_000),
            ..Attempt::default()
        };
        metrics.record(&Record {
            api: "chat".to_owned(),
            status: 200,
            tenant: "acme".to_owned(),
            end_us: 1_500_000,
            first_token_us: Some(250_000),
            usage: Some(Usage { prompt: 10, completion: 5, ..Usage::default() }),
            cost_nanousd: 2_000_000,
            attempts: vec![attempt("vllm", "status"), attempt("openai", "ok")],
            ..Record::default()
        });
        let text = metrics.encode().unwrap();
        for line in [
            r#"parapet_requests_total{tenant="acme",api="chat",status="200",reason="none",outcome="answered"} 1"#,
            r#"parapet_provider_requests_total{fallback="true"} 1"#,
            r#"parapet_provider_requests_total{fallback="false"} 0"#,
            "parapet_cost_usd_sum 0.002",
            r#"gen_ai_server_request_duration_seconds_sum{gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_request_model="none",parapet_outcome="answered"} 1.5"#,
            r#"gen_ai_server_time_to_first_token_seconds_sum{gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_request_model="none",parapet_stream="false"} 0.25"#,
            r#"gen_ai_client_operation_duration_seconds_count{gen_ai_operation_name="chat",gen_ai_provider_name="vllm",gen_ai_request_model="none",error_type="status"} 1"#,
            r#"gen_ai_client_token_usage_sum{gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_request_model="none",gen_ai_token_type="input"} 10.0"#,
            r#"parapet_tokens_total{tenant="acme",type="output"} 5"#,
            r#"parapet_attempts_total{provider="vllm",outcome="status"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn each_langsmith_is_counted_for_itself() {
        let metrics = Metrics::new();
        metrics.announce_destination("a");
        metrics.announce_destination("b");
        metrics.uploaded("a", "accepted", 5);
        metrics.uploaded("a", "parked", 2);
        metrics.uploaded("b", "parked", 1);
        metrics.upload_request("b", &Uploaded::TooLarge);
        let text = metrics.encode().unwrap();
        for line in [
            r#"parapet_upload_runs_total{destination="a",outcome="accepted"} 5"#,
            r#"parapet_upload_runs_total{destination="b",outcome="accepted"} 0"#,
            r#"parapet_upload_requests_total{destination="b",outcome="too_large"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(metrics.parked(), 3);
    }

    #[test]
    fn names_that_clients_make_up_do_not_use_up_the_bound() {
        let metrics = Metrics::new();
        let asked = |model: &str, status, reason: Option<&str>| Record {
            api: "chat_completions".to_owned(),
            model: model.to_owned(),
            status,
            reason: reason.map(str::to_owned),
            ..Record::default()
        };
        for number in 0..100 {
            metrics.record(&asked(&format!("made-up-{number}"), 404, Some("model_not_found")));
        }
        metrics.record(&asked("real", 200, None));
        let text = metrics.encode().unwrap();
        assert!(text.contains(r#"gen_ai_request_model="real""#) && !text.contains("made-up"), "{text}");
    }

    #[test]
    fn every_threshold_is_the_edge_of_a_bucket() {
        use super::super::slo::{COST, DURATION, TIME_TO_FIRST_TOKEN};
        let buckets: [(_, &[f64]); 3] = [
            (TIME_TO_FIRST_TOKEN, &super::super::FIRST_TOKEN),
            (DURATION, &super::super::DURATION),
            (COST, &super::super::COST),
        ];
        for (slo, buckets) in buckets {
            assert!(buckets.contains(&slo.target) && buckets.contains(&slo.alert), "{slo:?}");
        }
    }
}
