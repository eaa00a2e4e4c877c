//! What is counted, and when.

use std::sync::atomic::Ordering;

use parapet_engine::record::{GuardRecord, Record};

use super::Metrics;
use crate::accesslog::line::Skipped;
use crate::langsmith::client::Outcome;
use crate::langsmith::tree::failed_over;
use crate::spool;

const OPERATION: &str = "gen_ai_operation_name";
const PROVIDER: &str = "gen_ai_provider_name";
const MODEL: &str = "gen_ai_request_model";

impl Metrics {
    /// Counts a request that is over.
    pub fn record(&self, record: &Record) {
        self.records.inc();
        self.seen.fetch_add(1, Ordering::Relaxed);
        let bounds = &self.bounds;
        let reason = bounds.reason.label(record.reason.as_deref().unwrap_or_default());
        self.requests
            .get_or_create(&[
                ("tenant", bounds.tenant.label(&record.tenant)),
                ("api", bounds.word.label(&record.api)),
                ("status", bounds.status.label(&record.status.to_string())),
                ("reason", reason.clone()),
            ])
            .inc();
        if matches!(record.reason.as_deref(), Some("rate_limit_exceeded" | "budget_exceeded")) {
            self.quota_refusals.get_or_create(&[("reason", reason.clone())]).inc();
        }
        if !matches!(record.api.as_str(), "chat_completions" | "chat") {
            return;
        }
        self.chat(record, reason);
        self.attempts(record);
        for (side, guard) in [("input", &record.input_guard), ("output", &record.output_guard)] {
            if let Some(guard) = guard {
                self.guard(side, guard);
            }
        }
        if let Some(cache) = &record.cache {
            self.cache.get_or_create(&[("outcome", bounds.word.label(&cache.outcome))]).inc();
        }
    }

    fn chat(&self, record: &Record, reason: String) {
        let model = self.bounds.model.label(&record.model);
        let error = if record.status < 400 { "none".to_owned() } else { reason };
        self.request_duration
            .get_or_create(&[(OPERATION, "chat".to_owned()), (MODEL, model.clone()), ("error_type", error)])
            .observe(seconds(record.start_us, record.end_us));
        if let Some(first) = record.first_token_us {
            self.time_to_first_token
                .get_or_create(&[(OPERATION, "chat".to_owned()), (MODEL, model)])
                .observe(seconds(record.start_us, first));
        }
    }

    fn attempts(&self, record: &Record) {
        let bounds = &self.bounds;
        for attempt in &record.attempts {
            let provider = bounds.provider.label(&attempt.provider);
            let outcome = bounds.word.label(&attempt.outcome);
            if let Some(end) = attempt.end_us {
                let error = if attempt.outcome == "ok" { "none".to_owned() } else { outcome.clone() };
                self.operation_duration
                    .get_or_create(&[
                        (PROVIDER, provider.clone()),
                        (MODEL, bounds.model.label(&attempt.model)),
                        ("error_type", error),
                    ])
                    .observe(seconds(attempt.start_us, end));
            }
            self.attempts.get_or_create(&[("provider", provider), ("outcome", outcome)]).inc();
        }
        if failed_over(record) {
            self.fallbacks.inc();
        }
        // A cached answer's usage was paid for once, by the request that made it.
        let (Some(usage), Some(last)) = (record.usage, record.attempts.last()) else { return };
        self.cost.observe(record.cost_nanousd as f64 / 1e9);
        for (kind, count) in [("input", usage.prompt), ("output", usage.completion)] {
            self.token_usage
                .get_or_create(&[
                    (PROVIDER, bounds.provider.label(&last.provider)),
                    (MODEL, bounds.model.label(&last.model)),
                    ("gen_ai_token_type", kind.to_owned()),
                ])
                .observe(count as f64);
        }
    }

    fn guard(&self, side: &'static str, guard: &GuardRecord) {
        let bounds = &self.bounds;
        self.guard_verdicts
            .get_or_create(&[
                ("side", side.to_owned()),
                ("verdict", bounds.word.label(&guard.verdict)),
                ("action", bounds.word.label(&guard.action)),
            ])
            .inc();
        for category in &guard.categories {
            self.guard_categories
                .get_or_create(&[("side", side.to_owned()), ("category", bounds.category.label(category))])
                .inc();
        }
        if let (Some(start), Some(end)) = (guard.start_us, guard.end_us) {
            self.guard_duration.get_or_create(&[("side", side.to_owned())]).observe(seconds(start, end));
        }
    }

