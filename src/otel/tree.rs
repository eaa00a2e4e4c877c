//! A record becomes spans: the inbound request (SERVER), each attempt at a model (CLIENT), the guards and the cache
//! lookup (INTERNAL). They are the runs that LangSmith gets, with the same times and with ids made of theirs.

use parapet_engine::record::{Attempt, Content, GuardRecord, Record};
use serde_json::{Map, Value};

use super::context::Parent;
use super::messages;
use super::proto::{Span, SpanKind};
use super::span::{Draft, span_id};
use crate::accesslog::line::Line;
use crate::langsmith::order::Order;
use crate::langsmith::run::{Run, RunType};
use crate::langsmith::tree::{self, Failure, Used};

/// What the operator chose about every span.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// What LangSmith's runs are told to hide is hidden here too.
    pub runs: tree::Shape,
    /// Whether messages go along.
    pub content: bool,
    /// Whether LangSmith reads the spans, which then say which run each of them is.
    pub langsmith: bool,
}

/// Why a line gives no spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotSampled;

/// The line's spans, the root first.
pub fn spans(line: &Line, shape: &Shape) -> Result<Vec<Span>, NotSampled> {
    let record = &line.record;
    let parent = record.traceparent.as_deref().and_then(Parent::parse);
    if parent.is_some_and(|parent| !parent.sampled) {
        return Err(NotSampled);
    }
    // A policy that keeps texts out of the record leaves empty shells of answers in it: they say nothing.
    let withheld = record.content != Content::Full;
    let runs = tree::Shape {
        hide_inputs: shape.runs.hide_inputs || withheld,
        hide_outputs: shape.runs.hide_outputs || withheld,
        ..shape.runs.clone()
    };
    let shape = &Shape { runs, ..*shape };
    let root = tree::root_order(line);
    let trace_id = parent.map_or(*line.id.as_bytes(), |parent| parent.trace_id);
    let builder = Builder { record, shape, root: &root, trace_id, end_us: record.end_us.max(record.start_us) };
    let mut drafts = vec![(root.id, builder.root(parent))];
    if let Some(guard) = &record.input_guard {
        drafts.push(builder.guard("input-guard", guard));
    }
    if record.cache.is_some() {
        drafts.push(builder.cache());
    }
    let attempts = record.attempts.iter().enumerate();
    drafts.extend(attempts.map(|(index, attempt)| builder.attempt(index, attempt)));
    if let Some(guard) = &record.output_guard {
        drafts.push(builder.guard("output-guard", guard));
    }
    if shape.langsmith {
        let runs = tree::tree(line, &shape.runs);
        for (id, draft) in &mut drafts {
            if let Some(run) = runs.iter().find(|run| run.id == *id) {
                name_run(draft, run);
            }
        }
    }
    Ok(drafts.into_iter().map(|(_, draft)| draft.done()).collect())
}

type Drafted = (uuid::Uuid, Draft);

struct Builder<'a> {
    record: &'a Record,
    shape: &'a Shape,
    root: &'a Order,
    trace_id: [u8; 16],
    end_us: u64,
}

