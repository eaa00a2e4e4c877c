//! Heads and bodies on their way through the filter, and what a filter does to the stream besides.

use proxy_wasm::types::Action;

use crate::guest;
use crate::headers::Headers;
use crate::leg::{Head, Message};
use crate::state::{Direction, State, with};

/// What Envoy does only after the callback has returned.
pub(crate) enum Deferred {
    Resume(u32, Direction),
    LocalReply(u32, Reply),
    Reset(u32),
}

pub(crate) struct Reply {
    pub(crate) head: Headers,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// Envoy adds the length, and a content type where the filter names none.
    pub(crate) fn new(status: u32, headers: Headers, body: &[u8]) -> Self {
        let mut head: Headers = [(":status", status.to_string())].into_iter().collect();
        for (name, value) in headers.iter() {
            head.add(name, value);
        }
        head.remove("content-length");
        if !body.is_empty() {
            head.add("content-length", body.len().to_string());
            if head.get_bytes("content-type").is_none() {
                head.add("content-type", "text/plain");
            }
        }
        Self { head, body: body.to_vec() }
    }

    fn message(&self) -> Message {
        Message { head: Some(self.head.clone()), body: self.body.clone(), ended: true, cut: false }
    }
}

impl State {
    /// What reaches the filter no more: anything after the stream's end, a request after a local reply.
    fn is_closed(&self, id: u32, direction: Direction) -> bool {
        self.is_over(id) || (direction == Direction::Request && self.stream(id).request_closed)
    }

    /// `None`: a local reply stopped the iteration; what was held goes nowhere.
    fn apply(&mut self, id: u32, direction: Direction, action: Option<Action>) {
        match action {
            _ if self.is_closed(id, direction) => {}
            None => {}
            Some(Action::Continue) => self.release(id, direction),
            Some(Action::Pause) => self.stream_mut(id).leg_mut(direction).pause(),
            Some(other) => panic!("the emulator does not model the action {other:?}"),
        }
    }

    pub(crate) fn release(&mut self, id: u32, direction: Direction) {
        let headers = self.headers(id, direction).clone();
        self.stream_mut(id).leg_mut(direction).release(&headers);
    }
}

/// A new head comes to the filter. An attempt's request head is the map that is there already.
pub(crate) fn head_arrives(id: u32, direction: Direction, head: Option<Headers>, end: bool) {
    let count = with(|state| {
        if state.is_closed(id, direction) {
            return None;
        }
        if let Some(head) = head {
            *state.headers_mut(id, direction) = head;
        }
        state.stream_mut(id).leg_mut(direction).head_arrives(end);
        Some(state.headers(id, direction).len())
    });
    if let Some(count) = count {
        let action = guest::headers(id, direction, count, end);
        with(|state| state.apply(id, direction, action));
    }
}

pub(crate) fn data_arrives(id: u32, direction: Direction, chunk: &[u8], end: bool) {
    let size = with(|state| {
        (!state.is_closed(id, direction)).then(|| state.stream_mut(id).leg_mut(direction).data_arrives(chunk, end))
    });
    if let Some(size) = size {
        let action = guest::body(id, direction, size, end);
        with(|state| state.apply(id, direction, action));
    }
}

/// A message ends in trailers: no body callback says so. Their content is not modelled; letting them go lets go of
/// everything that is held before them.
pub(crate) fn trailers_arrive(id: u32, direction: Direction) {
    let open = with(|state| {
        let open = !state.is_closed(id, direction);
        if open {
            state.stream_mut(id).leg_mut(direction).trailers_arrive();
        }
        open
    });
    if open {
        let action = guest::trailers(id, direction, 1);
        with(|state| state.apply(id, direction, action));
    }
}

pub(crate) fn perform(deferred: Deferred) {
    match deferred {
        // Measured: everything buffered goes out, and the filter's body callback is not called for it. The buffer stays
        // the filter's: what it writes then goes out when it resumes again, although nothing is stopped any more.
        Deferred::Resume(id, direction) => with(|state| {
            let closed = state.is_closed(id, direction);
            let leg = state.stream_mut(id).leg_mut(direction);
            leg.resuming = false;
            let open = leg.buffer_open;
            if !closed && (leg.paused || (open && !leg.buffer.is_empty())) {
                state.release(id, direction);
                state.stream_mut(id).leg_mut(direction).buffer_open = open;
            }
        }),
        Deferred::LocalReply(id, reply) => local_reply(id, &reply),
        Deferred::Reset(id) => with(|state| {
            // Measured: a reset in an upstream filter ends the downstream stream, without a retry.
            let downstream = state.downstream_of(id);
            for id in [id, downstream] {
                if !state.is_over(id) {
                    state.stream_mut(id).response.out.cut = true;
                }
            }
        }),
    }
}

fn local_reply(id: u32, reply: &Reply) {
    let (over, parent) = with(|state| (state.is_over(id), state.stream(id).parent));
    if over {
        return;
    }
    with(|state| {
        let stream = state.stream_mut(id);
        stream.local_reply = Some(reply.message());
        stream.request_closed = true;
        stream.upstream_gone = true;
    });
    if let Some(parent) = parent {
        // Measured: an upstream filter's reply goes straight to the downstream side, and is not retried.
        with(|state| state.stream_mut(id).response.out.cut = true);
        local_reply(parent, reply);
        return;
    }
    let (unfiltered, head, sent) = with(|state| {
        let stream = state.stream(id);
        (stream.root == 0, stream.response.head, stream.response.out.head.is_some())
    });
    if sent {
        // Measured: once the head is out nothing can be replaced; the stream is reset.
        with(|state| state.stream_mut(id).response.out.cut = true);
    } else if head == Head::Awaited && !unfiltered {
        // Measured: a reply of the request phase comes back through the same filter's response callbacks.
        head_arrives(id, Direction::Response, Some(reply.head.clone()), reply.body.is_empty());
        if !reply.body.is_empty() {
            data_arrives(id, Direction::Response, &reply.body, true);
        }
    } else {
        // Measured: a reply of the response phase takes the answer's place and does not come back.
        with(|state| {
            let leg = &mut state.stream_mut(id).response;
            leg.headers = reply.head.clone();
            leg.head = Head::Released;
            leg.buffer.clear();
            leg.buffer_open = false;
            leg.out = reply.message();
        });
    }
}

/// The stream's end, in the measured order: `on_log`, then `on_done`; then the context goes. An upstream filter
/// gets no `on_log`.
pub(crate) fn end(id: u32) {
    let (downstream, alive) = with(|state| (state.stream(id).parent.is_none(), state.is_context(id)));
    if downstream && alive {
        with(|state| state.stream_mut(id).logging = true);
        guest::log(id);
        with(|state| state.stream_mut(id).logging = false);
    }
    if downstream {
        let attempts: Vec<u32> = with(|state| {
            let attempts = state.streams.iter().filter(|(_, stream)| stream.parent == Some(id));
            attempts.map(|(attempt, _)| *attempt).collect()
        });
        for attempt in attempts {
            end(attempt);
        }
    }
    if alive {
        guest::done(id);
        guest::delete(id);
        with(|state| state.stream_mut(id).deleted = true);
    }
}
