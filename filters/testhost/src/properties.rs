//! Properties and filter state.

use proxy_wasm::types::Status;

use crate::state::{Direction, State};

/// The prefix under which Envoy keeps what a filter set as a property.
pub(crate) const FILTER_STATE_PREFIX: &str = "wasm.";

#[derive(Clone, Debug)]
pub(crate) enum Property {
    Value(Vec<u8>),
    /// Reading it fails, as measured for the metadata of a host that has none.
    Unserializable,
}

/// The ABI's form of a path: segments joined by NUL.
pub(crate) fn join(path: &[&str]) -> String {
    path.join("\0")
}

impl State {
    /// In this order: what the test set for the stream and for the host, what a filter set on the stream, and
    /// what follows from the heads that are in sight.
    pub(crate) fn property(&self, path: &str) -> Result<Vec<u8>, Status> {
        let context = self.effective_context();
        let explicit = self
            .streams
            .get(&context)
            .and_then(|stream| stream.properties.get(path))
            .or_else(|| self.streams.get(&self.parent_or_self(context)).and_then(|stream| stream.properties.get(path)))
            .or_else(|| self.properties.get(path));
        match explicit {
            Some(Property::Value(value)) => return Ok(value.clone()),
            Some(Property::Unserializable) => return Err(Status::SerializationFailure),
            None => {}
        }
        let root = self.streams.get(&context).map_or(context, |stream| stream.root);
        let mut segments = path.split('\0');
        let value = match (segments.next(), segments.next(), segments.next()) {
            (Some("plugin_root_id" | "plugin_name"), None, None) => {
                self.roots.get(&root).map(|id| id.clone().into_bytes())
            }
            (Some("plugin_vm_id"), None, None) => Some(Vec::new()),
            (Some("filter_state"), Some(key), None) => self.filter_state(context, key),
            (Some("request"), Some(field), name) => self.request_property(context, field, name),
            (Some("response"), Some(field), name) => self.response_property(context, field, name),
            (Some(key), None, None) => self.filter_state(context, &format!("{FILTER_STATE_PREFIX}{key}")),
            _ => None,
        };
        value.ok_or(Status::NotFound)
    }

    fn parent_or_self(&self, context: u32) -> u32 {
        self.streams.get(&context).and_then(|stream| stream.parent).unwrap_or(context)
    }

    /// Measured: what an upstream filter sets is visible downstream, and the other way round.
    pub(crate) fn filter_state(&self, context: u32, key: &str) -> Option<Vec<u8>> {
        self.streams.get(&self.parent_or_self(context))?.filter_state.get(key).cloned()
    }

    /// # Errors
    /// `NotFound` outside a stream; the SDK panics on it.
    pub(crate) fn set_property(&mut self, path: &str, value: Vec<u8>) -> Result<(), Status> {
        let owner = self.parent_or_self(self.effective_context());
        let stream = self.streams.get_mut(&owner).ok_or(Status::NotFound)?;
        stream.filter_state.insert(format!("{FILTER_STATE_PREFIX}{path}"), value);
        Ok(())
    }

    /// Measured: gone in the response phase, back in `on_log`.
    fn request_property(&self, context: u32, field: &str, name: Option<&str>) -> Option<Vec<u8>> {
        let stream = self.streams.get(&context)?;
        if !stream.logging && !stream.head_visible(Direction::Request) {
            return None;
        }
        let headers = self.headers(context, Direction::Request);
        let header = match (field, name) {
            ("headers", Some(name)) => return headers.get_bytes(name).map(<[u8]>::to_vec),
            ("path", None) => ":path",
            ("host", None) => ":authority",
            ("method", None) => ":method",
            ("scheme", None) => ":scheme",
            ("id", None) => "x-request-id",
            ("useragent", None) => "user-agent",
            ("url_path", None) => {
                let path = headers.get_bytes(":path")?;
                return path.split(|byte| *byte == b'?').next().map(<[u8]>::to_vec);
            }
            _ => return None,
        };
        headers.get_bytes(header).map(<[u8]>::to_vec)
    }

    /// `response.code` is the status that the client got, in eight little-endian bytes like every number.
    fn response_property(&self, context: u32, field: &str, name: Option<&str>) -> Option<Vec<u8>> {
        let stream = self.streams.get(&context)?;
        match (field, name) {
            ("code", None) => stream.response.out.status().map(|status| u64::from(status).to_le_bytes().to_vec()),
            ("headers", Some(name)) if stream.logging || stream.head_visible(Direction::Response) => {
                self.headers(context, Direction::Response).get_bytes(name).map(<[u8]>::to_vec)
            }
            _ => None,
        }
    }
}
