//! The shell of Parapet's filters: one Wasm module with two roots. It translates Envoy's callbacks to the engine's events
//! and the engine's effects to hostcalls, and decides nothing itself.
//!
//! `gateway` stands in the listener's filter chain, `provider` in the upstream chain of the providers' clusters.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::string_slice, clippy::arithmetic_side_effects))]

mod clock;
mod gateway;
mod host;
mod provider;
mod root;
mod shared;

use proxy_wasm::types::LogLevel;

mod start {
    use super::LogLevel;
    use super::root::Root;

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|id| Box::new(Root::new(id)));
    }}
}
