//! The handle on a thread's emulated Envoy.

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proxy_wasm::types::LogLevel;

use crate::abi;
use crate::callouts::{self, CallResponse, Callout};
use crate::guest;
use crate::headers::Headers;
use crate::properties::{Property, join};
use crate::state::{self, State, with};
use crate::vm::{self, Refused, Vm};

/// The SDK installs its logger and panic hook once per process, without a lock.
static STARTING: Mutex<()> = Mutex::new(());

/// Not `Send`: the emulated Envoy and the SDK's dispatcher belong to one thread.
pub(crate) type OneThread = PhantomData<*const ()>;

/// The emulated Envoy of this thread. Dropping it drops every context; a test may make one after the other.
#[must_use]
pub struct Host {
    one_thread: OneThread,
}

impl Host {
    /// An Envoy without clusters, configurations and properties, whose clock shows 2026-01-01T00:00:00Z.
    ///
    /// # Panics
    /// If another `Host` lives on this thread.
    #[expect(clippy::new_without_default, reason = "one per thread is no default value")]
    pub fn new() -> Self {
        abi::keep();
        let state = State { now_nanos: 1_767_225_600_000_000_000, ..State::default() };
        assert!(state::replace(Some(state)).is_none(), "another Host lives on this thread");
        Self { one_thread: PhantomData }
    }

    /// The configuration of the plugin `root_id`: JSON text, or what else its operator writes. `start_vm` makes a root
    /// context for each.
    pub fn configuration(self, root_id: &str, configuration: impl AsRef<[u8]>) -> Self {
        self.configure(root_id, configuration);
        self
    }

    /// The same between two starts: a configuration that an operator changes.
    pub fn configure(&self, root_id: &str, configuration: impl AsRef<[u8]>) {
        with(|state| state.configurations.insert(root_id.to_owned(), configuration.as_ref().to_vec()));
    }

    pub fn vm_configuration(self, json: &str) -> Self {
        with(|state| json.clone_into(&mut state.vm_configuration));
        self
    }

    /// A cluster that callouts may name. A call to any other fails with `BadArgument`.
    pub fn cluster(self, name: &str) -> Self {
        with(|state| state.clusters.insert(name.to_owned()));
        self
    }

    pub fn clock(self, now: SystemTime) -> Self {
        self.set_clock(now);
        self
    }

