//! OpenTelemetry: the record's spans after the GenAI conventions (v1.41), and their export by OTLP/HTTP.
//!
//! The spool is the queue, with a progress of the export's own; ids are made of the record alone, so that what is sent
//! again is the same span.

pub mod client;
pub mod config;
pub mod context;
pub mod export;
mod messages;
pub mod proto;
mod span;
pub mod tree;

/// The export's name in the spool and on its dead letters; the uploads have their addresses, which hold no such letter.
pub const DESTINATION: &str = "@otlp";
