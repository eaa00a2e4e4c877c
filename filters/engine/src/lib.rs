//! Every decision of Parapet, pure: no proxy-wasm, no I/O, no clock, no logs. Events in, effects out.
//!
//! A rule of the product is found in the module named after it.
#![forbid(unsafe_code)]

pub mod cache;
pub mod record;
