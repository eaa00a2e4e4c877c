//! One chat answer in its two wire forms: a JSON body, and a stream of chunks in the order real servers send them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    chat::Pace,
    faults::Behaviour,
    shape::{Kind, unique},
    sse::{Step, done, event, keep_alives, silence},
};

const VLLM_FINGERPRINT: &str = "vllm-0.32.0-51300000";
const OPENAI_FINGERPRINT: &str = "fp_51300000";

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Finish {
    #[default]
    Stop,
    Length,
    ToolCalls,
}

impl Finish {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

#[derive(Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) completion: usize,
    /// Prompt tokens taken from the prefix cache, where the server tells.
    pub(super) cached: Option<usize>,
}

impl Usage {
    pub(super) fn json(self, kind: Kind) -> Value {
        let (prompt, completion) = (self.prompt, self.completion);
        let details = match (kind, self.cached) {
            (Kind::OpenAi, cached) => json!({"cached_tokens": cached.unwrap_or(0), "audio_tokens": 0}),
            (_, Some(cached)) => json!({"cached_tokens": cached}),
            (_, None) => Value::Null,
        };
        let mut usage = json!({
            "prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion,
            "prompt_tokens_details": details,
        });
        if let (Kind::OpenAi, Some(usage)) = (kind, usage.as_object_mut()) {
            let none = json!({
                "reasoning_tokens": 0, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            });
            usage.insert("completion_tokens_details".into(), none);
        }
        usage
    }
}

pub(super) struct Completion {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// The content, or a tool call's arguments.
    pub(super) text: String,
    /// Where each token of `text` ends, in bytes.
    pub(super) ends: Vec<usize>,
    pub(super) finish: Finish,
    pub(super) stop_reason: Option<String>,
    pub(super) tool: Option<String>,
    pub(super) n: u32,
    pub(super) usage: Usage,
    pub(super) include_usage: bool,
    pub(super) continuous_usage: bool,
    /// Of the JSON form only.
    pub(super) logprobs: Value,
}

impl Default for Completion {
    fn default() -> Self {
        Self {
            kind: Kind::Vllm,
            id: String::new(),
            created: 0,
            model: String::new(),
            text: String::new(),
            ends: Vec::new(),
            finish: Finish::default(),
            stop_reason: None,
            tool: None,
            n: 1,
            usage: Usage::default(),
            include_usage: false,
            continuous_usage: false,
            logprobs: Value::Null,
        }
    }
}

