//! The trace id: a UUIDv7 (RFC 9562 §5.7), which is also the LangSmith run id.

/// The UUIDv7 of a time in microseconds and of ten random bytes.
#[must_use]
pub fn uuid_v7(now_us: u64, random: [u8; 10]) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let [_, _, time @ ..] = (now_us / 1000).to_be_bytes();
    let [a, b, c, rest @ ..] = random;
    let mut bytes = [0_u8; 16];
    let fields = time.into_iter().chain([0x70 | (a & 0x0f), b, 0x80 | (c & 0x3f)]).chain(rest);
    bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.into_iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for nibble in [byte >> 4, byte & 0x0f] {
            text.push(char::from(HEX.get(usize::from(nibble)).copied().unwrap_or(b'0')));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_rfc_9562s() {
        let id = uuid_v7(0x0191_2345_6789 * 1000, [0xff; 10]);
        assert_eq!(id, "01912345-6789-7fff-bfff-ffffffffffff");
    }
}