    pub fn duplicate(&self) {
        self.duplicates.inc();
    }

    pub fn skipped(&self, why: &Skipped, lines: u64) {
        self.skipped.get_or_create(&[("reason", why.label().to_owned())]).inc_by(lines);
    }

    /// `rotated`, `truncated`, `lost` or `rotate_failed`.
    pub fn file_event(&self, event: &'static str) {
        self.file_events.get_or_create(&[("event", event.to_owned())]).inc();
    }

    pub fn write_failed(&self) {
        self.retries.inc();
    }

    pub fn backlog(&self, bytes: u64) {
        self.backlog.set(level(bytes));
    }

    pub fn spool(&self, stats: spool::Stats) {
        self.spool_depth.set(level(stats.waiting));
        self.spool_bytes.set(level(stats.bytes));
    }

    pub fn cache_size(&self, entries: u64, bytes: u64) {
        self.cache_entries.set(level(entries));
        self.cache_bytes.set(level(bytes));
    }

    pub fn cache_lookup(&self, hit: bool) {
        let result = if hit { "hit" } else { "miss" };
        self.cache_lookups.get_or_create(&[("result", result.to_owned())]).inc();
    }

    /// What became of runs: `accepted`, `duplicate`, `parked`, `not_sampled`, `unreadable`.
    pub fn uploaded(&self, outcome: &'static str, runs: u64) {
        self.upload_runs.get_or_create(&[("outcome", outcome.to_owned())]).inc_by(runs);
    }

    pub fn upload_request(&self, outcome: &Outcome) {
        let label = match outcome {
            Outcome::Accepted => "accepted",
            Outcome::Duplicate => "duplicate",
            Outcome::TooLarge => "too_large",
            Outcome::Rejected { .. } => "rejected",
            Outcome::NotFound => "not_found",
            Outcome::Misconfigured { .. } => "misconfigured",
            Outcome::Retry { .. } => "retry",
        };
        self.upload_requests.get_or_create(&[("outcome", label.to_owned())]).inc();
    }

    /// `get`: `hit`, `miss`, `timeout`, `failed`, `invalid` (not an entry of ours) or `resting` (not asked after a
    /// failure); `set`: `stored`, `failed`, `too_large` or `dropped`.
    pub fn redis(&self, operation: &'static str, outcome: &'static str) {
        self.cache_redis.get_or_create(&[("operation", operation.to_owned()), ("outcome", outcome.to_owned())]).inc();
    }

    /// `taken`, `without_line`, `not_a_line`, `too_long`; and `stream_broken`, which may have lost some.
    pub fn als_entry(&self, outcome: &'static str) {
        self.als_entries.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    /// What became of spans: `accepted`, `rejected` (by a collector that took the others), `parked`, `not_sampled`,
    /// `unreadable`.
    pub fn otlp_spans(&self, outcome: &'static str, spans: u64) {
        self.otlp_spans.get_or_create(&[("outcome", outcome.to_owned())]).inc_by(spans);
    }

    pub fn otlp_request(&self, outcome: &'static str) {
        self.otlp_requests.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    pub fn feedback(&self, outcome: &'static str) {
        self.feedback.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    pub fn feedback_pending(&self, count: usize) {
        self.feedback_pending.set(level(count as u64));
    }

    pub fn audited(&self, side: &'static str) {
        self.audit_events.get_or_create(&[("side", side.to_owned())]).inc();
    }

    /// Requests counted since the start.
    pub fn requests_seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }
}

fn seconds(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e6
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
            r#"parapet_requests_total{tenant="acme",api="chat",status="200",reason="none"} 1"#,
            "parapet_fallback_total 1",
            "parapet_cost_usd_sum 0.002",
            r#"gen_ai_server_request_duration_seconds_sum{gen_ai_operation_name="chat",gen_ai_request_model="none",error_type="none"} 1.5"#,
            r#"gen_ai_server_time_to_first_token_seconds_sum{gen_ai_operation_name="chat",gen_ai_request_model="none"} 0.25"#,
            r#"gen_ai_client_token_usage_sum{gen_ai_provider_name="openai",gen_ai_request_model="none",gen_ai_token_type="input"} 10.0"#,
            r#"parapet_attempts_total{provider="vllm",outcome="status"} 1"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
