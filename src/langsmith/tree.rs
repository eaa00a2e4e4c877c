//! A record becomes a tree of runs: the root `chat-request` and, below it, the input guard, the cache lookup, each
//! attempt at a model and the output guard.
//!
//! Everything is made of the line alone, so that a replay makes the same runs with the same ids.

mod message;
mod metadata;

use std::sync::Arc;

use parapet_engine::record::{Attempt, Content, GuardRecord, Record, Usage};
use serde_json::{Map, Value, json};

use message::{choices, message};

use super::order::{Order, iso};
use super::run::{Run, RunType};
use crate::accesslog::line::Line;
use crate::audit::key::Key;

/// What the operator chose about every run.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// The LangSmith project.
    pub project: String,
    pub hide_inputs: bool,
    pub hide_outputs: bool,
    pub hide_metadata: bool,
    /// Digests of texts leave as HMACs under it; without it they do not leave.
    pub key: Option<Arc<Key>>,
}

/// The line's runs, the root first.
pub fn tree(line: &Line, shape: &Shape) -> Vec<Run> {
    let record = &line.record;
    let root = root_order(line);
    let end_us = record.end_us.max(root.start_us);
    // A policy that keeps texts out of the record leaves empty shells of answers in it: they say nothing.
    let withheld = record.content != Content::Full;
    let shape = Shape {
        hide_inputs: shape.hide_inputs || withheld,
        hide_outputs: shape.hide_outputs || withheld,
        ..shape.clone()
    };
    let digests = metadata::digests(record, shape.key.as_deref());
    let builder = Builder { line, record, shape: &shape, root: &root, end_us, digests };
    let mut runs = vec![builder.root()];
    if let Some(guard) = &record.input_guard {
        runs.push(builder.guard("input-guard", guard));
    }
    if record.cache.is_some() {
        runs.push(builder.cache());
    }
    let attempts = record.attempts.iter().enumerate();
    runs.extend(attempts.map(|(index, attempt)| builder.attempt(index, attempt)));
    if let Some(guard) = &record.output_guard {
        runs.push(builder.guard("output-guard", guard));
    }
    runs
}

/// Where the line's root run stands.
pub fn root_order(line: &Line) -> Order {
    Order::root(line.id, line.record.start_us, line.record.langsmith_parent.as_deref())
}

/// Whether the guard's own verdict stopped the text; a guard that failed closed is a failure, not a block.
pub fn blocked(guard: Option<&GuardRecord>) -> bool {
    guard.is_some_and(|guard| guard.action == "block" && guard.verdict == "unsafe")
}

/// Why the run counts as failed. Refusals that a policy meant (blocks, limits) and clients that left are no errors.
fn error(record: &Record) -> Option<String> {
    let reason = record.reason.as_deref();
    if matches!(reason, Some("content_blocked" | "rate_limit_exceeded" | "budget_exceeded")) {
        return None;
    }
    if record.status >= 400 {
        return Some(match reason {
            Some(reason) => format!("{reason}: answered with status {}", record.status),
            None => format!("answered with status {}", record.status),
        });
    }
    if record.client_aborted {
        return None;
    }
    if record.truncated {
        return Some("the answer was cut off upstream".to_owned());
    }
    (record.status == 0).then(|| "the client was given no answer".to_owned())
}

struct Builder<'a> {
    line: &'a Line,
    record: &'a Record,
    shape: &'a Shape,
    root: &'a Order,
    end_us: u64,
    digests: Vec<(&'static str, String)>,
}

