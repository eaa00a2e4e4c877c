//! Where bodies are cut on their way to the filter.

/// A plan that applies to any body, in either direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chunking {
    /// One chunk.
    #[default]
    Whole,
    /// One chunk per byte: every split inside a UTF-8 character, an escape or an event happens.
    EveryByte,
    /// Cuts at these offsets, in any order; those outside a body or named twice do nothing, so that a property
    /// test may draw them freely.
    At(Vec<usize>),
}

impl Chunking {
    /// The chunks of `body`, none of them empty: Envoy hands no empty frame to a filter, except the last.
    #[must_use]
    pub fn split<'a>(&self, body: &'a [u8]) -> Vec<&'a [u8]> {
        match self {
            Self::Whole if body.is_empty() => Vec::new(),
            Self::Whole => vec![body],
            Self::EveryByte => body.chunks(1).collect(),
            Self::At(cuts) => {
                let mut cuts: Vec<usize> = cuts.iter().copied().filter(|cut| (1..body.len()).contains(cut)).collect();
                cuts.push(body.len());
                cuts.sort_unstable();
                cuts.dedup();
                let mut start = 0;
                cuts.into_iter()
                    .map(|cut| &body[std::mem::replace(&mut start, cut)..cut])
                    .filter(|chunk| !chunk.is_empty())
                    .collect()
            }
        }
    }
}

/// How the end of a body reaches the filter. Both happen: HTTP/1 tells it in an empty frame of its own, HTTP/2
/// may tell it with the last bytes. A filter must live with either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndOfStream {
    #[default]
    OwnFrame,
    WithLastChunk,
}

/// The frames of a whole body: each with its end-of-stream flag.
pub(crate) fn frames<'a>(body: &'a [u8], plan: &Chunking, end: EndOfStream) -> Vec<(&'a [u8], bool)> {
    let mut frames: Vec<_> = plan.split(body).into_iter().map(|chunk| (chunk, false)).collect();
    match (frames.last_mut(), end) {
        (Some(last), EndOfStream::WithLastChunk) => last.1 = true,
        _ => frames.push((&[], true)),
    }
    frames
}
