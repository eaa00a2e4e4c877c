//! LangSmith: run trees made of records, and their upload.
//!
//! The wire is written down in LangSmith's own documentation (`trace-with-api`, `run-data-format`) and in its SDK.

pub mod client;
pub mod config;
pub mod dead_letter;
pub mod deliver;
pub mod info;
pub mod multipart;
pub mod order;
pub mod retry;
pub mod run;
pub mod tree;
pub mod upload;
