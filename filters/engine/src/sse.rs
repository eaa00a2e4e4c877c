//! Server-sent events, over bytes: what a provider sends in pieces of any size comes out as whole events.
//!
//! Accepts what the WHATWG's event stream grammar accepts: CRLF, LF and a lone CR, `data:` with and without a space,
//! several data lines, comments, a byte order mark, an event split anywhere, and (beyond the grammar) a last event
//! without its empty line, as cut streams leave it.

use core::ops::Range;

use memchr::memchr2;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The bytes it came in, blank line included.
    pub raw: Vec<u8>,
    data: Data,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Data {
    None,
    /// One data line, as nearly always: where it stands in the event.
    Within(Range<usize>),
    Joined(Vec<u8>),
}

impl Event {
    /// The data lines joined by LF; `None` when the block held only comments or other fields.
    #[must_use]
    pub fn data(&self) -> Option<&[u8]> {
        match &self.data {
            Data::None => None,
            Data::Within(range) => self.raw.get(range.clone()),
            Data::Joined(data) => Some(data),
        }
    }
}

/// An event of a server that never ends it would grow without end; no model's chunk comes near.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// The stream's bytes are no event stream any more: an event exceeded [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

/// Collects bytes into events.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The bytes of the event that is not whole yet.
    pending: Vec<u8>,
    /// Up to where `pending` was searched for its end.
    searched: usize,
    started: bool,
}

impl Decoder {
    /// Takes more bytes and hands every event that is now whole to `each`.
    ///
    /// # Errors
    /// [`TooLarge`]; the events before were handed out.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Event)) -> Result<(), TooLarge> {
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        let mut search = self.searched;
        while let Some(end) = end_of_event(&self.pending, search) {
            // What was searched before may hold further lines.
            let line_end = (search == start).then_some(end.line_end).flatten();
            each(self.event(start..end.end, line_end));
            start = end.end;
            search = end.end;
        }
        self.pending.drain(..start);
        // The last three bytes may be the beginning of a line end that the next bytes complete.
        self.searched = self.pending.len().saturating_sub(3);
        if self.pending.len() > MAX_EVENT_BYTES { Err(TooLarge) } else { Ok(()) }
    }

    /// The stream is over: the event whose blank line is missing, if there is one.
    pub fn finish(&mut self) -> Option<Event> {
        let rest = self.pending.len();
        self.searched = 0;
        let event = (rest > 0).then(|| self.event(0..rest, None));
        self.pending.clear();
        event
    }

    /// `line_end`: where in `pending` the event's only line ends.
    fn event(&mut self, range: Range<usize>, line_end: Option<usize>) -> Event {
        let line_end = line_end.and_then(|at| at.checked_sub(range.start));
        let raw = self.pending.get(range).unwrap_or_default().to_vec();
        let skip = if !self.started && raw.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        let data = match line_end.and_then(|end| raw.get(skip..end).map(|line| (line, end))) {
            Some((line, end)) => {
                value_offset(line).map_or(Data::None, |offset| Data::Within(skip.saturating_add(offset)..end))
            }
            None => data(&raw, skip),
        };
        self.started = true;
        Event { raw, data }
    }
}

/// Where an event ends.
struct End {
    /// The index after the blank line.
    end: usize,
    /// The index of the line end before it, if that was the first one found.
    line_end: Option<usize>,
}

/// The end of the event, searching from `from`.
///
/// A CR at the very end may be half of a CRLF: it ends nothing until the next byte is there.
fn end_of_event(bytes: &[u8], from: usize) -> Option<End> {
    let mut i = from;
    while let Some(offset) = memchr2(b'\n', b'\r', bytes.get(i..)?) {
        let at = i.saturating_add(offset);
        let after = after_line_end(bytes, at)?;
        match bytes.get(after)? {
            b'\n' | b'\r' => {
                return Some(End { end: after_line_end(bytes, after)?, line_end: (i == from).then_some(at) });
            }
            _ => i = after,
        }
    }
    None
}

/// The index after the line end at `at`; `None` while a CR is the last byte.
fn after_line_end(bytes: &[u8], at: usize) -> Option<usize> {
    let next = at.saturating_add(1);
    match (bytes.get(at)?, bytes.get(next)) {
        (b'\r', Some(b'\n')) => Some(next.saturating_add(1)),
        (b'\r', None) => None,
        _ => Some(next),
    }
}

