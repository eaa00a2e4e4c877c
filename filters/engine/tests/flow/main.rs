//! The flow as a pure step function: a host that answers for Envoy, provider, guard and sidecar, and what must hold
//! whatever they do and in whatever order.

// The host and the generators are part of the tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attempts;
mod cache;
mod guards;
mod host;
mod interleavings;
mod passages;
mod provider;
mod refusals;
mod total;
mod world;
