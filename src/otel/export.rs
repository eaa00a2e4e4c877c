//! From the spool to an OTLP collector. The export's progress moves only when every record before it was accepted or
//! parked: a kill at any point repeats requests and loses nothing.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::client::{Client, Outcome};
use super::proto::{
    ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans, Span,
};
use super::tree;
use crate::accesslog::line;
use crate::langsmith::config::Config as Sampling;
use crate::langsmith::dead_letter::{DeadLetters, Letter};
use crate::langsmith::deliver::now_us;
use crate::langsmith::order::iso;
use crate::langsmith::retry::{Backoff, Policy};
use crate::metrics::Metrics;
use crate::spool::Queue;

/// The conventions whose names are used. The GenAI ones left for a repository of their own after 1.41.
const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.41.0";
/// Records read at a time.
const BATCH_LINES: usize = 512;
/// Bytes of records read at a time: the export's memory is a small multiple.
const BATCH_BYTES: usize = 8 << 20;
/// A request's size before compression, unless one record alone is larger. Collectors take 20 MiB or more.
const REQUEST_BYTES: usize = 4 << 20;
/// A body that is answered with 500 so many times in a row is taken to be what is wrong.
const MAX_FAILURES: u32 = 8;
/// Between two looks for dead letters that are to be sent again.
const LOOK: Duration = Duration::from_secs(1);

pub struct Exporter {
    pub client: Arc<Client>,
    /// `LANGSMITH_TRACING_SAMPLING_RATE` holds for the trace, wherever it goes.
    pub sampling: Arc<Sampling>,
    pub queue: Queue,
    pub dead_letters: Arc<DeadLetters>,
    pub metrics: Arc<Metrics>,
    pub policy: Policy,
    /// True when the process is to end.
    pub stop: watch::Receiver<bool>,
}

/// The process ends; what was not delivered is in the spool.
#[derive(Debug)]
struct Stopped;

/// A record and its spans.
#[derive(Debug, Clone)]
struct Traced {
    id: uuid::Uuid,
    line: usize,
    spans: Vec<Span>,
    size: usize,
}

