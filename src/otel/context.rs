//! The caller's span, from `traceparent` (W3C Trace Context, level 2).

/// A valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    /// The caller's decision, which is followed.
    pub sampled: bool,
}

impl Parent {
    /// None for what is not exactly one: it came from outside and is then ignored, as the specification wants.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\t']);
        // A later version may say more behind the flags; version ff is none.
        let rest = text.get(55..)?;
        let mut fields = text.get(..55)?.split('-');
        let version: [u8; 1] = hex(fields.next()?)?;
        let (trace_id, span_id): ([u8; 16], [u8; 8]) = (hex(fields.next()?)?, hex(fields.next()?)?);
        let [flags]: [u8; 1] = hex(fields.next()?)?;
        let sound = match version {
            [0] => rest.is_empty(),
            [0xff] => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let known = fields.next().is_none() && trace_id != [0; 16] && span_id != [0; 8];
        (sound && known).then_some(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

/// Exactly `N` bytes in lower-case hexadecimal.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (to, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *to = match *pair {
            [high, low] => digit(high)? << 4 | digit(low)?,
            _ => return None,
        };
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_traceparent_is_read() {
        let parent = Parent::parse(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert_eq!(parent.trace_id[..2], [0x4b, 0xf9]);
        assert_eq!(parent.span_id, [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert!(parent.sampled);
        for (flags, sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            assert_eq!(Parent::parse(&format!("00-{TRACE}-{SPAN}-{flags}")).unwrap().sampled, sampled, "{flags}");
        }
        assert!(Parent::parse(&format!("01-{TRACE}-{SPAN}-01-more")).is_some());
        assert!(Parent::parse(&format!(" 00-{TRACE}-{SPAN}-01\t")).is_some());
    }

    #[test]
    fn what_is_none_is_ignored() {
        for text in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("01-{TRACE}-{SPAN}-01more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0g-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{SPAN}-{TRACE}-01"),
            format!("00-{}é-{SPAN}-01", &TRACE[..30]),
            "é".repeat(40),
            "-".repeat(55),
        ] {
            assert_eq!(Parent::parse(&text), None, "{text}");
        }
    }
}
