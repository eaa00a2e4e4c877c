//! One HTTP stream, from the first header to the log.

use std::marker::PhantomData;

use crate::chunking::{Chunking, EndOfStream, frames};
use crate::drive;
use crate::guest;
use crate::headers::Headers;
use crate::host::OneThread;
use crate::leg::{Head, Message};
use crate::properties::{FILTER_STATE_PREFIX, Property, join};
use crate::state::{Direction, StreamState, next_id, with};
use crate::vm::Vm;

/// A downstream stream, or one attempt of it at an upstream: [`Stream::attempt`]. An attempt has a context of its
/// own and shares the request's header map and the filter state with its downstream stream, as measured.
#[derive(Debug)]
pub struct Stream {
    id: u32,
    chunking: Chunking,
    end_of_stream: EndOfStream,
    one_thread: OneThread,
}

impl Stream {
    pub(crate) fn downstream(root: u32) -> Self {
        Self::create(StreamState { root, ..StreamState::default() })
    }

    fn create(stream: StreamState) -> Self {
        let (id, root) = (next_id(), stream.root);
        with(|state| state.streams.insert(id, stream));
        // Envoy makes the filter's context with the first header; nothing is to be seen in between.
        if root != 0 {
            guest::context_create(id, root);
        }
        Self { id, chunking: Chunking::default(), end_of_stream: EndOfStream::default(), one_thread: PhantomData }
    }

    /// The router tries an upstream: a new context of the upstream filter `root_id`. The properties of the chosen
    /// host and the attempt's number are the test's to set, with [`Stream::property`].
    #[must_use]
    pub fn attempt(&self, vm: &Vm, root_id: &str) -> Self {
        let parent = with(|state| state.downstream_of(self.id));
        let attempt = Self::create(StreamState { root: vm.root(root_id), parent: Some(parent), ..Default::default() });
        attempt.chunking(self.chunking.clone()).end_of_stream(self.end_of_stream)
    }

    /// How the bodies of this stream are cut, in both directions.
    #[must_use]
    pub fn chunking(mut self, plan: Chunking) -> Self {
        self.chunking = plan;
        self
    }

    #[must_use]
    pub fn end_of_stream(mut self, end: EndOfStream) -> Self {
        self.end_of_stream = end;
        self
    }

    /// A property of this stream, and of its attempts. Numbers are eight little-endian bytes.
    pub fn property(&self, path: &[&str], value: impl AsRef<[u8]>) {
        self.insert_property(path, Property::Value(value.as_ref().to_vec()));
    }

    /// A property whose reading fails with `SerializationFailure`.
    pub fn unserializable_property(&self, path: &[&str]) {
        self.insert_property(path, Property::Unserializable);
    }

    fn insert_property(&self, path: &[&str], property: Property) {
        with(|state| state.stream_mut(self.id).properties.insert(join(path), property));
    }

    /// A whole request; one without a body ends with its head. Returns what the next hop has got of it.
    pub fn request(&mut self, head: impl Into<Headers>, body: &[u8]) -> Message {
        self.request_head(head, body.is_empty());
        if !body.is_empty() {
            self.frames(Direction::Request, body, true);
        }
        self.forwarded()
    }

    pub fn request_head(&mut self, head: impl Into<Headers>, end: bool) {
        drive::head_arrives(self.id, Direction::Request, Some(head.into()), end);
    }

    /// One frame of the request's body, uncut.
    pub fn request_data(&mut self, chunk: &[u8], end: bool) {
        drive::data_arrives(self.id, Direction::Request, chunk, end);
    }

    /// Sends through this attempt what the downstream side has forwarded: the shared head as earlier attempts
    /// left it, and the router's own copy of the downstream body. Both are measured.
    ///
    /// # Panics
    /// On a downstream stream, and while the downstream side holds the request.
    pub fn replay(&mut self) -> Message {
        let parent = with(|state| state.stream(self.id).parent).expect("only an attempt has a request to replay");
        let request = with(|state| state.stream(parent).request.out.clone());
        assert!(request.head.is_some(), "the downstream filter has not let the request go");
        let bodiless = request.ended && request.body.is_empty();
        drive::head_arrives(self.id, Direction::Request, None, bodiless);
        if !bodiless {
            self.frames(Direction::Request, &request.body, request.ended);
        }
        self.forwarded()
    }

    /// A whole answer, if `end`, or its head and first bytes. An ended answer without a body ends in an empty
    /// frame or with its head, as [`Stream::end_of_stream`] says. Returns what the next hop has got of it.
    pub fn response(&mut self, head: impl Into<Headers>, body: &[u8], end: bool) -> Message {
        let bodiless = end && body.is_empty() && self.end_of_stream == EndOfStream::WithLastChunk;
        self.response_head(head, bodiless);
        if !bodiless {
            self.response_body(body, end);
        }
        self.answer()
    }

