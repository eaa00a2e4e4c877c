//! Buffers, header maps, the stream's fate, callouts.

use proxy_wasm::types::{BufferType, MapType, Status, StreamType};

use super::{bytes, give, put, status, text};
use crate::drive::{Deferred, Reply};
use crate::headers::Headers;
use crate::state::{Direction, with};

pub(super) const TABLE: &[*const ()] = &[
    proxy_get_buffer_bytes as *const (),
    proxy_set_buffer_bytes as *const (),
    proxy_get_header_map_pairs as *const (),
    proxy_set_header_map_pairs as *const (),
    proxy_get_header_map_value as *const (),
    proxy_remove_header_map_value as *const (),
    proxy_replace_header_map_value as *const (),
    proxy_add_header_map_value as *const (),
    proxy_continue_stream as *const (),
    proxy_close_stream as *const (),
    proxy_send_local_response as *const (),
    proxy_http_call as *const (),
    proxy_set_effective_context as *const (),
];

// SAFETY, for every function of this file: the SDK passes pointers to its own live values, with their lengths.

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_get_buffer_bytes(
    buffer_type: BufferType,
    start: usize,
    max_size: usize,
    return_buffer_data: *mut *mut u8,
    return_buffer_size: *mut usize,
) -> Status {
    let value = with(|state| state.read_buffer(buffer_type, start, max_size));
    unsafe { give(value, return_buffer_data, return_buffer_size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_set_buffer_bytes(
    buffer_type: BufferType,
    start: usize,
    size: usize,
    buffer_data: *const u8,
    buffer_size: usize,
) -> Status {
    let data = unsafe { bytes(buffer_data, buffer_size) };
    status(with(|state| state.write_buffer(buffer_type, start, size, data)))
}

/// A map that is not there reads as an empty one.
#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_get_header_map_pairs(
    map_type: MapType,
    return_map_data: *mut *mut u8,
    return_map_size: *mut usize,
) -> Status {
    let encode = |headers: &Headers| if headers.is_empty() { Vec::new() } else { headers.encode() };
    let value = with(|state| state.readable_map(map_type).map(encode).unwrap_or_default());
    unsafe { give(Ok(value), return_map_data, return_map_size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_set_header_map_pairs(map_type: MapType, map_data: *const u8, map_size: usize) -> Status {
    let headers = Headers::decode(unsafe { bytes(map_data, map_size) });
    status(with(|state| state.writable_map(map_type).map(|map| *map = headers)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_get_header_map_value(
    map_type: MapType,
    key_data: *const u8,
    key_size: usize,
    return_value_data: *mut *mut u8,
    return_value_size: *mut usize,
) -> Status {
    let key = unsafe { text(key_data, key_size) };
    let value = with(|state| {
        let map = state.readable_map(map_type)?;
        map.get_bytes(&key).map(<[u8]>::to_vec).ok_or(Status::NotFound)
    });
    unsafe { give(value, return_value_data, return_value_size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_remove_header_map_value(map_type: MapType, key_data: *const u8, key_size: usize) -> Status {
    let key = unsafe { text(key_data, key_size) };
    status(with(|state| state.writable_map(map_type).map(|map| map.remove(&key))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_replace_header_map_value(
    map_type: MapType,
    key_data: *const u8,
    key_size: usize,
    value_data: *const u8,
    value_size: usize,
) -> Status {
    let (key, value) = unsafe { (text(key_data, key_size), bytes(value_data, value_size)) };
    status(with(|state| state.writable_map(map_type).map(|map| map.set(&key, value))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_add_header_map_value(
    map_type: MapType,
    key_data: *const u8,
    key_size: usize,
    value_data: *const u8,
    value_size: usize,
) -> Status {
    let (key, value) = unsafe { (text(key_data, key_size), bytes(value_data, value_size)) };
    status(with(|state| state.writable_map(map_type).map(|map| map.add(&key, value))))
}

fn direction(stream_type: StreamType) -> Direction {
    match stream_type {
        StreamType::HttpRequest => Direction::Request,
        StreamType::HttpResponse => Direction::Response,
        other => panic!("the emulator does not model the stream {other:?}"),
    }
}

/// Outside a stream this is Ok and does nothing, as in Envoy.
#[unsafe(no_mangle)]
extern "C" fn proxy_continue_stream(stream_type: StreamType) -> Status {
    let direction = direction(stream_type);
    with(|state| {
        let context = state.effective_context();
        if let Some(stream) = state.streams.get_mut(&context) {
            stream.leg_mut(direction).resuming = true;
            state.deferred.push_back(Deferred::Resume(context, direction));
        }
    });
    Status::Ok
}

#[unsafe(no_mangle)]
extern "C" fn proxy_close_stream(stream_type: StreamType) -> Status {
    direction(stream_type);
    with(|state| {
        let context = state.effective_context();
        if state.streams.contains_key(&context) {
            state.deferred.push_back(Deferred::Reset(context));
        }
    });
    Status::Ok
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_send_local_response(
    status_code: u32,
    _status_code_details_data: *const u8,
    _status_code_details_size: usize,
    body_data: *const u8,
    body_size: usize,
    headers_data: *const u8,
    headers_size: usize,
    grpc_status: i32,
) -> Status {
    assert_eq!(grpc_status, -1, "the emulator does not model local replies of gRPC");
    let headers = Headers::decode(unsafe { bytes(headers_data, headers_size) });
    let reply = Reply::new(status_code, headers, unsafe { bytes(body_data, body_size) });
    with(|state| {
        let context = state.effective_context();
        state.iteration_stopped = true;
        if state.streams.contains_key(&context) {
            state.deferred.push_back(Deferred::LocalReply(context, reply));
        }
    });
    Status::Ok
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_http_call(
    upstream_data: *const u8,
    upstream_size: usize,
    headers_data: *const u8,
    headers_size: usize,
    body_data: *const u8,
    body_size: usize,
    trailers_data: *const u8,
    trailers_size: usize,
    timeout: u32,
    return_token: *mut u32,
) -> Status {
    let cluster = unsafe { text(upstream_data, upstream_size) };
    let headers = Headers::decode(unsafe { bytes(headers_data, headers_size) });
    let body = unsafe { bytes(body_data, body_size) }.to_vec();
    let trailers = Headers::decode(unsafe { bytes(trailers_data, trailers_size) });
    assert!(trailers.is_empty(), "the emulator does not model trailers of callouts");
    let token = with(|state| state.call(cluster, headers, body, timeout));
    unsafe { put(token, return_token) }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_set_effective_context(context_id: u32) -> Status {
    with(|state| {
        if !state.is_context(context_id) {
            return Status::BadArgument;
        }
        state.effective = context_id;
        Status::Ok
    })
}
