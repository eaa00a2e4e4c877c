//! Imports that the SDK declares and Parapet does not use. A call ends the test with the import's name.

use proxy_wasm::types::Status;

pub(super) const TABLE: &[*const ()] = &[
    proxy_register_shared_queue as *const (),
    proxy_resolve_shared_queue as *const (),
    proxy_dequeue_shared_queue as *const (),
    proxy_enqueue_shared_queue as *const (),
    proxy_grpc_call as *const (),
    proxy_grpc_stream as *const (),
    proxy_grpc_send as *const (),
    proxy_grpc_cancel as *const (),
    proxy_grpc_close as *const (),
    proxy_get_status as *const (),
    proxy_done as *const (),
];

macro_rules! unmodelled {
    ($($name:ident($($argument:ty),*);)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($(_: $argument),*) -> Status {
                panic!(concat!("the emulator does not model ", stringify!($name)))
            }
        )*
    };
}

unmodelled! {
    proxy_register_shared_queue(*const u8, usize, *mut u32);
    proxy_resolve_shared_queue(*const u8, usize, *const u8, usize, *mut u32);
    proxy_dequeue_shared_queue(u32, *mut *mut u8, *mut usize);
    proxy_enqueue_shared_queue(u32, *const u8, usize);
    proxy_grpc_call(
        *const u8, usize, *const u8, usize, *const u8, usize, *const u8, usize, *const u8, usize, u32, *mut u32
    );
    proxy_grpc_stream(*const u8, usize, *const u8, usize, *const u8, usize, *const u8, usize, *mut u32);
    proxy_grpc_send(u32, *const u8, usize, bool);
    proxy_grpc_cancel(u32);
    proxy_grpc_close(u32);
    proxy_get_status(*mut u32, *mut *mut u8, *mut usize);
    proxy_done();
}