    /// # Panics
    /// If the filter still holds the request: no upstream answers what it has not got.
    pub fn response_head(&mut self, head: impl Into<Headers>, end: bool) {
        let (gone, held) = with(|state| {
            let stream = state.stream(self.id);
            (stream.upstream_gone || state.is_over(self.id), stream.request.head != Head::Released)
        });
        if !gone {
            assert!(!held, "the upstream answers a request whose head the filter still holds");
            drive::head_arrives(self.id, Direction::Response, Some(head.into()), end);
        }
    }

    /// More of the answer, cut by the plan, and its end if `end`.
    pub fn response_body(&mut self, body: &[u8], end: bool) {
        if !with(|state| state.stream(self.id).upstream_gone) {
            self.frames(Direction::Response, body, end);
        }
    }

    /// One frame of the answer's body, uncut.
    pub fn response_data(&mut self, chunk: &[u8], end: bool) {
        if !with(|state| state.stream(self.id).upstream_gone) {
            drive::data_arrives(self.id, Direction::Response, chunk, end);
        }
    }

    /// The request ends in trailers instead of with its last frame.
    pub fn request_trailers(&mut self) {
        drive::trailers_arrive(self.id, Direction::Request);
    }

    /// The answer ends in trailers instead of with its last frame.
    pub fn response_trailers(&mut self) {
        if !with(|state| state.stream(self.id).upstream_gone) {
            drive::trailers_arrive(self.id, Direction::Response);
        }
    }

    fn frames(&self, direction: Direction, body: &[u8], end: bool) {
        if end {
            for (chunk, end) in frames(body, &self.chunking, self.end_of_stream) {
                drive::data_arrives(self.id, direction, chunk, end);
            }
        } else {
            for chunk in self.chunking.split(body) {
                drive::data_arrives(self.id, direction, chunk, false);
            }
        }
    }

    /// The router hands the downstream side what `attempt` has let go of its answer since the last time.
    pub fn deliver(&mut self, attempt: &Stream) -> Message {
        let (now, before) = with(|state| {
            let stream = state.stream_mut(attempt.id);
            let now = stream.response.out.clone();
            (now.clone(), std::mem::replace(&mut stream.delivered, now))
        });
        let news = now.body.get(before.body.len()..).unwrap_or_default();
        let ends = now.ended && !before.ended;
        if let (Some(head), None) = (now.head, before.head) {
            self.response_head(head, false);
        }
        if !news.is_empty() || ends {
            self.response_body(news, ends);
        }
        self.answer()
    }

    /// What the next hop has got of the request: the upstream, or for an attempt the provider.
    #[must_use]
    pub fn forwarded(&self) -> Message {
        with(|state| state.stream(self.id).request.out.clone())
    }

    /// What the next hop has got of the answer: the client, or for an attempt the router.
    #[must_use]
    pub fn answer(&self) -> Message {
        with(|state| state.stream(self.id).response.out.clone())
    }

    /// The local reply that this filter sent, as Envoy builds it.
    #[must_use]
    pub fn local_reply(&self) -> Option<Message> {
        with(|state| state.stream(self.id).local_reply.clone())
    }

    /// What the filter set with `set_property(key)`, readable also after the end.
    #[must_use]
    pub fn filter_state(&self, key: &str) -> Option<Vec<u8>> {
        with(|state| state.filter_state(self.id, &format!("{FILTER_STATE_PREFIX}{key}")))
    }

    /// The upstream cuts its answer off. Measured: the client's stream is cut too, and the filter gets no body
    /// callback in which to say something.
    pub fn upstream_cut(&mut self) {
        self.cut();
    }

    /// The client leaves, or for an attempt: the router gives it up.
    pub fn client_leaves(&mut self) {
        self.cut();
    }

    fn cut(&mut self) {
        with(|state| {
            if !state.is_over(self.id) {
                state.stream_mut(self.id).response.out.cut = true;
            }
        });
        drive::end(self.id);
    }

    /// The stream's end: `on_log` (not for an attempt), `on_done`, and the context is gone.
    ///
    /// # Panics
    /// If the answer is neither whole nor cut: the client still waits. If a message's `content-length` is not its
    /// body's length: measured, HTTP/1 truncates such a request and spills such an answer into the next one.
    pub fn finish(&mut self) {
        let (request, answer) = (self.forwarded(), self.answer());
        assert!(with(|state| state.is_over(self.id)), "the answer is not whole, the client still waits: {answer:?}");
        drive::end(self.id);
        for (name, message) in [("request", request), ("answer", answer)] {
            if let Some(fault) = message.framing_fault() {
                panic!("the {name}'s {fault}");
            }
        }
    }
}
