//! Envoy's side, as values. The SDK's own wrappers panic on statuses that Envoy does return (a property that cannot be
//! serialised, a buffer outside its phase) and on header values that are no UTF-8; a panic ends every stream of the
//! worker. So the imports are called here directly, and what goes wrong is an `Option` or a `bool`.

#![expect(unsafe_code, reason = "the only place where the host's functions are called")]

use core::ptr::{null, null_mut};
use core::time::Duration;

use proxy_wasm::hostcalls;

/// Which header map; the numbers are the ABI's.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Map {
    Request = 0,
    Response = 2,
    Callout = 6,
}

/// Which body's buffer; the numbers are the ABI's.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Buffer {
    Request = 0,
    Response = 1,
    Callout = 4,
}

const OK: u32 = 0;

#[cfg_attr(target_arch = "wasm32", link(wasm_import_module = "env"))]
unsafe extern "C" {
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_set_header_map_pairs(map: u32, data: *const u8, size: usize) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(map: u32, key: *const u8, key_size: usize) -> u32;
    fn proxy_get_buffer_bytes(buffer: u32, start: usize, max: usize, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_set_buffer_bytes(buffer: u32, start: usize, size: usize, data: *const u8, data_size: usize) -> u32;
    fn proxy_get_property(path: *const u8, path_size: usize, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_set_property(path: *const u8, path_size: usize, value: *const u8, value_size: usize) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(key: *const u8, key_size: usize, value: *const u8, value_size: usize, cas: u32) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_continue_stream(stream: u32) -> u32;
    fn proxy_close_stream(stream: u32) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_set_effective_context(context: u32) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
}

/// What a call returned by pointer: memory that the host allocated through the SDK's allocator, now ours.
fn returned(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Option<Vec<u8>> {
    let (mut data, mut size) = (null_mut(), 0);
    if call(&raw mut data, &raw mut size) != OK {
        return None;
    }
    if data.is_null() {
        return Some(Vec::new());
    }
    // SAFETY: on success the host has had `size` bytes allocated by `proxy_on_memory_allocate`, which is a `Vec` of
    // exactly that capacity that the SDK forgot.
    Some(unsafe { Vec::from_raw_parts(data, size, size) })
}

/// A whole header map as the host wrote it.
#[derive(Debug, Default)]
pub(crate) struct Headers(Vec<u8>);

impl Headers {
    pub(crate) fn of(map: Map) -> Self {
        // SAFETY: the pointers are valid for the call.
        let bytes = returned(|data, size| unsafe { proxy_get_header_map_pairs(map as u32, data, size) });
        Self(bytes.unwrap_or_default())
    }

    /// Names in lower case, values as they came.
    pub(crate) fn pairs(&self) -> Vec<(&str, &[u8])> {
        read_pairs(&self.0).unwrap_or_default()
    }
}

/// The ABI's form: a count, then all sizes, then each name and value with a zero byte behind it.
fn read_pairs(bytes: &[u8]) -> Option<Vec<(&str, &[u8])>> {
    let number = |at: usize| {
        let bytes = bytes.get(at..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let count = number(0)?;
    let mut at = count.checked_mul(8)?.checked_add(4)?;
    let mut pairs = Vec::with_capacity(count.min(1024));
    for i in 0..count {
        let sizes = i.checked_mul(8)?.checked_add(4)?;
        let mut take = |size: usize| {
            let taken = bytes.get(at..at.checked_add(size)?)?;
            at = at.checked_add(size)?.checked_add(1)?;
            Some(taken)
        };
        // No valid name is anything but ASCII.
        let name = core::str::from_utf8(take(number(sizes)?)?).unwrap_or_default();
        pairs.push((name, take(number(sizes.checked_add(4)?)?)?));
    }
    Some(pairs)
}

fn write_pairs(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = Vec::with_capacity(512);
    bytes.extend_from_slice(&size(pairs.len()));
    for (name, value) in pairs {
        bytes.extend_from_slice(&size(name.len()));
        bytes.extend_from_slice(&size(value.len()));
    }
    for (name, value) in pairs {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(value);
        bytes.push(0);
    }
    bytes
}

pub(crate) fn set_headers(map: Map, headers: &[(&str, &[u8])]) -> bool {
    let bytes = write_pairs(headers);
    // SAFETY: the slice is valid for the call.
    unsafe { proxy_set_header_map_pairs(map as u32, bytes.as_ptr(), bytes.len()) == OK }
}

pub(crate) fn header(map: Map, name: &str) -> Option<Vec<u8>> {
    // SAFETY: the pointers are valid for the call.
    returned(|data, size| unsafe { proxy_get_header_map_value(map as u32, name.as_ptr(), name.len(), data, size) })
}

pub(crate) fn set_header(map: Map, name: &str, value: &str) -> bool {
    // SAFETY: the slices are valid for the call.
    unsafe { proxy_replace_header_map_value(map as u32, name.as_ptr(), name.len(), value.as_ptr(), value.len()) == OK }
}

pub(crate) fn remove_header(map: Map, name: &str) -> bool {
    // SAFETY: the slice is valid for the call.
    unsafe { proxy_remove_header_map_value(map as u32, name.as_ptr(), name.len()) == OK }
}

/// `:status` of a response's or callout's head, or 0.
pub(crate) fn status(map: Map) -> u16 {
    let status = header(map, ":status").unwrap_or_default();
    core::str::from_utf8(&status).ok().and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// The bytes of a buffer from `start` on.
pub(crate) fn buffer(buffer: Buffer, start: usize, max: usize) -> Vec<u8> {
    if max == 0 {
        return Vec::new();
    }
    // SAFETY: the pointers are valid for the call.
    returned(|data, size| unsafe { proxy_get_buffer_bytes(buffer as u32, start, max, data, size) }).unwrap_or_default()
}

/// All that is in a buffer from `start` on: what trailers end, whose callback tells no size.
pub(crate) fn buffer_from(which: Buffer, start: usize) -> Vec<u8> {
    buffer(which, start, usize::MAX.saturating_sub(start))
}

/// Replaces a whole buffer.
pub(crate) fn set_buffer(buffer: Buffer, bytes: &[u8]) -> bool {
    // SAFETY: the slice is valid for the call. A size beyond the buffer's means all of it.
    unsafe { proxy_set_buffer_bytes(buffer as u32, 0, usize::MAX, bytes.as_ptr(), bytes.len()) == OK }
}

pub(crate) fn property(path: &[&str]) -> Option<Vec<u8>> {
    let path = path.join("\0");
    // SAFETY: the pointers are valid for the call.
    returned(|data, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, size) })
}

/// Sets filter state: `wasm.NAME`, readable by other filters of the stream and by the access log.
pub(crate) fn set_property(name: &str, value: &[u8]) -> bool {
    // SAFETY: the slices are valid for the call.
    unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) == OK }
}

/// A value shared by all workers, and the number that a compare-and-swap needs.
pub(crate) fn shared_data(key: &str) -> (Option<Vec<u8>>, Option<u32>) {
    let mut cas = 0;
    // SAFETY: the pointers are valid for the call.
    let value =
        returned(|data, size| unsafe { proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &raw mut cas) });
    (value, (cas != 0).then_some(cas))
}

/// `false`: somebody else wrote since `cas` was read.
pub(crate) fn set_shared_data(key: &str, value: &[u8], cas: Option<u32>) -> bool {
    // SAFETY: the slices are valid for the call.
    unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas.unwrap_or(0)) == OK }
}

