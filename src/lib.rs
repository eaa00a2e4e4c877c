//! The native half of Parapet: the sidecar that remembers and reports, and the command line.

pub mod accesslog;
pub mod admission;
pub mod audit;
pub mod cache;
pub mod feedback;
pub mod langsmith;
pub mod metrics;
pub mod sidecar;
pub mod sim;
pub mod spool;
pub mod up;
