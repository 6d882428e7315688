//! Bytes in hexadecimal digits.

use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Returns these bytes, two lower-case digits each.
pub fn digits(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // A string takes whatever is written to it.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the SHA-256 of these bytes, 64 digits.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    digits(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_two_digits() {
        assert_eq!(digits([0, 9, 10, 255]), "00090aff");
        // The digest of nothing, as FIPS 180-4's test vectors have it.
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(""), nothing);
    }
}
