//! Who is asking: an API key to a principal.

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use crate::config::Config;

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

/// The principal of a key. Every configured digest is compared in full, whatever matches: the time taken says nothing
/// about which keys exist.
#[must_use]
pub fn identify(config: &Config, key: &[u8]) -> Option<Principal> {
    let digest = KeyDigest::of(key).words();
    let mut found = u32::MAX;
    for (i, entry) in (0_u32..).zip(&config.keys) {
        let differences =
            entry.sha256.words().into_iter().zip(digest).fold(0, |all, (known, asked)| all | (known ^ asked));
        found.conditional_assign(&i, differences.ct_eq(&0));
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
}
