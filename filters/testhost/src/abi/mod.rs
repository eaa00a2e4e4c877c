//! The imports of the ABI, as the SDK declares them.
//!
//! Memory that the SDK takes over is a boxed slice of the exact size: it rebuilds a `Vec` whose capacity is the
//! length, and drops that. Empty values are a null pointer and a zero, as Envoy writes them.

mod http;
mod storage;
mod unmodelled;

use proxy_wasm::types::Status;

/// Names every import, so that a linker which reads archives in one pass pulls all of them in.
pub(crate) fn keep() {
    std::hint::black_box((http::TABLE, storage::TABLE, unmodelled::TABLE));
}

/// # Safety
/// `data` is null, or points to `size` bytes that nobody writes while the result lives.
unsafe fn bytes<'a>(data: *const u8, size: usize) -> &'a [u8] {
    if data.is_null() || size == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data, size) }
}

/// # Safety
/// As for [`bytes`].
unsafe fn text(data: *const u8, size: usize) -> String {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(data, size) };
    String::from_utf8(bytes.to_vec()).expect("the SDK passes strings")
}

/// Hands `value` over for good.
///
/// # Safety
/// Both pointers are writable.
unsafe fn give(value: Result<Vec<u8>, Status>, data: *mut *mut u8, size: *mut usize) -> Status {
    let value = match value {
        Ok(value) => value.into_boxed_slice(),
        Err(status) => return status,
    };
    // SAFETY: the caller's promise.
    unsafe {
        *size = value.len();
        *data = if value.is_empty() { std::ptr::null_mut() } else { Box::into_raw(value).cast() };
    }
    Status::Ok
}

/// # Safety
/// `out` is writable.
unsafe fn put<T>(value: Result<T, Status>, out: *mut T) -> Status {
    match value {
        Ok(value) => {
            // SAFETY: the caller's promise.
            unsafe { *out = value };
            Status::Ok
        }
        Err(status) => status,
    }
}

fn status(result: Result<(), Status>) -> Status {
    result.err().unwrap_or(Status::Ok)
}
