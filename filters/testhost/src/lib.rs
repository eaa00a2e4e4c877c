//! Envoy's side of the proxy-wasm ABI 0.2.1, emulated natively: `cargo test` on the host drives a real filter
//! through the SDK's own exports (`proxy_on_request_headers`, …), with no Wasm runtime and no Envoy.
//!
//! The emulator *answers* as Envoy 1.40 was measured to answer; it scripts no expected calls. A host call that it
//! does not model ends the test process with the call's name. A panic inside a filter ends the process too, as a
//! trap ends a VM: the ABI's functions cannot unwind.
//!
//! Everything lives on the calling thread, as the SDK's dispatcher does, so tests run in parallel.
//!
//! ```ignore
//! use parapet_testhost::Host;
//! use parapet_wasm as _; // brings the filter's `_initialize` into the test binary
//!
//! let host = Host::new().configuration("gateway", "{}").cluster("guard");
//! let vm = host.start_vm().expect("the configuration is accepted");
//! let mut stream = vm.stream("gateway");
//! stream.request([(":method", "POST"), (":path", "/chat")], br#"{"message":"hi"}"#);
//! host.answer(&host.pending_callout("guard"), 200, [], b"{}");
//! assert!(stream.forwarded().ended);
//! stream.response([(":status", "200")], b"{}", true);
//! assert_eq!(stream.answer().status(), Some(200));
//! stream.finish();
//! assert!(stream.filter_state("parapet.record").is_some());
//! ```

// The one crate of the workspace that may: it defines and calls functions of a C ABI that pass raw pointers.
#![allow(unsafe_code)]
// A test tool: a wrong use of it, or of the ABI, must stop the test at once and say why.
#![allow(clippy::panic, clippy::expect_used)]

mod abi;
mod buffers;
mod callouts;
mod chunking;
mod drive;
mod guest;
mod headers;
mod host;
mod leg;
mod metrics;
mod properties;
mod shared_data;
mod state;
mod stream;
mod vm;

pub use callouts::Callout;
pub use chunking::{Chunking, EndOfStream};
pub use headers::Headers;
pub use host::Host;
pub use leg::Message;
pub use proxy_wasm::types::LogLevel;
pub use stream::Stream;
pub use vm::{Refused, Vm};
