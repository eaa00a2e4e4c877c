//! A host for one flow: it does with events and effects what the shell and Envoy do, and remembers what happened.

use parapet_engine::config::Config;
use parapet_engine::flow::{BodyMode, Call, Callout, Context, Effect, End, Event, Flow, Head, Reply};
use parapet_engine::memory::Memory;
use parapet_engine::quota::{Buckets, Decision};
use parapet_engine::record::Record;

/// What outlives a request: the configuration and a worker's memory.
pub(crate) struct Worker {
    pub(crate) config: Config,
    pub(crate) memory: Memory,
    pub(crate) now_us: u64,
    /// The answer to every reservation; a full bucket's where none is set.
    pub(crate) decision: Option<Decision>,
}

impl Worker {
    /// `policy` is the JSON of the one policy there is.
    pub(crate) fn new(policy: &str) -> Self {
        Self::with(policy, r#""sidecar": {"cluster": "sidecar", "authority": "h:4"},"#)
    }

    pub(crate) fn with(policy: &str, sidecar: &str) -> Self {
        let json = format!(
            r#"{{"max_request_bytes": 100000,
            "providers": [
                {{"name": "vllm", "cluster": "vllm", "authority": "h:1", "price": {{"input": 1, "output": 2}}}},
                {{"name": "openai", "cluster": "openai", "authority": "h:2"}}],
            "models": [
                {{"name": "m", "aliases": ["n"], "cluster": "chain", "chain": [{{"provider": "vllm", "model": "x"}}, {{"provider": "openai", "model": "y"}}]}},
                {{"name": "other", "cluster": "chain", "chain": [{{"provider": "openai", "model": "y"}}]}}],
            "guard": {{"cluster": "guard", "authority": "h:3", "model": "lg"}},
            {sidecar}
            "keys": [{{"sha256": "32a642c5fd761670c7f9989b70138c93c56ea519529eb544d46b91a8e59f3075", "tenant": "t", "user": "u", "policy": "p"}}],
            "policies": {{"p": {policy}}}}}"#
        );
        let config = Config::parse(json.as_bytes()).unwrap();
        Self { config, memory: Memory::default(), now_us: 1_800_000_000_000_000, decision: None }
    }

    pub(crate) fn open(&mut self) -> Host<'_> {
        Host {
            worker: self,
            flow: Flow::default(),
            pending: Vec::new(),
            calls: 0,
            sent: None,
            shared: Vec::new(),
            passed_on: None,
            reply: None,
            aborted: false,
            reserved: 0,
            settled: Vec::new(),
            records: Vec::new(),
            response: Response::default(),
        }
    }

    /// `POST /v1/chat/completions` with `body`, from a known key.
    pub(crate) fn ask(&mut self, body: &str) -> Host<'_> {
        let mut host = self.open();
        host.request("/v1/chat/completions", &[], body.as_bytes());
        host
    }
}

/// The response's way through Envoy's buffer to the client.
#[derive(Default)]
pub(crate) struct Response {
    pub(crate) headers: Vec<(String, String)>,
    buffer: Vec<u8>,
    paused: bool,
    /// The buffer can be written outside of a body callback.
    open: bool,
    ended: bool,
    pub(crate) head_out: bool,
    pub(crate) client: Vec<u8>,
    pub(crate) complete: bool,
}

pub(crate) struct Host<'a> {
    pub(crate) worker: &'a mut Worker,
    pub(crate) flow: Flow,
    pub(crate) pending: Vec<Callout>,
    pub(crate) calls: usize,
    /// Head and body as they go to the provider.
    pub(crate) sent: Option<Vec<u8>>,
    /// What the provider filter is told.
    pub(crate) shared: Vec<u8>,
    /// A head that goes on without the flow (to the sidecar).
    pub(crate) passed_on: Option<Vec<(&'static str, String)>>,
    pub(crate) reply: Option<Reply>,
    pub(crate) aborted: bool,
    pub(crate) reserved: usize,
    /// Reserved and used tokens.
    pub(crate) settled: Vec<(u64, u64)>,
    pub(crate) records: Vec<Record>,
    pub(crate) response: Response,
}

