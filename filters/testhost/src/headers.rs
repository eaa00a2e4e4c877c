//! Header maps, and the bytes in which they cross the ABI.

/// An ordered header map with lower-case names. Values are bytes: HTTP does not promise UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    /// The first value under `name`, if it is UTF-8.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_bytes(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first value under `name`: what Envoy hands to a filter when several lines carry one name.
    #[must_use]
    pub fn get_bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }

    /// Every pair in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.0.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
    }

    /// Leaves exactly one line under `name`, at the place of the first one.
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) {
        match self.0.iter().position(|(key, _)| key.eq_ignore_ascii_case(name)) {
            None => self.add(name, value),
            Some(first) => {
                self.0[first].1 = value.as_ref().to_vec();
                let mut index = 0;
                self.0.retain(|(key, _)| {
                    let keep = index <= first || !key.eq_ignore_ascii_case(name);
                    index += 1;
                    keep
                });
            }
        }
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    /// Count, then the lengths of all names and values, then the strings, each ended by a NUL. Integers are
    /// little-endian `u32`.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a header of more than 4 GiB").to_le_bytes();
        let mut bytes = u32::try_from(self.0.len()).expect("more than u32::MAX headers").to_le_bytes().to_vec();
        for (name, value) in &self.0 {
            bytes.extend_from_slice(&length(name.as_bytes()));
            bytes.extend_from_slice(&length(value));
        }
        for (name, value) in &self.0 {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(value);
            bytes.push(0);
        }
        bytes
    }

    /// Panics on bytes that no SDK writes.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::default();
        }
        let integer = |at: usize| {
            let field = bytes.get(at..at + 4).expect("a header map is cut off inside its lengths");
            u32::from_le_bytes(field.try_into().expect("four bytes")) as usize
        };
        let count = integer(0);
        let mut at = 4 + count * 8;
        let mut take = |length: usize| {
            let field = bytes.get(at..at + length).expect("a header map is cut off inside its strings");
            at += length + 1;
            field.to_vec()
        };
        let mut headers = Self::default();
        for index in 0..count {
            let name = take(integer(4 + index * 8));
            let value = take(integer(8 + index * 8));
            let name = String::from_utf8(name).expect("a header name that is not UTF-8");
            headers.add(&name, value);
        }
        headers
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Self::default();
        for (name, value) in pairs {
            headers.add(name.as_ref(), value);
        }
        headers
    }
}

impl From<&[(&str, &str)]> for Headers {
    fn from(pairs: &[(&str, &str)]) -> Self {
        pairs.iter().copied().collect()
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(pairs: [(&str, &str); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl<const N: usize> From<&[(&str, &str); N]> for Headers {
    fn from(pairs: &[(&str, &str); N]) -> Self {
        pairs.iter().copied().collect()
    }
}

impl From<Vec<(String, Vec<u8>)>> for Headers {
    fn from(pairs: Vec<(String, Vec<u8>)>) -> Self {
        pairs.into_iter().collect()
    }
}
