//! What the emulated Envoy knows: one per thread.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proxy_wasm::types::{BufferType, LogLevel, MapType, Status};

use crate::buffers;
use crate::callouts::{CallResponse, Callout};
use crate::drive::Deferred;
use crate::headers::Headers;
use crate::leg::{Head, Leg, Message};
use crate::metrics::Metrics;
use crate::properties::Property;
use crate::shared_data::SharedData;

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
    static LAST_ID: Cell<u32> = const { Cell::new(0) };
}

/// Ids of contexts and callouts. Never used twice on a thread: the SDK's dispatcher outlives a `Host` and takes a
/// known id for a duplicate.
pub(crate) fn next_id() -> u32 {
    LAST_ID.with(|last| {
        last.set(last.get() + 1);
        last.get()
    })
}

/// Never held across a call into the filter, which calls back.
pub(crate) fn with<R>(use_state: impl FnOnce(&mut State) -> R) -> R {
    try_with(use_state).unwrap_or_else(|| panic!("a host call on a thread without a Host"))
}

/// `None` on a thread without a `Host`, and while the state is in use (a panic's message on its way to the log).
pub(crate) fn try_with<R>(use_state: impl FnOnce(&mut State) -> R) -> Option<R> {
    STATE.with(|state| state.try_borrow_mut().ok().and_then(|mut state| state.as_mut().map(use_state)))
}

pub(crate) fn replace(new: Option<State>) -> Option<State> {
    STATE.with(|state| state.replace(new))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Request,
    Response,
}

#[derive(Default)]
pub(crate) struct StreamState {
    /// The root context's id; zero for a downstream side that no filter of this test sits on.
    pub(crate) root: u32,
    /// The downstream stream that this is an attempt of.
    pub(crate) parent: Option<u32>,
    pub(crate) request: Leg,
    pub(crate) response: Leg,
    /// A local reply was sent: what the peers still send reaches the filter no more.
    pub(crate) request_closed: bool,
    pub(crate) upstream_gone: bool,
    /// Inside `on_log`, where both heads are readable.
    pub(crate) logging: bool,
    pub(crate) deleted: bool,
    pub(crate) local_reply: Option<Message>,
    pub(crate) filter_state: BTreeMap<String, Vec<u8>>,
    pub(crate) properties: BTreeMap<String, Property>,
    /// How much of an attempt's answer the router has handed to the downstream side.
    pub(crate) delivered: Message,
}

impl StreamState {
    pub(crate) fn leg(&self, direction: Direction) -> &Leg {
        match direction {
            Direction::Request => &self.request,
            Direction::Response => &self.response,
        }
    }

    pub(crate) fn leg_mut(&mut self, direction: Direction) -> &mut Leg {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        }
    }

    /// A head is out of sight once it was let go, and the request's in the response phase in any case: measured,
    /// reading it there gave an empty map, and a status that makes the SDK panic.
    pub(crate) fn head_visible(&self, direction: Direction) -> bool {
        match direction {
            Direction::Request => self.request.head_visible() && self.response.head == Head::Awaited,
            Direction::Response => self.response.head_visible(),
        }
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) configurations: BTreeMap<String, Vec<u8>>,
    pub(crate) vm_configuration: String,
    pub(crate) clusters: BTreeSet<String>,
    pub(crate) now_nanos: u64,
    pub(crate) log_level: Option<LogLevel>,
    pub(crate) logs: Vec<(LogLevel, String)>,
    pub(crate) properties: BTreeMap<String, Property>,
    pub(crate) metrics: Metrics,
    pub(crate) shared_data: SharedData,
    /// Root contexts by id: their root ids.
    pub(crate) roots: BTreeMap<u32, String>,
    pub(crate) tick_periods: BTreeMap<u32, Duration>,
    /// Streams by context id; kept after their end, to be read.
    pub(crate) streams: BTreeMap<u32, StreamState>,
    pub(crate) callouts: BTreeMap<u32, Callout>,
    pub(crate) call_response: Option<CallResponse>,
    /// The plugin configuration, readable while a root is created or configured.
    pub(crate) configuring: Option<Vec<u8>>,
    pub(crate) current: u32,
    pub(crate) effective: u32,
    pub(crate) iteration_stopped: bool,
    pub(crate) deferred: VecDeque<Deferred>,
}

impl State {
    pub(crate) fn stream(&self, id: u32) -> &StreamState {
        self.streams.get(&id).unwrap_or_else(|| panic!("context {id} is no HTTP stream"))
    }

    pub(crate) fn stream_mut(&mut self, id: u32) -> &mut StreamState {
        self.streams.get_mut(&id).unwrap_or_else(|| panic!("context {id} is no HTTP stream"))
    }

    /// The context that a host call acts on. The SDK sets an effective one before it delivers a callout's answer.
    pub(crate) fn effective_context(&self) -> u32 {
        let context = if self.is_context(self.effective) { self.effective } else { self.current };
        assert_ne!(context, 0, "a host call outside of every callback");
        context
    }