impl Host<'_> {
    pub(crate) fn step(&mut self, event: Event<'_>) {
        let mut effects = Vec::new();
        self.run(event, &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn run(&mut self, event: Event<'_>, effects: &mut Vec<Effect>) {
        let Worker { config, memory, now_us, .. } = &mut *self.worker;
        *now_us += 1000;
        self.flow.step(event, &mut Context { config, memory, now_us: *now_us, effects });
    }

    fn carry_out(&mut self, effect: Effect) {
        assert!(self.records.is_empty(), "after the record there is {effect:?}");
        match effect {
            Effect::Reserve { limits, tokens, .. } => {
                let full = || Buckets::full(&limits, self.worker.now_us).reserve(&limits, tokens, self.worker.now_us).1;
                let decision = self.worker.decision.clone().unwrap_or_else(full);
                self.reserved += usize::from(decision.granted);
                self.step(Event::Reserved(decision));
            }
            Effect::Settle { reserved, used, .. } => self.settled.push((reserved, used)),
            Effect::Call(callout) => {
                assert!(self.pending.iter().all(|known| known.call != callout.call), "two of {:?}", callout.call);
                self.calls += 1;
                self.pending.push(callout);
            }
            Effect::SetRequestHead(head) => self.passed_on = Some(head),
            Effect::SetRequestBody(body) => assert!(self.sent.replace(body).is_none(), "sent twice"),
            Effect::Share { ask, .. } => self.shared = ask,
            Effect::SetResponseHeader(name, value) => {
                assert!(!self.response.head_out, "{name} is set after the head has left");
                self.response.headers.retain(|(known, _)| known != name);
                self.response.headers.push((name.to_owned(), value));
            }
            Effect::RemoveResponseHeader(name) => self.response.headers.retain(|(known, _)| *known != name),
            Effect::Reply(reply) => {
                assert!(!self.response.head_out, "a reply after the head has left: {reply:?}");
                assert!(self.reply.replace(reply).is_none(), "two replies");
            }
            Effect::Record(bytes) => self.records.push(serde_json::from_slice(&bytes).expect("a record")),
        }
    }

    pub(crate) fn request(&mut self, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let key = ("authorization", "Bearer sk-demo-alice");
        self.request_as(&[&[(":method", "POST"), (":path", path), key], headers].concat(), body);
    }

    pub(crate) fn request_as(&mut self, head: &[(&str, &str)], body: &[u8]) {
        let head = bytes(head);
        self.step(Event::RequestHead { head: Head(&head), ends: body.is_empty(), entropy: [7; 10] });
        if self.flow.wants_body() {
            self.step(Event::RequestBody(body));
        }
    }

    pub(crate) fn waits_for(&self, call: Call) -> bool {
        self.pending.iter().any(|callout| callout.call == call)
    }

    /// The time limit of a call that waits, in milliseconds.
    pub(crate) fn limit_of(&self, call: Call) -> u64 {
        self.pending.iter().find(|callout| callout.call == call).expect("it waits").timeout_ms
    }

    pub(crate) fn take(&mut self, call: Call) -> Callout {
        let at = self.pending.iter().position(|callout| callout.call == call);
        self.pending.swap_remove(at.unwrap_or_else(|| panic!("{call:?} is not pending, but {:?}", self.pending)))
    }

    pub(crate) fn answer(&mut self, call: Call, status: u16, body: &[u8]) {
        self.take(call);
        self.step(Event::Answered { call, status, body });
        self.resume();
    }

    /// The guard's word, as a completion.
    pub(crate) fn verdict(&mut self, call: Call, text: &str) {
        self.answer(call, 200, &completion(text));
    }

    fn resume(&mut self) {
        let reachable = self.response.paused || self.response.open;
        if self.reply.is_some() || !reachable || self.flow.response_waits() {
            return;
        }
        if let Some(body) = self.flow.take_body() {
            self.response.buffer = body;
        }
        self.release();
    }

    fn release(&mut self) {
        self.response.paused = false;
        self.response.head_out = true;
        self.response.client.append(&mut self.response.buffer);
        self.response.complete = self.response.ended;
    }

    pub(crate) fn response_head(&mut self, head: &[(&str, &str)], ends: bool) {
        if self.reply.is_some() {
            return;
        }
        self.response.headers = head.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.step(Event::ResponseHead { head: Head(&bytes(head)), ends });
        self.response.ended = ends;
        self.response.paused = true;
        if self.reply.is_none() && !self.flow.response_waits() {
            self.release();
        }
    }

    pub(crate) fn answers_with(&mut self, content_type: &str) {
        let provider = ("x-parapet-provider", "vllm");
        self.response_head(&[(":status", "200"), ("content-type", content_type), provider], false);
    }

    pub(crate) fn response_body(&mut self, bytes: &[u8], ends: bool) {
        if self.flow.abandons_in().is_some() && !self.aborted {
            // The client has had everything; the provider is cut off.
            assert!(self.response.buffer.is_empty());
            self.response.complete = true;
            self.aborted = true;
        }
        if self.reply.is_some() || self.aborted {
            return;
        }
        self.response.ended = ends;
        self.response.buffer.extend_from_slice(bytes);
        let mode = self.flow.body_mode();
        if mode == BodyMode::Whole && !ends {
            self.response.paused = true;
            return;
        }
        let seen = core::mem::take(&mut self.response.buffer);
        self.step(Event::ResponseBody { bytes: &seen, ends });
        if self.reply.is_some() {
            return;
        }
        self.response.open = self.flow.lingers();
        if self.flow.response_waits() {
            self.response.paused = true;
            self.response.open = true;
            self.response.buffer = if mode == BodyMode::Stream { Vec::new() } else { seen };
        } else {
            self.response.buffer = self.flow.take_body().unwrap_or(seen);
            self.release();
        }
    }

    /// What the client has got of an answer, a blocked one's refusal included.
    pub(crate) fn text(&self) -> String {
        let replied = self.reply.as_ref().filter(|reply| reply.status == 200).map(|reply| &reply.body);
        String::from_utf8_lossy(replied.unwrap_or(&self.response.client)).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// The stream's end; the record, and that the quota's books are even.
    pub(crate) fn end(&mut self, end: End<'_>) -> Record {
        self.step(Event::Ended(end));
        assert_eq!(self.reserved, self.settled.len(), "a granted reservation is settled once");
        assert_eq!(self.records.len(), 1);
        self.records[0].clone()
    }

    pub(crate) fn refused(&self) -> (u16, String) {
        let reply = self.reply.as_ref().expect("a reply");
        let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
        (reply.status, body["error"]["code"].as_str().expect("a code").to_owned())
    }

    pub(crate) fn reply_header(&self, name: &str) -> Option<&str> {
        self.reply.as_ref()?.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| &**value)
    }
}

fn bytes<'a>(head: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a [u8])> {
    head.iter().map(|(name, value)| (*name, value.as_bytes())).collect()
}

pub(crate) fn completion(text: &str) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({"choices": [{"text": text}]})).unwrap()
}
