//! Who is asking: an API key to a principal.

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use crate::config::{Config, Key};

/// Who is asking, and under which policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub tenant: String,
    pub user: String,
    pub policy: String,
}

/// The SHA-256 of an API key: what the configuration holds instead of the key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// From its 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
        if pairs.len() != digest.len() {
            return None;
        }
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        Some(Self(digest))
    }

    fn words(self) -> [u64; 4] {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(self.0.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        words
    }
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// The key of `Authorization: Bearer KEY`, else of `x-api-key: KEY`.
#[must_use]
pub fn presented<'a>(authorization: Option<&'a [u8]>, x_api_key: Option<&'a [u8]>) -> Option<&'a [u8]> {
    authorization.and_then(bearer).or(x_api_key).map(<[u8]>::trim_ascii).filter(|key| !key.is_empty())
}

/// RFC 6750 §2.1; the scheme's name is case-insensitive (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
}

/// The configured keys by some bits of their digest, so that tens of thousands take no longer than four. Which bucket is
/// searched tells something of the digest of the key that was asked with, which its owner knows anyway.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// Positions in the configuration's keys; as many buckets as a power of two.
    buckets: Vec<Vec<u32>>,
}

/// Beyond it buckets hold several keys each.
const MAX_BUCKETS: usize = 65_536;

impl Index {
    #[must_use]
    pub fn of(keys: &[Key]) -> Self {
        let mut index = Self { buckets: vec![Vec::new(); keys.len().min(MAX_BUCKETS).next_power_of_two()] };
        for (position, key) in (0_u32..).zip(keys) {
            let bucket = index.bucket(&key.sha256);
            if let Some(bucket) = index.buckets.get_mut(bucket) {
                bucket.push(position);
            }
        }
        index
    }

    const fn bucket(&self, digest: &KeyDigest) -> usize {
        let [low, high, ..] = digest.0;
        (u16::from_le_bytes([low, high]) as usize) & self.buckets.len().saturating_sub(1)
    }

    /// The keys among which one with this digest is, if there is one.
    pub(crate) fn candidates<'a>(
        &'a self,
        keys: &'a [Key],
        digest: &KeyDigest,
    ) -> impl Iterator<Item = (u32, &'a Key)> {
        let positions = self.buckets.get(self.bucket(digest)).into_iter().flatten();
        positions.filter_map(|&position| Some((position, keys.get(usize::try_from(position).ok()?)?)))
    }
}

/// The principal of a key. Each candidate's digest is compared in full, whatever matches: the time taken says nothing of
/// how much of one was right.
#[must_use]
pub fn identify(config: &Config, key: &[u8]) -> Option<Principal> {
    let digest = KeyDigest::of(key);
    let mut found = u32::MAX;
    for (position, candidate) in config.key_index.candidates(&config.keys, &digest) {
        let words = candidate.sha256.words().into_iter().zip(digest.words());
        let differences = words.fold(0, |all, (known, asked)| all | (known ^ asked));
        found.conditional_assign(&position, differences.ct_eq(&0));
    }
    let entry = config.keys.get(usize::try_from(found).ok()?)?;
    Some(Principal { tenant: entry.tenant.clone(), user: entry.user.clone(), policy: entry.policy.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_from_either_header_and_bearer_wins() {
        type Header = Option<&'static [u8]>;
        let cases: [(Header, Header, Header); 7] = [
            (Some(b"Bearer sk-1"), None, Some(b"sk-1")),
            (Some(b"bearer   sk-1 "), None, Some(b"sk-1")),
            (None, Some(b"sk-2"), Some(b"sk-2")),
            (Some(b"Bearer sk-1"), Some(b"sk-2"), Some(b"sk-1")),
            (Some(b"Basic dXNlcg=="), Some(b"sk-2"), Some(b"sk-2")),
            (Some(b"Bearer "), None, None),
            (None, None, None),
        ];
        for (authorization, x_api_key, expected) in cases {
            assert_eq!(presented(authorization, x_api_key), expected);
        }
    }

    #[test]
    fn every_key_of_many_is_found_and_no_other() {
        let name = |i: usize| format!("sk-{i}");
        for count in [0, 1, 2, 3, 5000] {
            let keys: Vec<Key> = (0..count)
                .map(|i| Key { sha256: KeyDigest::of(name(i).as_bytes()), user: name(i), ..Key::default() })
                .collect();
            let config = Config { key_index: Index::of(&keys), keys, ..Config::default() };
            let user = |i: usize| identify(&config, name(i).as_bytes()).map(|principal| principal.user);
            assert!((0..count).all(|i| user(i) == Some(name(i))));
            assert!((count..count + 100).all(|i| user(i).is_none()));
        }
    }
}
