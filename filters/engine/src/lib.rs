//! Every decision of Parapet, pure: no proxy-wasm, no I/O, no clock, no logs. Events in, effects out.
//!
//! A rule of the product is found in the module named after it.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects))]

pub mod admission;
pub mod affinity;
pub mod answer;
pub mod bytes;
pub mod cache;
pub mod chat;
pub mod config;
pub mod conversation;
pub mod deadline;
mod digest;
pub mod flow;
pub mod guard;
pub mod hedge;
pub mod identity;
pub mod latency;
pub mod memory;
pub mod openai;
pub mod privacy;
pub mod provider;
pub mod quota;
pub mod reason;
pub mod record;
pub mod redact;
pub mod sse;
pub mod trace;