impl Exporter {
    /// Exports until the process is to end.
    pub async fn run(mut self) {
        let mut looked = None;
        while !*self.stop.borrow() {
            if looked.is_none_or(|at: Instant| at.elapsed() >= LOOK) {
                looked = Some(Instant::now());
                if self.send_again().await.is_err() {
                    return;
                }
            }
            let batch = match self.queue.read(BATCH_LINES, BATCH_BYTES).await {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::error!("the spool cannot be read: {error}; trying again");
                    if self.pause(self.policy.operator).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            if batch.lines.is_empty() {
                tokio::select! {
                    () = self.queue.changed() => {}
                    _ = self.stop.changed() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
                continue;
            }
            let traced = self.trace(&batch.lines);
            if self.deliver(&batch.lines, &traced).await.is_err() {
                return;
            }
            while let Err(error) = self.queue.advance_to(batch.next, batch.lines.len() as u64).await {
                tracing::error!("the export's progress cannot be saved: {error}; trying again");
                if self.pause(Duration::from_secs(1)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Exports the dead letters that an operator wants to be sent again; what is refused once more is parked once more.
    async fn send_again(&mut self) -> Result<(), Stopped> {
        const AT_ONCE: usize = 100;
        let name = self.queue.destination().to_owned();
        loop {
            let retries = match self.dead_letters.retries(&name, AT_ONCE) {
                Ok(retries) if retries.is_empty() => return Ok(()),
                Ok(retries) => retries,
                Err(error) => {
                    tracing::error!("dead letters cannot be read: {error}; looked at again later");
                    return Ok(());
                }
            };
            let line = |letter: &Letter| letter.line.as_ref().map(|line| line.get().as_bytes().to_vec());
            let lines: Vec<Vec<u8>> = retries.letters.iter().filter_map(line).collect();
            let traced = self.trace(&lines);
            self.deliver(&lines, &traced).await?;
            while let Err(error) = self.dead_letters.retried(&name, &retries) {
                tracing::error!("retried dead letters cannot be removed: {error}; trying again");
                self.pause(Duration::from_secs(1)).await?;
            }
        }
    }

    fn trace(&self, lines: &[Vec<u8>]) -> Vec<Traced> {
        let mut traced = Vec::new();
        for (index, bytes) in lines.iter().enumerate() {
            let line = match line::parse(bytes) {
                Ok((line, _)) => line,
                // The spool took only lines that could be read: another version wrote it, or the disk is bad.
                Err(why) => {
                    tracing::error!("a line of the spool cannot be read and is passed over: {why}");
                    self.metrics.otlp_spans("unreadable", 1);
                    continue;
                }
            };
            let wanted =
                !line.record.unsampled && self.sampling.samples(crate::langsmith::tree::root_order(&line).trace_id);
            match tree::spans(&line, &self.client.config().shape) {
                Ok(spans) if wanted => {
                    let size = spans.iter().map(Span::encoded_len).sum();
                    traced.push(Traced { id: line.id, line: index, spans, size });
                }
                Ok(spans) => self.metrics.otlp_spans("not_sampled", spans.len() as u64),
                Err(tree::NotSampled) => self.metrics.otlp_spans("not_sampled", 1),
            }
        }
        traced
    }

    async fn deliver(&mut self, lines: &[Vec<u8>], traced: &[Traced]) -> Result<(), Stopped> {
        // Ranges still to send, the next one last.
        let mut pending = chunks(traced);
        pending.reverse();
        let mut backoff = Backoff::new(self.policy);
        let (mut complained, mut failures) = (false, 0);
        while let Some(range) = pending.pop() {
            let part = traced.get(range.clone()).unwrap_or_default();
            let outcome = self.post(part).await;
            self.metrics.otlp_request(outcome.label());
            let (failed, unavailable) =
                (matches!(outcome, Outcome::Failed { .. }), matches!(outcome, Outcome::Unavailable { .. }));
            failures = if failed { failures + 1 } else { 0 };
            if !failed && !unavailable {
                backoff = Backoff::new(self.policy);
            }
            let spans = part.iter().map(|traced| traced.spans.len() as u64).sum::<u64>();
            let wait = match outcome {
                Outcome::Accepted { rejected, message } => {
                    let rejected = rejected.min(spans);
                    self.metrics.otlp_spans("accepted", spans - rejected);
                    if rejected > 0 {
                        self.refused_in_part(lines, part, rejected, &message).await?;
                    }
                    if std::mem::take(&mut complained) {
                        tracing::info!("the OTLP collector accepts spans again");
                    }
                    continue;
                }
                // Which record is to blame shows when they are sent apart.
                Outcome::TooLarge | Outcome::Rejected { .. } if part.len() > 1 => {
                    halve(&mut pending, range);
                    continue;
                }
                Outcome::Failed { .. } if failures >= MAX_FAILURES && part.len() > 1 => {
                    failures = 0;
                    halve(&mut pending, range);
                    continue;
                }
                Outcome::TooLarge => {
                    self.park(lines, part, 413, "too large").await?;
                    continue;
                }
                Outcome::Rejected { status, response } => {
                    self.park(lines, part, status, &response).await?;
                    continue;
                }
                Outcome::Failed { status } if failures >= MAX_FAILURES => {
                    failures = 0;
                    self.park(lines, part, status, "failed again and again").await?;
                    continue;
                }
                Outcome::Misconfigured { status } => self.complain(&mut complained, status),
                Outcome::Unavailable { why, after } => self.later(spans, &why, backoff.wait(after)),
                Outcome::Failed { status } => self.later(spans, &format!("status {status}"), backoff.wait(None)),
            };
            pending.push(range);
            self.pause(wait).await?;
        }
        Ok(())
    }

    async fn post(&self, part: &[Traced]) -> Outcome {
        let (client, request) = (Arc::clone(&self.client), self.request(part));
        // Compressing megabytes would hold the runtime up.
        let encoded = tokio::task::spawn_blocking(move || client.encode(&request)).await;
        match encoded.map_err(std::io::Error::other).flatten() {
            Ok(body) => self.client.post(body.into()).await,
            Err(error) => Outcome::Unavailable { why: format!("the request cannot be encoded: {error}"), after: None },
        }
    }

    fn request(&self, part: &[Traced]) -> ExportTraceServiceRequest {
        let attributes = &self.client.config().resource;
        let resource = Resource {
            attributes: attributes.iter().map(|(key, value)| KeyValue::new(key.as_str(), value.as_str())).collect(),
        };
        let scope = InstrumentationScope { name: "parapet".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(resource),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans: part.iter().flat_map(|traced| traced.spans.clone()).collect(),
                    schema_url: SCHEMA_URL.to_owned(),
                }],
                schema_url: SCHEMA_URL.to_owned(),
            }],
        }
    }

    fn later(&self, spans: u64, why: &str, wait: Duration) -> Duration {
        tracing::warn!("the OTLP collector did not take {spans} spans ({why}); next try in {wait:?}");
        wait
    }

    fn complain(&self, complained: &mut bool, status: u16) -> Duration {
        if !std::mem::replace(complained, true) {
            tracing::error!(
                "the OTLP collector refuses with status {status}: check OTEL_EXPORTER_OTLP_ENDPOINT and \
                 OTEL_EXPORTER_OTLP_HEADERS. Spans are kept in the spool and tried again every {:?}",
                self.policy.operator
            );
        }
        self.policy.operator
    }

    /// Which of the spans it refused the collector does not say, and it must not be asked again with the same ones:
    /// with a single record they are known, else they are sent apart no more and only counted.
    async fn refused_in_part(
        &mut self,
        lines: &[Vec<u8>],
        part: &[Traced],
        rejected: u64,
        message: &str,
    ) -> Result<(), Stopped> {
        self.metrics.otlp_spans("rejected", rejected);
        tracing::error!("the OTLP collector refused {rejected} spans; the records are dead letters now");
        self.keep(lines, part, 200, message).await
    }

    async fn park(&mut self, lines: &[Vec<u8>], part: &[Traced], status: u16, why: &str) -> Result<(), Stopped> {
        let spans = part.iter().map(|traced| traced.spans.len() as u64).sum();
        self.metrics.otlp_spans("parked", spans);
        tracing::error!("the OTLP collector refused {spans} spans with status {status}; they are dead letters now");
        self.keep(lines, part, status, why).await
    }

    async fn keep(&mut self, lines: &[Vec<u8>], part: &[Traced], status: u16, why: &str) -> Result<(), Stopped> {
        for traced in part {
            let line = lines.get(traced.line).map(Vec::as_slice).unwrap_or_default();
            let letter = Letter {
                id: traced.id.to_string(),
                time: iso(now_us()),
                destination: self.queue.destination().to_owned(),
                status,
                response: why.to_owned(),
                run: None,
                feedback: None,
                line: serde_json::from_slice::<Box<RawValue>>(line).ok(),
            };
            while let Err(error) = self.dead_letters.park(&letter) {
                tracing::error!("refused spans cannot be put aside: {error}; trying again");
                self.pause(self.policy.operator).await?;
            }
        }
        Ok(())
    }

    /// Waits, unless the process is to end.
    async fn pause(&mut self, wait: Duration) -> Result<(), Stopped> {
        if *self.stop.borrow() {
            return Err(Stopped);
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            // Nobody holds the sender any more, or it says stop: the same here.
            _ = self.stop.changed() => Err(Stopped),
        }
    }
}

fn halve(pending: &mut Vec<Range<usize>>, range: Range<usize>) {
    let middle = range.start + range.len() / 2;
    pending.push(middle..range.end);
    pending.push(range.start..middle);
}

/// Consecutive ranges within a request's size; a record too big for it is alone.
fn chunks(traced: &[Traced]) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, one) in traced.iter().enumerate() {
        if index > start && bytes + one.size > REQUEST_BYTES {
            chunks.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += one.size;
    }
    if start < traced.len() {
        chunks.push(start..traced.len());
    }
    chunks
}

#[cfg(test)]
mod tests;
