//! HTTP calls that a filter makes on the side.

use std::time::Duration;

use proxy_wasm::types::Status;

use crate::guest;
use crate::headers::Headers;
use crate::state::{self, State, with};

/// A call that waits for its answer.
#[derive(Clone, Debug)]
pub struct Callout {
    pub token: u32,
    pub cluster: String,
    pub headers: Headers,
    pub body: Vec<u8>,
    /// `None` where the filter set no limit (zero milliseconds).
    pub timeout: Option<Duration>,
    pub(crate) context: u32,
}

/// What a filter may read inside the callback of an answer. A call that was reset has none of it.
pub(crate) struct CallResponse {
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

impl State {
    /// # Errors
    /// `BadArgument` for an unknown cluster, and without `:method`, `:path` or `:authority`, as measured.
    pub(crate) fn call(
        &mut self,
        cluster: String,
        headers: Headers,
        body: Vec<u8>,
        timeout_millis: u32,
    ) -> Result<u32, Status> {
        let complete = [":method", ":path", ":authority"].iter().all(|name| headers.get_bytes(name).is_some());
        if !complete || !self.clusters.contains(&cluster) {
            return Err(Status::BadArgument);
        }
        let context = self.effective_context();
        let token = state::next_id();
        let timeout = (timeout_millis > 0).then(|| Duration::from_millis(u64::from(timeout_millis)));
        self.callouts.insert(token, Callout { token, cluster, headers, body, timeout, context });
        Ok(token)
    }
}

/// Hands an answer to whoever asked. As measured, the answer to a stream that is gone is dropped without a word.
pub(crate) fn answer(token: u32, response: Option<CallResponse>) {
    let callout = with(|state| state.callouts.remove(&token))
        .unwrap_or_else(|| panic!("callout {token} waits for no answer: it was answered before"));
    if with(|state| state.is_over(callout.context)) {
        return;
    }
    let (headers, body) = response.as_ref().map_or((0, 0), |response| (response.headers.len(), response.body.len()));
    with(|state| state.call_response = response);
    guest::http_call_response(callout.context, token, headers, body);
}