    /// # Panics
    /// For a time before 1970.
    pub fn set_clock(&self, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).expect("a time after 1970");
        with(|state| state.now_nanos = u64::try_from(since.as_nanos()).expect("a time before 2554"));
    }

    /// Moves the clock. Nothing happens by itself: timers and timeouts are the test's to fire.
    pub fn advance(&self, by: Duration) {
        with(|state| state.now_nanos += u64::try_from(by.as_nanos()).expect("less than 500 years"));
    }

    /// A property of every context, e.g. `&["node", "id"]`. Numbers are eight little-endian bytes.
    pub fn property(self, path: &[&str], value: impl AsRef<[u8]>) -> Self {
        with(|state| state.properties.insert(join(path), Property::Value(value.as_ref().to_vec())));
        self
    }

    /// A property whose reading fails with `SerializationFailure`: measured for `xds.upstream_host_metadata` of a
    /// host that has none.
    pub fn unserializable_property(self, path: &[&str]) -> Self {
        with(|state| state.properties.insert(join(path), Property::Unserializable));
        self
    }

    /// What the filter is told when it asks for Envoy's log level; `Info` at first.
    pub fn log_level(self, level: LogLevel) -> Self {
        with(|state| state.log_level = Some(level));
        self
    }

    /// Starts a VM: `_initialize`, then for each configured root its context, `on_vm_start` and `on_configure`.
    /// A second start makes root contexts of their own; shared data and metrics are common to all.
    ///
    /// # Errors
    /// [`Refused`] where the filter refuses its configuration. Why stands in [`Host::logs`].
    pub fn start_vm(&self) -> Result<Vm, Refused> {
        let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        // The SDK's hook would swallow the message of a failed assertion: the test's own hook comes back.
        let hook = std::panic::take_hook();
        let started = vm::start();
        std::panic::set_hook(hook);
        started
    }

    /// Calls that wait for an answer, oldest first.
    #[must_use]
    pub fn pending_callouts(&self) -> Vec<Callout> {
        with(|state| state.callouts.values().cloned().collect())
    }

    /// The one pending call to `cluster`.
    ///
    /// # Panics
    /// If none or several wait.
    #[must_use]
    pub fn pending_callout(&self, cluster: &str) -> Callout {
        let mut pending = self.pending_callouts();
        let all: Vec<_> = pending.iter().map(|callout| callout.cluster.clone()).collect();
        pending.retain(|callout| callout.cluster == cluster);
        assert_eq!(pending.len(), 1, "calls to {cluster} that wait; all that wait go to {all:?}");
        pending.remove(0)
    }

    /// Any HTTP answer, also 4xx and 5xx: Envoy makes no difference.
    pub fn answer(&self, callout: &Callout, status: u16, headers: impl Into<Headers>, body: &[u8]) {
        let mut all: Headers = [(":status", status.to_string())].into_iter().collect();
        for (name, value) in headers.into().iter() {
            all.add(name, value);
        }
        callouts::answer(callout.token, Some(CallResponse { headers: all, body: body.to_vec() }));
    }

    /// Measured: a connection reset after the answer's head is a callback without headers and body.
    pub fn answer_reset(&self, callout: &Callout) {
        callouts::answer(callout.token, None);
    }

    /// Measured: a timeout is an answer with `:status 504`.
    pub fn answer_timeout(&self, callout: &Callout) {
        self.answer(callout, 504, [], b"upstream request timeout");
    }

    /// Measured: a refused or closed connection is an answer with `:status 503`.
    pub fn answer_unreachable(&self, callout: &Callout) {
        self.answer(callout, 503, [], b"upstream connect error or disconnect/reset before headers");
    }

    /// Everything logged so far.
    #[must_use]
    pub fn logs(&self) -> Vec<(LogLevel, String)> {
        with(|state| state.logs.clone())
    }

    /// The value of a counter or gauge; zero for an unknown one.
    #[must_use]
    pub fn metric(&self, name: &str) -> u64 {
        with(|state| state.metrics.value(name))
    }

    /// The samples of a histogram, in order.
    #[must_use]
    pub fn histogram(&self, name: &str) -> Vec<u64> {
        with(|state| state.metrics.samples(name))
    }

    /// The names of all metrics, each a series that Envoy never frees.
    #[must_use]
    pub fn metric_names(&self) -> Vec<String> {
        with(|state| state.metrics.names())
    }

    #[must_use]
    pub fn shared_data(&self, key: &str) -> Option<Vec<u8>> {
        with(|state| state.shared_data.get(key).ok().map(|(value, _)| value))
    }

    /// All keys of the shared data: none of them is ever freed.
    #[must_use]
    pub fn shared_data_keys(&self) -> Vec<String> {
        with(|state| state.shared_data.keys())
    }

    /// # Panics
    /// Never: a write without compare-and-swap succeeds.
    pub fn set_shared_data(&self, key: &str, value: &[u8]) {
        with(|state| state.shared_data.set(key, value, 0)).expect("a write without cas");
    }

    /// Another worker writes to `key` between the filter's next read and write of it: that write's cas is stale.
    pub fn contend_shared_data(&self, key: &str, value: &[u8]) {
        with(|state| state.shared_data.contend(key, value));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // After a failed assertion the filter may be in any state: leave it alone.
        if !std::thread::panicking() {
            for context in with(|state| {
                let streams = state.streams.keys().copied().filter(|id| state.is_context(*id));
                streams.chain(state.roots.keys().copied()).collect::<Vec<_>>()
            }) {
                guest::delete(context);
            }
        }
        state::replace(None);
    }
}