fn data(block: &[u8], from: usize) -> Data {
    let mut data = Data::None;
    let mut start = from;
    while let Some(rest) = block.get(start..).filter(|rest| !rest.is_empty()) {
        let length = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let end = start.saturating_add(length);
        if let Some(skip) = rest.get(..length).and_then(value_offset) {
            let range = start.saturating_add(skip)..end;
            data = match data {
                Data::None => Data::Within(range),
                Data::Within(first) => Data::Joined(join(block.get(first), block.get(range))),
                Data::Joined(before) => Data::Joined(join(Some(&before), block.get(range))),
            };
        }
        start = end.saturating_add(1);
    }
    data
}

/// Where the value of a data line begins; `None` for any other line.
fn value_offset(line: &[u8]) -> Option<usize> {
    match line.strip_prefix(b"data")? {
        [] => Some(4),
        [b':', b' ', ..] => Some(6),
        [b':', ..] => Some(5),
        _ => None,
    }
}

fn join(first: Option<&[u8]>, second: Option<&[u8]>) -> Vec<u8> {
    [first.unwrap_or_default(), second.unwrap_or_default()].join(&b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(chunks: &[&[u8]]) -> Vec<Event> {
        let (mut decoder, mut events) = (Decoder::default(), Vec::new());
        for chunk in chunks {
            decoder.feed(chunk, |event| events.push(event)).unwrap();
        }
        events.extend(decoder.finish());
        events
    }

    fn datas(stream: &[u8]) -> Vec<Option<String>> {
        decode(&[stream])
            .into_iter()
            .map(|event| event.data().map(|data| String::from_utf8(data.to_vec()).unwrap()))
            .collect()
    }

    #[test]
    fn every_form_of_the_grammar_is_read() {
        let cases: &[(&str, &[Option<&str>])] = &[
            ("data: a\n\ndata: b\n\n", &[Some("a"), Some("b")]),
            ("data:a\r\n\r\ndata: b\r\rdata: c\n\n", &[Some("a"), Some("b"), Some("c")]),
            ("data: a\ndata: b\n\n", &[Some("a\nb")]),
            (": keep-alive\n\ndata: a\n\n", &[None, Some("a")]),
            ("event: x\nid: 7\ndata: a\n\n", &[Some("a")]),
            ("\u{feff}data: a\n\n", &[Some("a")]),
            ("data: a\n\ndata: cut", &[Some("a"), Some("cut")]),
            ("data\n\n", &[Some("")]),
            ("data:  two spaces\n\n", &[Some(" two spaces")]),
            ("database: no\n\n", &[None]),
        ];
        for (stream, expected) in cases {
            let expected: Vec<Option<String>> = expected.iter().map(|data| data.map(str::to_owned)).collect();
            assert_eq!(datas(stream.as_bytes()), expected, "{stream:?}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused_at_the_bound() {
        let mut decoder = Decoder::default();
        let piece = vec![b'x'; MAX_EVENT_BYTES / 2];
        assert_eq!(decoder.feed(&piece, |_| {}), Ok(()));
        assert_eq!(decoder.feed(&piece, |_| {}), Ok(()));
        assert_eq!(decoder.feed(b"x", |_| {}), Err(TooLarge));
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_events_and_loses_no_byte(
            lines in prop::collection::vec(("(data: ?|: |event: |data|)[a-zä€😀]{0,6}", "(\n|\r\n|\r)(\n|\r\n|\r|)"), 0..12),
            cuts in prop::collection::vec(0_usize..200, 0..12),
        ) {
            let stream: Vec<u8> = lines.into_iter().flat_map(|(line, end)| format!("{line}{end}").into_bytes()).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= stream.len()).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([stream.len()]) {
                chunks.push(&stream[from..cut]);
                from = cut;
            }
            let whole = decode(&[&stream]);
            prop_assert_eq!(&decode(&chunks), &whole);
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(&decode(&bytes), &whole);
            let raw: Vec<u8> = whole.into_iter().flat_map(|event| event.raw).collect();
            prop_assert_eq!(raw, stream);
        }
    }
}
