//! The digests by which images and kernels are named.

use crate::error::Fault;
use crate::hex;
use crate::text::{invalid, plain_schema, string_conversions};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// How many digits of a digest people see and type.
const SHORT: usize = 12;

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest that has this value.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }

    /// Returns the digest of this content.
    pub fn of(content: impl AsRef<[u8]>) -> Self {
        Digest(Sha256::digest(content).into())
    }

    /// Returns the first twelve digits: what people see and type.
    pub fn short(self) -> String {
        self.to_string()[..SHORT].to_owned()
    }

    /// Returns whether the digest's text begins with these digits.
    pub fn begins_with(self, digits: &str) -> bool {
        self.to_string().starts_with(digits)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::digits(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let mut bytes = [0; 32];
        let fits = text.len() == 2 * bytes.len();
        let pairs = text.as_bytes().chunks_exact(2);
        let read = bytes.iter_mut().zip(pairs).try_for_each(|(byte, pair)| {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
            Some(())
        });
        read.filter(|()| fits).map(|()| Digest(bytes)).ok_or_else(|| {
            invalid(text, "digest")
                .hint("a digest is 64 hexadecimal digits, as `mvm image list -o json` shows")
        })
    }
}

string_conversions!(Digest);
plain_schema!(Digest as String);

/// Returns the value of a digit. There is one text for each digest, so capitals are none.
fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}
