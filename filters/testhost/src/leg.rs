//! One direction of a stream: what the filter holds, and what it has let go.

use crate::headers::Headers;

/// A message as the next hop got it: the upstream a request, the client an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `None` while the filter holds the head.
    pub head: Option<Headers>,
    /// The bytes let go so far.
    pub body: Vec<u8>,
    /// The message is whole.
    pub ended: bool,
    /// The stream was reset before that: the peer sees a cut.
    pub cut: bool,
}

impl Message {
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.header(":status")?.parse().ok()
    }

    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.as_ref()?.get(name)
    }

    /// The body as text; bytes that are no UTF-8 become replacement characters.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// HTTP/1 writes the head before the filter's last edit of the body. Measured: a body shorter or longer than
    /// its `content-length` is truncated on the way to the upstream, and spills into the next answer on the way
    /// to the client.
    pub(crate) fn framing_fault(&self) -> Option<String> {
        let declared: usize = self.header("content-length")?.parse().ok()?;
        (self.ended && declared != self.body.len())
            .then(|| format!("content-length says {declared} bytes, the body has {}", self.body.len()))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Head {
    #[default]
    Awaited,
    Held,
    Released,
}

/// The rules are those measured with `allow_on_headers_stop_iteration: true`:
/// * Pause on the head holds it, and body callbacks still come;
/// * Pause on the body buffers, and every later callback gets the whole accumulated buffer;
/// * Continue from a body callback lets the head and the whole buffer go;
/// * resuming does the same without another callback.
#[derive(Debug, Default)]
pub(crate) struct Leg {
    pub(crate) head: Head,
    /// The live map. An attempt's request uses its downstream stream's: they are one map.
    pub(crate) headers: Headers,
    pub(crate) buffer: Vec<u8>,
    /// The filter may read and edit the buffer: inside a body callback, and from one that said Pause until the next.
    pub(crate) buffer_open: bool,
    /// The last callback said Pause and nothing resumed since.
    pub(crate) paused: bool,
    /// The filter asked to resume inside the present callback: Envoy takes the head out of its sight at once.
    pub(crate) resuming: bool,
    pub(crate) end_arrived: bool,
    pub(crate) out: Message,
}

impl Leg {
    pub(crate) fn head_arrives(&mut self, end: bool) {
        assert_eq!(self.head, Head::Awaited, "a second head on one message");
        self.head = Head::Held;
        self.end_arrived = end;
    }

    /// Returns what the callback is told of: the length of everything the filter has not let go.
    pub(crate) fn data_arrives(&mut self, chunk: &[u8], end: bool) -> usize {
        assert_ne!(self.head, Head::Awaited, "a body before its head");
        assert!(!self.end_arrived, "a body after its end");
        self.buffer.extend_from_slice(chunk);
        self.buffer_open = true;
        self.end_arrived = end;
        self.buffer.len()
    }

    pub(crate) fn trailers_arrive(&mut self) {
        assert_ne!(self.head, Head::Awaited, "trailers before their head");
        assert!(!self.end_arrived, "trailers after the end");
        self.end_arrived = true;
    }

    pub(crate) fn pause(&mut self) {
        self.paused = true;
    }

    pub(crate) fn release(&mut self, head: &Headers) {
        if self.head == Head::Held {
            self.out.head = Some(head.clone());
            self.head = Head::Released;
        }
        self.out.body.append(&mut self.buffer);
        self.out.ended = self.end_arrived;
        self.buffer_open = false;
        self.paused = false;
        self.resuming = false;
    }

    pub(crate) fn head_visible(&self) -> bool {
        self.head == Head::Held && !self.resuming
    }
}
