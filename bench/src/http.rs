//! As much of HTTP/1.1 as the two ends here speak to each other and to Envoy.

/// A message's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes up to and with the empty line.
    pub(crate) bytes: usize,
    pub(crate) body: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(usize),
    Chunked,
}

/// `None`: not complete yet.
pub(crate) fn head(bytes: &[u8]) -> Option<Head> {
    let end = find(bytes, b"\r\n\r\n")?;
    let lines = bytes.get(..end)?;
    // Envoy and this rig write names in lower case.
    let body = if find(lines, b"\r\ntransfer-encoding: chunked").is_some() {
        Framing::Chunked
    } else {
        Framing::Length(
            find(lines, CONTENT_LENGTH).map_or(0, |at| number(lines, at.saturating_add(CONTENT_LENGTH.len()))),
        )
    };
    Some(Head { bytes: end.saturating_add(4), body })
}

const CONTENT_LENGTH: &[u8] = b"\r\ncontent-length: ";

/// A response's status, from its first line.
pub(crate) fn status(bytes: &[u8]) -> u16 {
    u16::try_from(number(bytes, 9)).unwrap_or(0)
}

/// The decimal digits from `at` on.
pub(crate) fn number(bytes: &[u8], at: usize) -> usize {
    let digits = bytes.get(at..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |value: usize, digit| value.wrapping_mul(10).wrapping_add(usize::from(digit & 0x0f)))
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    let first = *what.first()?;
    let mut from = 0;
    loop {
        let at = bytes.get(from..)?.iter().position(|byte| *byte == first)?.wrapping_add(from);
        if bytes.get(at..)?.starts_with(what) {
            return Some(at);
        }
        from = at.wrapping_add(1);
    }
}

/// A chunked body, in any pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunked {
    Size(usize),
    Data(usize),
    /// The line break behind a chunk.
    Break,
    /// The line after the last chunk, with the bytes it has so far.
    Last(usize),
    Done,
}

impl Chunked {
    pub(crate) const fn new() -> Self {
        Self::Size(0)
    }

    /// Gives `sink` what is content; how many bytes were taken.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8])) -> usize {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match *self {
                Self::Size(size) => {
                    at = at.wrapping_add(1);
                    *self = match byte {
                        b'\n' if size == 0 => Self::Last(0),
                        b'\n' => Self::Data(size),
                        _ => char::from(byte).to_digit(16).map_or(Self::Size(size), |digit| {
                            Self::Size(size.wrapping_mul(16).wrapping_add(digit as usize))
                        }),
                    };
                }
                Self::Data(left) => {
                    let end = bytes.len().min(at.saturating_add(left));
                    let data = bytes.get(at..end).unwrap_or_default();
                    sink(data);
                    at = end;
                    *self = match left.saturating_sub(data.len()) {
                        0 => Self::Break,
                        left => Self::Data(left),
                    };
                }
                Self::Break => {
                    at = at.wrapping_add(1);
                    if byte == b'\n' {
                        *self = Self::Size(0);
                    }
                }
                Self::Last(seen) => {
                    at = at.wrapping_add(1);
                    *self = match byte {
                        b'\n' if seen == 0 => Self::Done,
                        b'\n' => Self::Last(0),
                        b'\r' => Self::Last(seen),
                        _ => Self::Last(seen.saturating_add(1)),
                    };
                }
                Self::Done => break,
            }
            if *self == Self::Done {
                break;
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_reads_the_same_in_any_two_pieces() {
        let body = b"5\r\nhello\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\nnext";
        for cut in 0..body.len() {
            let (mut chunked, mut seen) = (Chunked::new(), Vec::new());
            let mut taken = chunked.feed(&body[..cut], |data| seen.extend_from_slice(data));
            if taken == cut {
                taken += chunked.feed(&body[cut..], |data| seen.extend_from_slice(data));
            }
            assert_eq!(seen, b"helloabcdefghijklmnopqrstuvwxyz");
            assert_eq!((chunked, taken), (Chunked::Done, body.len() - 4));
        }
    }

    #[test]
    fn heads_tell_where_and_how_the_body_goes_on() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nx";
        assert_eq!(head(bytes), Some(Head { bytes: 39, body: Framing::Length(12) }));
        assert_eq!(status(bytes), 200);
        assert_eq!(head(b"HTTP/1.1 200 OK\r\ncontent-le"), None);
        let chunked = head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        assert_eq!(chunked.map(|head| head.body), Some(Framing::Chunked));
    }
}
