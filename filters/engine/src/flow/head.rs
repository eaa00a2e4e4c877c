//! A request's or response's head as the host gives it: one list, read once.

/// Names are lower case, as Envoy gives them; values are bytes, since clients send what they like.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a>(pub &'a [(&'a str, &'a [u8])]);

/// Longer values are cut: tags end up in records, and a record is a line of a log.
const MAX_TAG_BYTES: usize = 256;

impl<'a> Head<'a> {
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// A header as a tag: printable, at most 256 bytes.
    #[must_use]
    pub fn tag(&self, name: &str) -> Option<String> {
        self.text(name, MAX_TAG_BYTES)
    }

    /// A header's text: printable, at most `max` bytes.
    #[must_use]
    pub fn text(&self, name: &str, max: usize) -> Option<String> {
        let value = self.get(name)?;
        let is_plain = value.iter().all(|byte| (b' '..=b'~').contains(byte));
        let mut tag = match core::str::from_utf8(value).ok().filter(|_| is_plain) {
            Some(text) => text.to_owned(),
            None => String::from_utf8_lossy(value).chars().filter(|character| !character.is_control()).collect(),
        };
        let mut end = max.min(tag.len());
        while !tag.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        tag.truncate(end);
        (!tag.is_empty()).then_some(tag)
    }

    /// A header that is a number, and nothing else.
    #[must_use]
    pub fn number<T: core::str::FromStr>(&self, name: &str) -> Option<T> {
        core::str::from_utf8(self.get(name)?).ok()?.parse().ok()
    }

    /// `:status`, or 0.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.number(":status").unwrap_or(0)
    }

    /// `:path` without its query.
    #[must_use]
    pub fn path(&self) -> &'a [u8] {
        self.get(":path").and_then(|path| path.split(|&byte| byte == b'?').next()).unwrap_or_default()
    }

    /// The media type of `content-type` is `text/event-stream`.
    #[must_use]
    pub fn is_event_stream(&self) -> bool {
        self.get("content-type").is_some_and(is_event_stream)
    }

    #[must_use]
    pub fn accepts_event_stream(&self) -> bool {
        self.get("accept").is_some_and(|accept| accept.split(|&byte| byte == b',').any(is_event_stream))
    }

    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(|(name, _)| *name)
    }
}

fn is_event_stream(value: &[u8]) -> bool {
    let media_type = value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    media_type.eq_ignore_ascii_case(b"text/event-stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_printable_and_bounded_whatever_the_client_sent() {
        let long = "é".repeat(400);
        let head: [(&str, &[u8]); 2] = [("x-a", b"a\xff\x00b"), ("x-b", long.as_bytes())];
        let head = Head(&head);
        assert_eq!(head.tag("x-a").as_deref(), Some("a\u{fffd}b"));
        assert_eq!(head.tag("x-b").unwrap().len(), 256);
        assert_eq!(head.tag("x-c"), None);
    }

    #[test]
    fn media_types_are_read_with_their_parameters() {
        let head: [(&str, &[u8]); 3] = [
            ("content-type", b"Text/Event-Stream; charset=utf-8"),
            ("accept", b"application/json, text/event-stream;q=0.9"),
            (":path", b"/chat?x=1"),
        ];
        let head = Head(&head);
        assert!(head.is_event_stream() && head.accepts_event_stream());
        assert_eq!(head.path(), b"/chat");
    }
}