    pub(crate) fn is_context(&self, id: u32) -> bool {
        self.roots.contains_key(&id) || self.streams.get(&id).is_some_and(|stream| stream.root != 0 && !stream.deleted)
    }

    pub(crate) fn downstream_of(&self, id: u32) -> u32 {
        self.stream(id).parent.unwrap_or(id)
    }

    /// Measured: the request header map is one map, shared by the downstream side and all its attempts.
    pub(crate) fn headers_mut(&mut self, id: u32, direction: Direction) -> &mut Headers {
        let owner = if direction == Direction::Request { self.downstream_of(id) } else { id };
        &mut self.stream_mut(owner).leg_mut(direction).headers
    }

    pub(crate) fn headers(&self, id: u32, direction: Direction) -> &Headers {
        let owner = if direction == Direction::Request { self.downstream_of(id) } else { id };
        &self.stream(owner).leg(direction).headers
    }

    /// The answer is complete or the stream was reset, on this side or downstream: Envoy has dropped it.
    pub(crate) fn is_over(&self, id: u32) -> bool {
        let Some(stream) = self.streams.get(&id) else { return !self.roots.contains_key(&id) };
        let over = stream.deleted || stream.response.out.ended || stream.response.out.cut;
        over || stream.parent.is_some_and(|parent| self.is_over(parent))
    }

    /// A map that the present callback may read.
    pub(crate) fn readable_map(&self, map: MapType) -> Result<&Headers, Status> {
        let context = self.effective_context();
        let direction = match map {
            MapType::HttpRequestHeaders => Direction::Request,
            MapType::HttpResponseHeaders => Direction::Response,
            MapType::HttpCallResponseHeaders => {
                return self.call_response.as_ref().map(|response| &response.headers).ok_or(Status::BadArgument);
            }
            MapType::HttpRequestTrailers | MapType::HttpResponseTrailers | MapType::HttpCallResponseTrailers => {
                return Err(Status::BadArgument);
            }
            other => panic!("the emulator does not model the map {other:?}"),
        };
        let Some(stream) = self.streams.get(&context) else { return Err(Status::BadArgument) };
        if stream.logging {
            let headers = self.headers(context, direction);
            return if headers.is_empty() { Err(Status::NotFound) } else { Ok(headers) };
        }
        if stream.head_visible(direction) { Ok(self.headers(context, direction)) } else { Err(Status::BadArgument) }
    }

    /// Only a head that is still held can be edited.
    pub(crate) fn writable_map(&mut self, map: MapType) -> Result<&mut Headers, Status> {
        let context = self.effective_context();
        let direction = match map {
            MapType::HttpRequestHeaders => Direction::Request,
            MapType::HttpResponseHeaders => Direction::Response,
            _ => return Err(Status::BadArgument),
        };
        match self.streams.get(&context) {
            Some(stream) if stream.head_visible(direction) && !stream.logging => {
                Ok(self.headers_mut(context, direction))
            }
            _ => Err(Status::BadArgument),
        }
    }

    /// `Ok` and empty where there is no body to read, as in Envoy.
    pub(crate) fn read_buffer(&self, buffer: BufferType, start: usize, max_size: usize) -> Result<Vec<u8>, Status> {
        let bytes: &[u8] = match buffer {
            BufferType::HttpRequestBody => self.open_body(Direction::Request),
            BufferType::HttpResponseBody => self.open_body(Direction::Response),
            BufferType::HttpCallResponseBody => &self.call_response.as_ref().ok_or(Status::NotFound)?.body,
            BufferType::VmConfiguration => self.vm_configuration.as_bytes(),
            BufferType::PluginConfiguration => self.configuring.as_ref().ok_or(Status::NotFound)?,
            other => panic!("the emulator does not model the buffer {other:?}"),
        };
        buffers::read(bytes, start, max_size)
    }

    fn open_body(&self, direction: Direction) -> &[u8] {
        match self.streams.get(&self.effective_context()).map(|stream| stream.leg(direction)) {
            Some(leg) if leg.buffer_open => &leg.buffer,
            _ => &[],
        }
    }

    /// # Errors
    /// `BadArgument` where no body is the filter's: before its first chunk, and after it was let go.
    pub(crate) fn write_buffer(
        &mut self,
        buffer: BufferType,
        start: usize,
        size: usize,
        data: &[u8],
    ) -> Result<(), Status> {
        let context = self.effective_context();
        let direction = match buffer {
            BufferType::HttpRequestBody => Direction::Request,
            BufferType::HttpResponseBody => Direction::Response,
            _ => return Err(Status::BadArgument),
        };
        match self.streams.get_mut(&context).map(|stream| stream.leg_mut(direction)) {
            Some(leg) if leg.buffer_open => buffers::write(&mut leg.buffer, start, size, data),
            _ => Err(Status::BadArgument),
        }
    }
}