impl Builder<'_> {
    fn root(&self) -> Run {
        let record = self.record;
        let message = record.answers.first().map(message);
        let mut outputs = Map::new();
        if let Some(message) = message {
            outputs.insert("messages".into(), json!([message]));
        }
        if record.answers.len() > 1 {
            outputs.insert("choices".into(), choices(&record.answers));
        }
        let metadata = self.root_metadata();
        let extra = self.extra(metadata, None);
        let mut run = self.run(self.root, "chat-request".to_owned(), RunType::Chain, self.end_us);
        run.tags = self.tags();
        run.fields = vec![
            ("inputs", self.inputs()),
            ("outputs", hidden(self.shape.hide_outputs, &Value::Object(outputs))),
            ("extra", extra),
        ];
        run.fields.extend(error(record).map(|error| ("error", Value::from(error).to_string())));
        run
    }

    fn attempt(&self, index: usize, attempt: &Attempt) -> Run {
        let record = self.record;
        let order = self.root.child(&format!("attempt:{index}"), attempt.start_us);
        let next_start = record.attempts.get(index + 1).map(|next| next.start_us);
        let end_us = attempt.end_us.or(next_start).unwrap_or(self.end_us);
        let (answered, replaced) = (answered(record, index), replaced(record));

        let mut metadata = self.metadata();
        metadata.insert("ls_provider".into(), attempt.provider.clone().into());
        metadata.insert("ls_model_name".into(), attempt.model.clone().into());
        metadata.insert("ls_model_type".into(), "chat".into());
        metadata.insert("outcome".into(), attempt.outcome.clone().into());
        metadata.insert("status".into(), attempt.status.into());
        metadata.insert("attempt".into(), (index + 1).into());
        self.digests(&mut metadata);
        let parameters = self.parameters(&attempt.model);
        for (parameter, key) in [
            ("temperature", "ls_temperature"),
            ("max_tokens", "ls_max_tokens"),
            ("max_completion_tokens", "ls_max_tokens"),
            ("stop", "ls_stop"),
        ] {
            if let Some(value) = parameters.get(parameter) {
                metadata.insert(key.into(), value.clone());
            }
        }

        let mut outputs = Map::new();
        if answered {
            if replaced {
                metadata.insert("output_replaced".into(), true.into());
            } else if !record.answers.is_empty() {
                outputs.insert("choices".into(), choices(&record.answers));
            }
        }
        // One that failed or lost a race has used something as well, and is charged for it.
        if let Some(used) = Used::of(record, index) {
            // At the top of the outputs, where LangSmith looks first; hidden outputs would take the counts along.
            if self.shape.hide_outputs {
                metadata.insert("usage_metadata".into(), used.metadata());
            } else {
                outputs.insert("usage_metadata".into(), used.metadata());
            }
            if used.usage.estimated {
                metadata.insert("usage_estimated".into(), true.into());
            }
        }
        let mut run = self.run(&order, format!("chat {}", attempt.model).trim_end().to_owned(), RunType::Llm, end_us);
        run.tags = labelled("provider:", &attempt.provider);
        run.fields = vec![
            ("inputs", self.inputs()),
            ("outputs", hidden(self.shape.hide_outputs, &Value::Object(outputs))),
            ("extra", self.extra(metadata, Some(parameters))),
        ];
        if let Some(first) = attempt.first_token_us {
            let time = iso(first.max(order.start_us));
            run.fields.push(("events", json!([{ "name": "new_token", "time": time }]).to_string()));
        }
        let error = attempt_failure(record, index).map(|failure| failure.message);
        run.fields.extend(error.map(|error| ("error", Value::from(error).to_string())));
        run
    }

    fn guard(&self, name: &str, guard: &GuardRecord) -> Run {
        let start_us = guard.start_us.unwrap_or(self.root.start_us);
        let order = self.root.child(name, start_us);
        let end_us = guard.end_us.unwrap_or(order.start_us);
        let mut metadata = self.metadata();
        metadata.insert("ls_message_view_exclude".into(), true.into());
        metadata.insert("guard_model".into(), guard.model.clone().into());
        metadata.insert("calls".into(), guard.calls.into());
        let inputs = json!({ "mode": guard.mode });
        let outputs = json!({
            "verdict": guard.verdict, "action": guard.action, "score": guard.score, "categories": guard.categories,
        });
        let mut run = self.run(&order, name.to_owned(), RunType::Chain, end_us);
        run.fields = vec![
            ("inputs", inputs.to_string()),
            ("outputs", outputs.to_string()),
            ("extra", self.extra(metadata, None)),
        ];
        if guard.verdict == "failed" {
            run.fields.push(("error", Value::from("the guard gave no usable verdict").to_string()));
        }
        run
    }

    /// The record has no times of the lookup, which is in memory: the run is a point at the request's start.
    fn cache(&self) -> Run {
        let order = self.root.child("cache-lookup", self.root.start_us);
        let mut metadata = self.metadata();
        metadata.insert("ls_message_view_exclude".into(), true.into());
        let mut inputs = Map::new();
        let mut outputs = Map::new();
        if let Some(cache) = &self.record.cache {
            inputs.extend(cache.key.clone().map(|key| ("key".to_owned(), key.into())));
            outputs.insert("outcome".into(), cache.outcome.clone().into());
            outputs.extend(cache.age_s.map(|age| ("age_s".to_owned(), age.into())));
        }
        let mut run = self.run(&order, "cache-lookup".to_owned(), RunType::Tool, order.start_us);
        run.fields = vec![
            ("inputs", Value::Object(inputs).to_string()),
            ("outputs", Value::Object(outputs).to_string()),
            ("extra", self.extra(metadata, None)),
        ];
        run
    }

    fn run(&self, order: &Order, name: String, run_type: RunType, end_us: u64) -> Run {
        Run {
            id: order.id,
            trace_id: order.trace_id,
            parent_run_id: order.parent,
            dotted_order: order.dotted.clone(),
            name,
            run_type,
            start_time: iso(order.start_us),
            end_time: iso(end_us.max(order.start_us)),
            session_name: self.shape.project.clone(),
            tags: Vec::new(),
            fields: Vec::new(),
        }
    }

    fn inputs(&self) -> String {
        match &self.record.messages {
            Some(messages) if !self.shape.hide_inputs => format!("{{\"messages\":{}}}", messages.get()),
            _ => "{}".to_owned(),
        }
    }

    /// The request's parameters under the provider's name of the model. With hidden inputs only numbers and switches
    /// are left: tools and schemas are input too.
    fn parameters(&self, model: &str) -> Map<String, Value> {
        let mut parameters: Map<String, Value> =
            self.record.params.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        if self.shape.hide_inputs {
            parameters.retain(|_, value| value.is_number() || value.is_boolean());
        }
        parameters.insert("model".into(), model.into());
        parameters.insert("stream".into(), self.record.stream.into());
        parameters
    }

    fn extra(&self, metadata: Map<String, Value>, parameters: Option<Map<String, Value>>) -> String {
        let metadata = if self.shape.hide_metadata { Map::new() } else { metadata };
        let mut extra = json!({
            "metadata": metadata,
            "runtime": { "sdk": "parapet", "sdk_version": env!("CARGO_PKG_VERSION") },
        });
        if let Some(parameters) = parameters {
            extra["invocation_params"] = Value::Object(parameters);
        }
        extra.to_string()
    }
}