/// What [`take_once`] takes. To be called where all workers' contexts are configured: the first write of a key cannot be
/// a compare-and-swap, and Envoy's main thread makes it before there are workers.
pub(crate) fn offer_once(key: &str) {
    if shared_data(key).0.is_none() {
        set_shared_data(key, b"free", None);
    }
}

/// True for one caller of all workers.
pub(crate) fn take_once(key: &str) -> bool {
    let (value, cas) = shared_data(key);
    value.as_deref() == Some(b"free") && cas.is_some() && set_shared_data(key, b"taken", cas)
}

pub(crate) fn send_reply(status: u16, headers: &[(&'static str, String)], body: &[u8]) -> bool {
    let pairs: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    let pairs = write_pairs(&pairs);
    // SAFETY: the slices are valid for the call; -1 is "no gRPC status".
    unsafe {
        proxy_send_local_response(
            u32::from(status),
            null(),
            0,
            body.as_ptr(),
            body.len(),
            pairs.as_ptr(),
            pairs.len(),
            -1,
        ) == OK
    }
}

pub(crate) fn resume_request() {
    // SAFETY: takes no pointers. 0 is the HTTP request. A stream that is gone is not resumed, which is right.
    let _ = unsafe { proxy_continue_stream(0) };
}

pub(crate) fn resume_response() {
    // SAFETY: takes no pointers. 1 is the HTTP response.
    let _ = unsafe { proxy_continue_stream(1) };
}

/// Ends the stream in both directions at once, without its regular end.
pub(crate) fn reset_response() {
    // SAFETY: takes no pointers. 1 is the HTTP response.
    let _ = unsafe { proxy_close_stream(1) };
}

/// What follows in this callback is done for another context; `false`: it is gone.
pub(crate) fn act_as(context: u32) -> bool {
    // SAFETY: takes no pointers.
    unsafe { proxy_set_effective_context(context) == OK }
}

/// The period of a root's tick, zero for none. To be called as the root.
pub(crate) fn tick_every(period: Duration) {
    // SAFETY: takes no pointers.
    let _ = unsafe { proxy_set_tick_period_milliseconds(u32::try_from(period.as_millis()).unwrap_or(u32::MAX)) };
}

/// Sets or removes headers of the request.
pub(crate) fn edit_head(head: &[(&'static str, Option<String>)]) {
    for (name, value) in head {
        match value {
            Some(value) => set_header(Map::Request, name, value),
            None => remove_header(Map::Request, name),
        };
    }
}

/// Microseconds since the Unix epoch.
pub(crate) fn now_us() -> u64 {
    let mut ns = 0;
    // SAFETY: the pointer is valid for the call.
    let _ = unsafe { proxy_get_current_time_nanoseconds(&raw mut ns) };
    ns / 1000
}

/// Starts a callout; `None` when the cluster is not there. Through the SDK, whose dispatcher has to know the token.
pub(crate) fn call(cluster: &str, headers: &[(&str, &str)], body: &[u8], timeout_ms: u64) -> Option<u32> {
    let body = (!body.is_empty()).then_some(body);
    hostcalls::dispatch_http_call(cluster, headers.to_vec(), body, Vec::new(), Duration::from_millis(timeout_ms)).ok()
}
