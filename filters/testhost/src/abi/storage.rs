//! Log, clock, properties, shared data, metrics, foreign functions.

use std::time::Duration;

use proxy_wasm::types::{LogLevel, MetricType, Status};

use super::{bytes, give, put, status, text};
use crate::state::{try_with, with};

pub(super) const TABLE: &[*const ()] = &[
    proxy_log as *const (),
    proxy_get_log_level as *const (),
    proxy_get_current_time_nanoseconds as *const (),
    proxy_set_tick_period_milliseconds as *const (),
    proxy_get_property as *const (),
    proxy_set_property as *const (),
    proxy_get_shared_data as *const (),
    proxy_set_shared_data as *const (),
    proxy_define_metric as *const (),
    proxy_get_metric as *const (),
    proxy_record_metric as *const (),
    proxy_increment_metric as *const (),
    proxy_call_foreign_function as *const (),
];

// SAFETY, for every function of this file: the SDK passes pointers to its own live values, with their lengths.

/// The SDK's panic hook ends here too, in the middle of anything and on any thread.
#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_log(level: LogLevel, message_data: *const u8, message_size: usize) -> Status {
    let message = unsafe { text(message_data, message_size) };
    if level == LogLevel::Critical || try_with(|state| state.logs.push((level, message.clone()))).is_none() {
        eprintln!("[{level:?}] {message}");
    }
    Status::Ok
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_get_log_level(return_level: *mut LogLevel) -> Status {
    let level = with(|state| state.log_level.unwrap_or(LogLevel::Info));
    unsafe { put(Ok(level), return_level) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_get_current_time_nanoseconds(return_time: *mut u64) -> Status {
    unsafe { put(Ok(with(|state| state.now_nanos)), return_time) }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_set_tick_period_milliseconds(period: u32) -> Status {
    with(|state| {
        let context = state.effective_context();
        let root = state.streams.get(&context).map_or(context, |stream| stream.root);
        state.tick_periods.insert(root, Duration::from_millis(u64::from(period)));
    });
    Status::Ok
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_get_property(
    path_data: *const u8,
    path_size: usize,
    return_value_data: *mut *mut u8,
    return_value_size: *mut usize,
) -> Status {
    let path = unsafe { text(path_data, path_size) };
    unsafe { give(with(|state| state.property(&path)), return_value_data, return_value_size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_set_property(
    path_data: *const u8,
    path_size: usize,
    value_data: *const u8,
    value_size: usize,
) -> Status {
    let (path, value) = unsafe { (text(path_data, path_size), bytes(value_data, value_size)) };
    status(with(|state| state.set_property(&path, value.to_vec())))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_get_shared_data(
    key_data: *const u8,
    key_size: usize,
    return_value_data: *mut *mut u8,
    return_value_size: *mut usize,
    return_cas: *mut u32,
) -> Status {
    let key = unsafe { text(key_data, key_size) };
    match with(|state| state.shared_data.get(&key)) {
        Err(status) => status,
        Ok((value, cas)) => unsafe {
            put(Ok(cas), return_cas);
            give(Ok(value), return_value_data, return_value_size)
        },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_set_shared_data(
    key_data: *const u8,
    key_size: usize,
    value_data: *const u8,
    value_size: usize,
    cas: u32,
) -> Status {
    let (key, value) = unsafe { (text(key_data, key_size), bytes(value_data, value_size)) };
    status(with(|state| state.shared_data.set(&key, value, cas)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_define_metric(
    metric_type: MetricType,
    name_data: *const u8,
    name_size: usize,
    return_id: *mut u32,
) -> Status {
    let name = unsafe { text(name_data, name_size) };
    unsafe { put(Ok(with(|state| state.metrics.define(metric_type, name))), return_id) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_get_metric(metric_id: u32, return_value: *mut u64) -> Status {
    unsafe { put(with(|state| state.metrics.get(metric_id)), return_value) }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_record_metric(metric_id: u32, value: u64) -> Status {
    status(with(|state| state.metrics.record(metric_id, value)))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_increment_metric(metric_id: u32, offset: i64) -> Status {
    status(with(|state| state.metrics.increment(metric_id, offset)))
}

/// Only what changes nothing that the emulator models. Measured: there is no function that writes dynamic
/// metadata; a name that Envoy does not know is `NotFound`.
#[unsafe(no_mangle)]
unsafe extern "C" fn proxy_call_foreign_function(
    function_name_data: *const u8,
    function_name_size: usize,
    _arguments_data: *const u8,
    _arguments_size: usize,
    results_data: *mut *mut u8,
    results_size: *mut usize,
) -> Status {
    let name = unsafe { text(function_name_data, function_name_size) };
    match name.as_str() {
        "clear_route_cache" | "declare_property" => unsafe { give(Ok(Vec::new()), results_data, results_size) },
        "compress"
        | "uncompress"
        | "expr_create"
        | "expr_evaluate"
        | "expr_delete"
        | "set_envoy_filter_state"
        | "verify_signature"
        | "sign" => panic!("the emulator does not model the foreign function {name}"),
        _ => Status::NotFound,
    }
}
