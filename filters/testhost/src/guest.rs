//! Calls into the filter: the exports of the SDK, and of `proxy_wasm::main!`.

use proxy_wasm::types::Action;

use crate::drive;
use crate::state::{Direction, with};

unsafe extern "C" {
    // Defined by `proxy_wasm::main!` in the crate under test, or in the test itself.
    safe fn _initialize();
    // Defined by the proxy-wasm crate.
    safe fn proxy_on_context_create(context_id: u32, root_context_id: u32);
    safe fn proxy_on_vm_start(context_id: u32, vm_configuration_size: usize) -> bool;
    safe fn proxy_on_configure(context_id: u32, plugin_configuration_size: usize) -> bool;
    safe fn proxy_on_tick(context_id: u32);
    safe fn proxy_on_request_headers(context_id: u32, num_headers: usize, end_of_stream: bool) -> Action;
    safe fn proxy_on_request_body(context_id: u32, body_size: usize, end_of_stream: bool) -> Action;
    safe fn proxy_on_response_headers(context_id: u32, num_headers: usize, end_of_stream: bool) -> Action;
    safe fn proxy_on_response_body(context_id: u32, body_size: usize, end_of_stream: bool) -> Action;
    safe fn proxy_on_request_trailers(context_id: u32, num_trailers: usize) -> Action;
    safe fn proxy_on_response_trailers(context_id: u32, num_trailers: usize) -> Action;
    safe fn proxy_on_http_call_response(
        context_id: u32,
        token_id: u32,
        num_headers: usize,
        body_size: usize,
        num_trailers: usize,
    );
    safe fn proxy_on_log(context_id: u32);
    safe fn proxy_on_done(context_id: u32) -> bool;
    safe fn proxy_on_delete(context_id: u32);
}

/// Makes `context` the current one and, when the filter has returned, does what its calls put off. Envoy defers
/// resuming, local replies and resets to that moment, *before* it looks at the returned action: a filter that
/// resumes inside a phase callback and then says Pause stays paused.
///
/// Returns whether a local reply stopped the iteration, whatever action the filter returned.
fn enter<R>(context: u32, call: impl FnOnce() -> R) -> (R, bool) {
    let outer = with(|state| {
        let outer = (state.current, state.effective);
        (state.current, state.effective, state.iteration_stopped) = (context, 0, false);
        outer
    });
    let result = call();
    let stopped = with(|state| {
        (state.current, state.effective) = outer;
        std::mem::take(&mut state.iteration_stopped)
    });
    while let Some(deferred) = with(|state| state.deferred.pop_front()) {
        drive::perform(deferred);
    }
    (result, stopped)
}

pub(crate) fn initialize() {
    _initialize();
}

pub(crate) fn context_create(context: u32, root: u32) {
    enter(context, || proxy_on_context_create(context, root));
}

pub(crate) fn vm_start(root: u32, size: usize) -> bool {
    enter(root, || proxy_on_vm_start(root, size)).0
}

pub(crate) fn configure(root: u32, size: usize) -> bool {
    enter(root, || proxy_on_configure(root, size)).0
}

pub(crate) fn tick(root: u32) {
    enter(root, || proxy_on_tick(root));
}

/// `None` where a local reply stopped the iteration.
pub(crate) fn headers(context: u32, direction: Direction, count: usize, end: bool) -> Option<Action> {
    let (action, stopped) = enter(context, || match direction {
        Direction::Request => proxy_on_request_headers(context, count, end),
        Direction::Response => proxy_on_response_headers(context, count, end),
    });
    (!stopped).then_some(action)
}

/// `None` where a local reply stopped the iteration.
pub(crate) fn body(context: u32, direction: Direction, size: usize, end: bool) -> Option<Action> {
    let (action, stopped) = enter(context, || match direction {
        Direction::Request => proxy_on_request_body(context, size, end),
        Direction::Response => proxy_on_response_body(context, size, end),
    });
    (!stopped).then_some(action)
}

/// `None` where a local reply stopped the iteration.
pub(crate) fn trailers(context: u32, direction: Direction, count: usize) -> Option<Action> {
    let (action, stopped) = enter(context, || match direction {
        Direction::Request => proxy_on_request_trailers(context, count),
        Direction::Response => proxy_on_response_trailers(context, count),
    });
    (!stopped).then_some(action)
}

/// The answer is readable inside the callback only.
pub(crate) fn http_call_response(context: u32, token: u32, headers: usize, body: usize) {
    enter(context, || {
        proxy_on_http_call_response(context, token, headers, body, 0);
        with(|state| state.call_response = None);
    });
}

pub(crate) fn log(context: u32) {
    enter(context, || proxy_on_log(context));
}

pub(crate) fn done(context: u32) {
    enter(context, || proxy_on_done(context));
}

pub(crate) fn delete(context: u32) {
    enter(context, || proxy_on_delete(context));
}
