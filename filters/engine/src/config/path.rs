//! From a place in a JSON text to the path of the key that stands there, so that a mistake in a long configuration is
//! found at once. (The usual library for this wraps every deserializer and is worth 200 KB in the module.)

/// The path of the value or key at `line` and `column` (from 1, in bytes, as `serde_json` counts them).
#[must_use]
pub(super) fn at(json: &[u8], line: usize, column: usize) -> String {
    let before: usize = json.split_inclusive(|&byte| byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    let end = before.saturating_add(column).min(json.len());
    let mut walker = Walker::default();
    let mut rest = json.get(..end).unwrap_or_default();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'"' {
            let length = string_length(rest);
            walker.string(rest.get(..length).unwrap_or_default());
            rest = rest.get(length.saturating_add(1)..).unwrap_or_default();
        } else {
            walker.punctuation(byte);
        }
    }
    walker.path()
}

/// Bytes up to the closing quote, or to the end.
fn string_length(bytes: &[u8]) -> usize {
    let mut escaped = false;
    let closing = |&byte: &u8| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    };
    bytes.iter().position(closing).unwrap_or(bytes.len())
}

#[derive(Default)]
struct Walker {
    open: Vec<Step>,
}

enum Step {
    /// The key last read, and whether its value has begun.
    Object {
        key: String,
        in_value: bool,
    },
    Array {
        index: usize,
    },
}

impl Walker {
    fn string(&mut self, bytes: &[u8]) {
        if let Some(Step::Object { key, in_value: false }) = self.open.last_mut() {
            *key = String::from_utf8_lossy(bytes).into_owned();
        }
    }

    fn punctuation(&mut self, byte: u8) {
        match (byte, self.open.last_mut()) {
            (b'{', _) => self.open.push(Step::Object { key: String::new(), in_value: false }),
            (b'[', _) => self.open.push(Step::Array { index: 0 }),
            (b'}' | b']', Some(_)) => {
                self.open.pop();
            }
            (b':', Some(Step::Object { in_value, .. })) => *in_value = true,
            (b',', Some(Step::Object { in_value, .. })) => *in_value = false,
            (b',', Some(Step::Array { index })) => *index = index.saturating_add(1),
            _ => {}
        }
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for step in &self.open {
            match step {
                Step::Object { key, .. } if key.is_empty() => {}
                Step::Object { key, .. } => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                }
                Step::Array { index } => path.push_str(&format!("[{index}]")),
            }
        }
        if path.is_empty() { ".".to_owned() } else { path }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_the_key_at_the_place() {
        let json = br#"{"a": [1, {"b\"x": {"c": true, "d": "e"}}], "f": {}}"#;
        for (found, path) in [
            ("true", "a[1].b\\\"x.c"),
            ("\"d\"", "a[1].b\\\"x.d"),
            ("\"e\"", "a[1].b\\\"x.d"),
            ("1,", "a[0]"),
            ("}}", "a[1].b\\\"x.d"),
            ("{\"a", "a"),
        ] {
            let text = core::str::from_utf8(json).unwrap();
            let column = text.find(found).unwrap() + found.len();
            let column = if found == "1," || found == "}}" { column - found.len() } else { column };
            assert_eq!(at(json, 1, column), path, "{found}");
        }
        assert_eq!(at(b"{\n \"a\":\n 1}", 3, 2), "a");
        assert_eq!(at(b"7", 1, 1), ".");
    }
}