impl Builder<'_> {
    fn root(&self, parent: Option<Parent>) -> Draft {
        let record = self.record;
        let route = match record.api.as_str() {
            "chat_completions" => Some("/v1/chat/completions"),
            "chat" => Some("/chat"),
            _ => None,
        };
        let name = route.map_or_else(|| "POST".to_owned(), |route| format!("POST {route}"));
        let times = (record.start_us, self.end_us);
        let mut draft = Draft::new(name, SpanKind::Server, self.trace_id, self.root.id, times);
        if let Some(parent) = parent {
            draft.parent(&parent.span_id, true);
        }
        draft.set("http.request.method", "POST");
        draft.maybe("http.route", route);
        draft.maybe("http.response.status_code", (record.status > 0).then_some(record.status));
        draft.set("parapet.trace_id", record.id.as_str());
        draft.text("parapet.api", &record.api);
        draft.text("parapet.model", &record.model);
        draft.maybe("parapet.reason", record.reason.as_deref());
        draft.set("parapet.attempts", record.attempts.len() as u64);
        draft.maybe("parapet.cache", record.cache.as_ref().map(|cache| cache.outcome.as_str()));
        draft.maybe("parapet.first_token_s", record.first_token_us.map(|first| seconds(record.start_us, first)));
        draft.maybe("parapet.cost_usd", usd(record.cost_nanousd));
        draft.maybe("parapet.client_aborted", record.client_aborted.then_some(true));
        self.identity(&mut draft);
        if !self.shape.runs.hide_metadata {
            draft.maybe("http.request.header.x-request-id", record.request_id.clone().map(|id| vec![id]));
        }
        self.content(&mut draft, true);
        // A server's span fails for what is the server's fault (HTTP semantic conventions).
        if record.status >= 500 {
            let reason = record.reason.clone().unwrap_or_else(|| record.status.to_string());
            draft.fail(&reason, &format!("answered with status {}", record.status));
        } else if record.client_aborted {
            // Nobody's fault.
        } else if record.truncated {
            draft.fail("truncated", "the answer was cut off upstream");
        } else if record.status == 0 {
            draft.fail("no_answer", "the client was given no answer");
        }
        draft
    }

    fn attempt(&self, index: usize, attempt: &Attempt) -> Drafted {
        let record = self.record;
        let order = self.root.child(&format!("attempt:{index}"), attempt.start_us);
        let next_start = record.attempts.get(index + 1).map(|next| next.start_us);
        let start_us = attempt.start_us.max(record.start_us);
        let end_us = attempt.end_us.or(next_start).unwrap_or(self.end_us);
        let operation = operation(&record.api);
        let name = format!("{operation} {}", attempt.model).trim_end().to_owned();
        let mut draft = self.child(name, SpanKind::Client, &order, (start_us, end_us));
        draft.set("gen_ai.operation.name", operation);
        // The old name of the attribute is the one that LangSmith and others read.
        draft.text("gen_ai.provider.name", &attempt.provider);
        draft.text("gen_ai.system", &attempt.provider);
        draft.text("gen_ai.request.model", &attempt.model);
        draft.set("gen_ai.request.stream", record.stream);
        self.parameters(&mut draft);
        draft.maybe("http.response.status_code", (attempt.status > 0).then_some(attempt.status));
        draft.maybe("http.request.resend_count", (index > 0).then_some(index as u64));
        draft.set("parapet.outcome", attempt.outcome.as_str());
        let first = attempt.first_token_us.map(|first| seconds(start_us, first));
        draft.maybe("gen_ai.response.time_to_first_chunk", first);
        self.identity(&mut draft);
        let answered = tree::answered(record, index);
        if let Some(used) = Used::of(record, index) {
            usage(&mut draft, used);
        }
        if answered {
            // What a guard replaced is not how the model finished.
            if !tree::replaced(record) {
                let reasons: Vec<String> =
                    record.answers.iter().filter_map(|answer| answer.finish_reason.clone()).collect();
                draft.maybe("gen_ai.response.finish_reasons", (!reasons.is_empty()).then_some(reasons));
            }
        }
        self.content(&mut draft, answered && !tree::replaced(record));
        if let Some(Failure { kind, message }) = tree::attempt_failure(record, index) {
            draft.fail(&kind, &message);
        }
        (order.id, draft)
    }

    fn guard(&self, name: &str, guard: &GuardRecord) -> Drafted {
        let start_us = guard.start_us.unwrap_or(self.record.start_us).max(self.record.start_us);
        let order = self.root.child(name, guard.start_us.unwrap_or(self.root.start_us));
        let times = (start_us, guard.end_us.unwrap_or(start_us));
        let mut draft = self.child(name.to_owned(), SpanKind::Internal, &order, times);
        draft.text("parapet.guard.mode", &guard.mode);
        draft.text("parapet.guard.verdict", &guard.verdict);
        draft.text("parapet.guard.action", &guard.action);
        draft.text("parapet.guard.model", &guard.model);
        draft.maybe("parapet.guard.score", guard.score);
        draft.maybe("parapet.guard.categories", (!guard.categories.is_empty()).then(|| guard.categories.clone()));
        draft.set("parapet.guard.calls", u64::from(guard.calls));
        if guard.verdict == "failed" {
            draft.fail("no_verdict", "the guard gave no usable verdict");
        }
        (order.id, draft)
    }

    /// The record has no times of the lookup, which is in memory: the span is a point at the request's start.
    fn cache(&self) -> Drafted {
        let order = self.root.child("cache-lookup", self.root.start_us);
        let at = self.record.start_us;
        let mut draft = self.child("cache-lookup".to_owned(), SpanKind::Internal, &order, (at, at));
        if let Some(cache) = &self.record.cache {
            draft.text("parapet.cache.outcome", &cache.outcome);
            draft.maybe("parapet.cache.age_s", cache.age_s);
        }
        (order.id, draft)
    }

    fn child(&self, name: String, kind: SpanKind, order: &Order, times: (u64, u64)) -> Draft {
        let mut draft = Draft::new(name, kind, self.trace_id, order.id, times);
        draft.parent(&span_id(self.root.id), false);
        draft
    }

    /// Whose request it is, and the conversation.
    fn identity(&self, draft: &mut Draft) {
        let record = self.record;
        if self.shape.runs.hide_metadata {
            return;
        }
        draft.maybe("gen_ai.conversation.id", record.session.as_deref());
        draft.text("parapet.tenant", &record.tenant);
        draft.text("user.id", &record.user);
        draft.text("parapet.policy", &record.policy);
        draft.maybe("parapet.feature", record.feature.as_deref());
        draft.maybe("parapet.end_user", record.end_user.as_deref());
    }

    fn parameters(&self, draft: &mut Draft) {
        let raw = self.record.params.as_ref();
        let parameters: Map<String, Value> =
            raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        let get = |name: &str| parameters.get(name).filter(|value| !value.is_null());
        for (name, key) in [
            ("temperature", "gen_ai.request.temperature"),
            ("top_p", "gen_ai.request.top_p"),
            ("frequency_penalty", "gen_ai.request.frequency_penalty"),
            ("presence_penalty", "gen_ai.request.presence_penalty"),
        ] {
            draft.maybe(key, get(name).and_then(Value::as_f64));
        }
        let limit = get("max_completion_tokens").or_else(|| get("max_tokens")).and_then(Value::as_u64);
        draft.maybe("gen_ai.request.max_tokens", limit);
        for (name, key) in [("top_k", "gen_ai.request.top_k"), ("seed", "gen_ai.request.seed")] {
            draft.maybe(key, get(name).and_then(Value::as_u64));
        }
        draft.maybe("gen_ai.request.choice.count", get("n").and_then(Value::as_u64).filter(|&count| count != 1));
        // Words of the client's own: input, like the messages.
        if self.shape.runs.hide_inputs {
            return;
        }
        let stop = match get("stop") {
            Some(Value::String(text)) => Some(vec![text.clone()]),
            Some(Value::Array(texts)) => Some(texts.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            _ => None,
        };
        draft.maybe("gen_ai.request.stop_sequences", stop);
        if self.shape.content {
            draft.maybe("gen_ai.tool.definitions", get("tools").map(Value::to_string));
        }
    }

    fn content(&self, draft: &mut Draft, answered: bool) {
        let record = self.record;
        if !self.shape.content {
            return;
        }
        if !self.shape.runs.hide_inputs {
            let raw = record.messages.as_ref();
            draft.maybe("gen_ai.input.messages", raw.and_then(|raw| messages::input(raw.get())));
        }
        if answered && !self.shape.runs.hide_outputs && !record.answers.is_empty() {
            draft.set("gen_ai.output.messages", messages::output(&record.answers));
        }
    }
}

