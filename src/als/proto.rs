//! What is read of `envoy.service.accesslog.v3` and `envoy.data.accesslog.v3`; protobuf passes over the other fields.
//! Six messages, written out: the published crate compiles all of Envoy's API, some hundred thousand lines.

use std::collections::HashMap;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct StreamAccessLogsMessage {
    #[prost(message, optional, tag = "2")]
    pub(super) http_logs: Option<HttpAccessLogEntries>,
}

/// Never sent before the stream's end.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StreamAccessLogsResponse {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpAccessLogEntries {
    #[prost(message, repeated, tag = "1")]
    pub(super) log_entry: Vec<HttpAccessLogEntry>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpAccessLogEntry {
    #[prost(message, optional, tag = "1")]
    pub(super) common_properties: Option<AccessLogCommon>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AccessLogCommon {
    #[prost(map = "string, string", tag = "22")]
    pub(super) custom_tags: HashMap<String, String>,
}
