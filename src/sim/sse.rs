//! Bodies sent step by step: paced events, silence, a cut.

use std::{io, time::Duration};

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::{faults::Behaviour, server::Call};

pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
const KEEP_ALIVE_EVERY: Duration = Duration::from_millis(50);
const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";

/// Marks an answer whose body outlives the handler.
#[derive(Clone)]
pub(super) struct Streaming;

pub(super) enum Step {
    /// Counted from the step before, not from when it was carried out: a late timer does not slow the whole stream.
    Wait(Duration),
    Send(Bytes),
    /// Breaks the connection.
    Abort,
    /// Nothing more, ever.
    Hang,
}

pub(super) fn event(json: &Value) -> Step {
    Step::Send(Bytes::from(format!("data: {json}\n\n")))
}

pub(super) fn done() -> Step {
    Step::Send(Bytes::from_static(DONE))
}

pub(super) fn silence() -> impl Iterator<Item = Step> + Send {
    std::iter::once(Step::Hang)
}

pub(super) fn keep_alives() -> impl Iterator<Item = Step> + Send {
    std::iter::repeat_with(|| [Step::Send(Bytes::from_static(KEEP_ALIVE)), Step::Wait(KEEP_ALIVE_EVERY)]).flatten()
}

/// Headers at once, then the steps. `held` lives as long as the stream.
pub(super) fn respond<H: Send + 'static>(
    call: &Call,
    steps: impl Iterator<Item = Step> + Send + 'static,
    held: H,
) -> Response {
    streamed(call, EVENT_STREAM, steps, held)
}

/// A JSON answer as faults shape it.
pub(super) fn respond_json(call: &Call, status: StatusCode, body: &Value) -> Response {
    let json = "application/json";
    let text = body.to_string();
    let half = || Bytes::copy_from_slice(text.as_bytes().get(..text.len() / 2).unwrap_or_default());
    // The pause lets the first half leave before the connection breaks.
    let halved = |last: Step| [Step::Send(half()), Step::Wait(Duration::from_millis(5)), last].into_iter();
    match call.fault.behaviour {
        Behaviour::HangAfterHeaders => streamed(call, json, silence(), ()),
        Behaviour::KeepaliveOnly => streamed(call, EVENT_STREAM, keep_alives(), ()),
        Behaviour::ErrorEventFirst | Behaviour::ErrorEventAfter(_) => {
            call.kind.error(StatusCode::INTERNAL_SERVER_ERROR)
        }
        Behaviour::CutAfter(_) => streamed(call, json, halved(Step::Abort), ()),
        Behaviour::NoFinishAfter(_) => streamed(call, json, halved(Step::Send(Bytes::new())), ()),
        Behaviour::Malformed => (status, [(header::CONTENT_TYPE, json)], half()).into_response(),
        _ => (status, [(header::CONTENT_TYPE, json)], text).into_response(),
    }
}

fn streamed<H: Send + 'static>(
    call: &Call,
    content_type: &'static str,
    steps: impl Iterator<Item = Step> + Send + 'static,
    held: H,
) -> Response {
    let ticket = std::sync::Arc::clone(&call.ticket);
    let start = (Box::new(steps), Instant::now(), ticket, held);
    let body = stream::unfold(start, |(mut steps, mut due, ticket, held)| async move {
        loop {
            let frame = match steps.next() {
                Some(Step::Wait(wait)) => {
                    due += wait;
                    if !wait.is_zero() {
                        sleep_until(due).await;
                    }
                    continue;
                }
                Some(Step::Hang) => std::future::pending().await,
                Some(Step::Send(bytes)) if bytes.is_empty() => continue,
                Some(Step::Send(bytes)) => Ok(bytes),
                Some(Step::Abort) => {
                    ticket.finish();
                    Err(io::Error::from(io::ErrorKind::ConnectionAborted))
                }
                None => {
                    ticket.finish();
                    return None;
                }
            };
            return Some((frame, (steps, due, ticket, held)));
        }
    });
    let mut response = ([(header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response();
    response.extensions_mut().insert(Streaming);
    response
}