fn usage(draft: &mut Draft, used: Used) {
    let usage = used.usage;
    draft.set("gen_ai.usage.input_tokens", usage.prompt);
    draft.set("gen_ai.usage.output_tokens", usage.completion);
    draft.maybe("gen_ai.usage.cache_read.input_tokens", (usage.cached > 0).then_some(usage.cached));
    draft.maybe("gen_ai.usage.reasoning.output_tokens", (usage.reasoning > 0).then_some(usage.reasoning));
    draft.maybe("parapet.usage_estimated", usage.estimated.then_some(true));
    draft.maybe("parapet.cost_usd", usd(used.cost_nanousd));
}

/// US dollars; none for what has no price.
fn usd(nanousd: u64) -> Option<f64> {
    (nanousd > 0).then(|| nanousd as f64 / 1e9)
}

/// `gen_ai.operation.name` of an endpoint's calls.
fn operation(api: &str) -> &'static str {
    match api {
        "embeddings" => "embeddings",
        "completions" => "text_completion",
        _ => "chat",
    }
}

fn seconds(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e6
}

/// LangSmith takes these for the run's own fields ("Trace with OpenTelemetry", attribute mapping): the span then is
/// the same run that the direct upload would make.
fn name_run(draft: &mut Draft, run: &Run) {
    draft.set("langsmith.trace.name", run.name.as_str());
    let kind = match run.run_type {
        RunType::Chain => "chain",
        RunType::Llm => "llm",
        RunType::Tool => "tool",
    };
    draft.set("langsmith.span.kind", kind);
    draft.set("langsmith.span.id", run.id.to_string());
    draft.set("langsmith.trace.id", run.trace_id.to_string());
    draft.maybe("langsmith.span.parent_id", run.parent_run_id.map(|id| id.to_string()));
    draft.set("langsmith.span.dotted_order", run.dotted_order.as_str());
    draft.set("langsmith.trace.session_name", run.session_name.as_str());
    draft.text("langsmith.span.tags", &run.tags.join(","));
    let extra = run.fields.iter().find(|(name, _)| *name == "extra");
    let extra: Option<Value> = extra.and_then(|(_, json)| serde_json::from_str(json).ok());
    let metadata = extra.as_ref().and_then(|extra| extra.get("metadata")).and_then(Value::as_object);
    for (key, value) in metadata.into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        draft.set(&format!("langsmith.metadata.{key}"), text);
    }
}

#[cfg(test)]
mod tests;
