//! What README.md and docs/ say, against the code and against a real stack.
//!
//! `scripts/test e2e` sets what this needs: `PARAPET_BIN`, `PARAPET_WASM`, `ENVOY_BIN`; and `curl` on the PATH.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper of tests fails by panicking, as a test does")]

mod commands;
mod configuration;
mod errors;
mod page;
mod record;
mod tables;