/// What one attempt used, and what its provider charges for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub usage: Usage,
    /// Billionths of a US dollar; 0 is also what an unpriced model has.
    pub cost_nanousd: u64,
    /// Of it, for the completion.
    output_nanousd: Option<u64>,
}

impl Used {
    /// None for an attempt that was given nothing to do.
    pub fn of(record: &Record, index: usize) -> Option<Self> {
        let attempt = record.attempts.get(index)?;
        if let Some(usage) = attempt.usage {
            let cost_nanousd = attempt.cost_nanousd.unwrap_or_default();
            return Some(Self { usage, cost_nanousd, output_nanousd: attempt.output_nanousd });
        }
        // A record that does not tell them apart: all of it is the answering one's.
        let told_apart = record.attempts.iter().any(|attempt| attempt.usage.is_some());
        let usage = record.usage.filter(|_| answered(record, index) && !told_apart)?;
        Some(Self { usage, cost_nanousd: record.cost_nanousd, output_nanousd: None })
    }

    /// LangSmith's `usage_metadata`.
    fn metadata(&self) -> Value {
        let usage = self.usage;
        let mut value = json!({
            "input_tokens": usage.prompt, "output_tokens": usage.completion, "total_tokens": usage.total(),
        });
        if usage.cached > 0 {
            value["input_token_details"] = json!({ "cache_read": usage.cached });
        }
        if usage.reasoning > 0 {
            value["output_token_details"] = json!({ "reasoning": usage.reasoning });
        }
        // Without a price LangSmith looks into its own table.
        if self.cost_nanousd > 0 {
            value["total_cost"] = usd(self.cost_nanousd).into();
            if let Some(output) = self.output_nanousd {
                value["input_cost"] = usd(self.cost_nanousd.saturating_sub(output)).into();
                value["output_cost"] = usd(output).into();
            }
        }
        value
    }
}

/// Whether another provider than the first was turned to.
pub fn failed_over(record: &Record) -> bool {
    let first = record.attempts.first().map(|attempt| &attempt.provider);
    record.attempts.iter().any(|attempt| Some(&attempt.provider) != first)
}

fn labelled(prefix: &str, value: &str) -> Vec<String> {
    if value.is_empty() { Vec::new() } else { vec![format!("{prefix}{value}")] }
}

fn hidden(hide: bool, value: &Value) -> String {
    if hide { "{}".to_owned() } else { value.to_string() }
}

/// US dollars. Exact to the nanodollar up to some nine million dollars.
fn usd(nanousd: u64) -> f64 {
    nanousd as f64 / 1e9
}

/// Whether this attempt gave the answer.
pub fn answered(record: &Record, index: usize) -> bool {
    record.attempts.iter().rposition(|attempt| attempt.outcome == "ok") == Some(index)
}

/// Whether a guard put its own text in the answer's place: that is not what the model said, and what it said is in
/// nobody's record.
pub fn replaced(record: &Record) -> bool {
    blocked(record.output_guard.as_ref()) || blocked(record.input_guard.as_ref())
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The provider's status, or the record's word: of a bounded set.
    pub kind: String,
    pub message: String,
}

/// None for an attempt that succeeded, or that ended because nobody wanted its answer any more.
pub fn attempt_failure(record: &Record, index: usize) -> Option<Failure> {
    let attempt = record.attempts.get(index)?;
    let outcome = attempt.outcome.as_str();
    let failure = |kind: &str, message: &str| Some(Failure { kind: kind.to_owned(), message: message.to_owned() });
    if outcome == "ok" {
        let cut = answered(record, index) && record.truncated && !record.client_aborted;
        return if cut { failure("truncated", "the answer was cut off upstream") } else { None };
    }
    // Another was faster.
    if outcome == "lost" {
        return None;
    }
    if (record.client_aborted || replaced(record)) && index + 1 == record.attempts.len() {
        return None;
    }
    match outcome {
        "status" => {
            let status = attempt.status.to_string();
            failure(&status, &format!("the provider answered with status {status}"))
        }
        "no_first_token" => failure(outcome, "no first token within the limit"),
        "error_event" => failure(outcome, "the provider sent an error in its stream"),
        "empty" => failure(outcome, "the provider's answer was empty"),
        "reset" => failure(outcome, "the connection to the provider failed"),
        other => failure(other, &format!("the attempt ended as {other}")),
    }
}

#[cfg(test)]
mod tests;
