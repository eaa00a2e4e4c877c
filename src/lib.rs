//! The native half of Parapet: the sidecar that remembers and reports, and the command line.

pub mod accesslog;
pub mod admission;
pub mod als;
pub mod audit;
pub mod cache;
pub mod dashboard;
pub mod feedback;
pub mod langsmith;
pub mod metrics;
pub mod otel;
pub mod sidecar;
pub mod sim;
pub mod spool;
pub mod up;
