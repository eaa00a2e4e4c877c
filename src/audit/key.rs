//! The key under which text hashes are written.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::accesslog::position::hex;
use crate::spool::durable;

const LEN: usize = 32;

/// Thirty-two random bytes from a file that only its owner reads.
pub struct Key([u8; LEN]);

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(secret)")
    }
}

impl Key {
    pub fn load_or_make(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => {
                let key = bytes.try_into().map_err(|_| {
                    let text = format!("{} does not hold the {LEN} bytes of a key", path.display());
                    io::Error::new(io::ErrorKind::InvalidData, text)
                })?;
                Ok(Self(key))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = [0_u8; LEN];
                rustls::crypto::ring::default_provider()
                    .secure_random
                    .fill(&mut key)
                    .map_err(|_| io::Error::other("the system gives no random bytes for the audit key"))?;
                durable::replace(path, &key)?;
                Ok(Self(key))
            }
            Err(error) => Err(error),
        }
    }

    /// HMAC-SHA256 in hexadecimal.
    pub fn hmac(&self, message: &[u8]) -> String {
        // HMAC takes a key of any length: there is no error.
        Hmac::<Sha256>::new_from_slice(&self.0)
            .map(|mac| hex(&mac.chain_update(message).finalize().into_bytes()))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hmac_is_the_standards() {
        // RFC 4231 §4.2 with its 20-byte key padded by zeros to 32, which HMAC defines to be the same key.
        let mut key = [0_u8; LEN];
        key[..20].fill(0x0b);
        let expected = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7";
        assert_eq!(Key(key).hmac(b"Hi There"), expected);
    }

    #[test]
    fn a_key_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = Key::load_or_make(&path).unwrap().hmac(b"x");
        assert_eq!(Key::load_or_make(&path).unwrap().hmac(b"x"), first);
        fs::write(&path, b"short").unwrap();
        assert!(Key::load_or_make(&path).is_err());
    }
}
