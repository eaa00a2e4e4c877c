//! Reading and replacing bodies with Envoy's bounds.

use proxy_wasm::types::Status;

/// `max_size` bytes from `start`, fewer where the buffer ends earlier.
///
/// # Errors
/// `BadArgument` where `start + max_size` overflows, or `start` lies behind the end.
pub(crate) fn read(buffer: &[u8], start: usize, max_size: usize) -> Result<Vec<u8>, Status> {
    let end = start.checked_add(max_size).ok_or(Status::BadArgument)?.min(buffer.len());
    buffer.get(start..end).map(<[u8]>::to_vec).ok_or(Status::BadArgument)
}

/// Envoy edits a body at its edges only: before it (`start` and `size` zero), all of it (`start` zero and `size`
/// at least its length) or after it (`start` at its end).
///
/// # Errors
/// `BadArgument` for an edit in the middle; the SDK panics on it.
pub(crate) fn write(buffer: &mut Vec<u8>, start: usize, size: usize, data: &[u8]) -> Result<(), Status> {
    if start == 0 && size == 0 {
        buffer.splice(0..0, data.iter().copied());
    } else if start == 0 && size >= buffer.len() {
        *buffer = data.to_vec();
    } else if start != 0 && start >= buffer.len() {
        buffer.extend_from_slice(data);
    } else {
        return Err(Status::BadArgument);
    }
    Ok(())
}
