//! Envoy's gRPC access log service: the second source of the access log's lines, for a sidecar that does not share a
//! disk with Envoy.
//!
//! Best effort: the protocol has no acknowledgement, and Envoy drops what it cannot send without a word. Where losing
//! nothing matters, the file is the source. Lines that both bring count once, by their record's id.

pub mod arrivals;
mod proto;
pub mod server;