impl Completion {
    pub(super) fn json(&self) -> Value {
        let choices: Vec<Value> = (0..self.n).map(|index| self.choice(index)).collect();
        let mut body = json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": choices, "usage": self.usage.json(self.kind),
        });
        let extra = match self.kind {
            Kind::OpenAi => json!({"service_tier": "default", "system_fingerprint": OPENAI_FINGERPRINT}),
            _ => json!({
                "service_tier": null, "system_fingerprint": VLLM_FINGERPRINT, "prompt_logprobs": null,
                "prompt_token_ids": null, "kv_transfer_params": null,
            }),
        };
        merge(&mut body, extra);
        body
    }

    fn choice(&self, index: u32) -> Value {
        let content = if self.tool.is_some() { Value::Null } else { json!(self.text) };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        let called = self.tool.as_ref().map(|name| {
            json!([{"id": self.tool_id(), "type": "function", "function": {"name": name, "arguments": self.text}}])
        });
        let mut choice = json!({"index": index, "logprobs": self.logprobs, "finish_reason": self.finish.name()});
        if self.kind == Kind::OpenAi {
            merge(&mut message, json!({"annotations": []}));
            if let Some(called) = called {
                merge(&mut message, json!({"tool_calls": called}));
            }
        } else {
            let none = json!({"annotations": null, "audio": null, "function_call": null, "reasoning": null});
            merge(&mut message, none);
            merge(&mut message, json!({"tool_calls": called.unwrap_or_else(|| json!([]))}));
            merge(&mut choice, json!({"stop_reason": self.stop_reason, "token_ids": null}));
        }
        merge(&mut choice, json!({"message": message}));
        choice
    }

    fn tool_id(&self) -> String {
        let prefix = if self.kind == Kind::OpenAi { "call_" } else { "chatcmpl-tool-" };
        format!("{prefix}{}", unique())
    }

    /// The events in order: role with the first engine output, tokens, finish, usage if asked for, `[DONE]`.
    /// Chunks are made when they are due, so that a long answer costs memory for its text only.
    pub(super) fn stream(self, pace: Pace, behaviour: &Behaviour) -> Box<dyn Iterator<Item = Step> + Send> {
        let kind = self.kind;
        let begin = std::iter::once(Step::Wait(pace.first_token));
        match behaviour {
            Behaviour::HangAfterHeaders => Box::new(silence()),
            Behaviour::KeepaliveOnly => Box::new(keep_alives()),
            Behaviour::ErrorEventFirst => Box::new(begin.chain([event(&kind.error_event()), done()])),
            Behaviour::Malformed => {
                let broken = format!("data: {{\"id\":\"{}\",\"choices\":[{{\"index\":0,\"delta\":\n\n", self.id);
                Box::new(begin.chain([Step::Send(broken.into()), done()]))
            }
            // A pause of its own lets the tokens leave before the connection breaks.
            Behaviour::CutAfter(tokens) => {
                let pause = Step::Wait(pace.token.max(Duration::from_millis(2)));
                self.broken_off(pace, *tokens, vec![pause, Step::Abort])
            }
            Behaviour::ErrorEventAfter(tokens) => {
                self.broken_off(pace, *tokens, vec![event(&kind.error_event()), done()])
            }
            Behaviour::NoFinishAfter(tokens) => self.broken_off(pace, *tokens, Vec::new()),
            _ => self.whole(pace),
        }
    }

    fn whole(self, pace: Pace) -> Box<dyn Iterator<Item = Step> + Send> {
        let this = Arc::new(self);
        // vLLM's last chunk of a cut answer carries the last token beside the reason.
        let held_back = usize::from(this.kind == Kind::Vllm && this.finish == Finish::Length);
        let shown = this.ends.len().saturating_sub(held_back);
        let last = this.token(shown).to_owned();
        let mut closing = Vec::new();
        if held_back == 1 && shown > 0 {
            closing.push(Step::Wait(pace.token));
        }
        closing.extend((0..this.n).map(|index| this.chunk(&this.final_choice(index, &last), this.ends.len())));
        if this.include_usage {
            closing.push(this.usage_chunk());
        }
        closing.push(done());
        Box::new(Self::opened(this, pace, shown).chain(closing))
    }

    fn broken_off(self, pace: Pace, tokens: usize, end: Vec<Step>) -> Box<dyn Iterator<Item = Step> + Send> {
        let shown = tokens.min(self.ends.len());
        Box::new(Self::opened(Arc::new(self), pace, shown).chain(end))
    }

    fn opened(this: Arc<Self>, pace: Pace, shown: usize) -> impl Iterator<Item = Step> + Send {
        let roles: Vec<Step> = (0..this.n).map(|index| this.chunk(&this.role_choice(index), 0)).collect();
        let tokens = (0..shown).flat_map(move |token| {
            let wait = Step::Wait(if token == 0 { Duration::ZERO } else { pace.token });
            let chunk = |index| this.chunk(&this.token_choice(index, token), token + 1);
            std::iter::once(wait).chain((0..this.n).map(chunk)).collect::<Vec<Step>>()
        });
        std::iter::once(Step::Wait(pace.first_token)).chain(roles).chain(tokens)
    }

    fn token(&self, token: usize) -> &str {
        let start = token.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(token).and_then(|end| self.text.get(start..*end)).unwrap_or_default()
    }

    fn role_choice(&self, index: u32) -> String {
        let refusal = if self.kind == Kind::OpenAi { r#","refusal":null"# } else { "" };
        let delta = match &self.tool {
            None => format!(r#"{{"role":"assistant","content":""{refusal}}}"#),
            Some(name) => {
                let call = json!([{
                    "id": self.tool_id(), "type": "function", "index": 0, "function": {"name": name, "arguments": ""},
                }]);
                format!(r#"{{"role":"assistant","content":null{refusal},"tool_calls":{call}}}"#)
            }
        };
        format!(r#"{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":null}}"#)
    }

    fn token_choice(&self, index: u32, token: usize) -> String {
        let delta = self.delta(self.token(token));
        let ids = self.vllm_only(r#","token_ids":null"#);
        format!(r#"{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":null{ids}}}"#)
    }

    fn final_choice(&self, index: u32, last: &str) -> String {
        let delta = match self.kind {
            Kind::OpenAi => "{}".to_owned(),
            _ => self.delta(last),
        };
        let stop = json!(self.stop_reason);
        let more = self.vllm_only(&format!(r#","stop_reason":{stop},"token_ids":null"#));
        let finish = self.finish.name();
        format!(r#"{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":"{finish}"{more}}}"#)
    }

    fn delta(&self, text: &str) -> String {
        let text = json!(text);
        match self.tool {
            None => format!(r#"{{"content":{text}}}"#),
            Some(_) => format!(r#"{{"tool_calls":[{{"index":0,"function":{{"arguments":{text}}}}}]}}"#),
        }
    }

    fn vllm_only(&self, fields: &str) -> String {
        if self.kind == Kind::Vllm { fields.to_owned() } else { String::new() }
    }

    /// `tokens`: how many of each choice were sent with this chunk.
    fn chunk(&self, choice: &str, tokens: usize) -> Step {
        let usage = match self.kind {
            Kind::OpenAi if self.include_usage => r#","usage":null"#.to_owned(),
            Kind::Vllm if self.continuous_usage => {
                let usage = Usage { completion: tokens * self.n as usize, ..self.usage };
                format!(r#","usage":{}"#, usage.json(self.kind))
            }
            _ => String::new(),
        };
        self.frame(choice, &usage)
    }

    fn usage_chunk(&self) -> Step {
        let fingerprint = self.vllm_only(&format!(r#","system_fingerprint":"{VLLM_FINGERPRINT}""#));
        self.frame("", &format!(r#","usage":{}{fingerprint}"#, self.usage.json(self.kind)))
    }

    fn frame(&self, choice: &str, more: &str) -> Step {
        let (id, model, created) = (json!(self.id), json!(self.model), self.created);
        let own = match self.kind {
            Kind::OpenAi => {
                format!(
                    r#","service_tier":"default","system_fingerprint":"{OPENAI_FINGERPRINT}","obfuscation":"k3Xw9p""#
                )
            }
            _ => r#","prompt_token_ids":null"#.to_owned(),
        };
        Step::Send(Bytes::from(format!(
            "data: {{\"id\":{id},\"object\":\"chat.completion.chunk\",\"created\":{created},\"model\":{model},\
             \"choices\":[{choice}]{own}{more}}}\n\n"
        )))
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
