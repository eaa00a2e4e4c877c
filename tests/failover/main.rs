//! vLLM first, OpenAI when vLLM is down, slow, full or lying about it; and what the client sees when nobody answers.
//!
//! `scripts/test e2e` sets what this needs: `ENVOY_BIN`, `PARAPET_WASM`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests fails by panicking, as a test does"
)]

#[path = "../support/mod.rs"]
mod support;

mod affinity;
mod bodies;
mod chain;
mod faults;
mod health;
mod midstream;
mod overload;
mod replicas;
mod soak;
