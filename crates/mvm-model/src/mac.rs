//! MAC addresses.

use crate::error::Fault;
use crate::text::{invalid, plain_schema, string_conversions};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A MAC address, written as `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Returns the address that has these bytes.
    pub const fn from_bytes(bytes: [u8; 6]) -> Mac {
        Mac(bytes)
    }

    /// Returns the bytes of the address.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Mac, Fault> {
        bytes(text).map(Mac).ok_or_else(|| {
            invalid(text, "MAC address").hint("write it as six bytes: 02:00:00:00:00:01")
        })
    }
}

fn bytes(text: &str) -> Option<[u8; 6]> {
    let byte = |part: &str| {
        // The standard parser also takes a sign.
        let plain = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        u8::from_str_radix(part, 16).ok().filter(|_| plain)
    };
    let bytes: Vec<u8> = text.split(':').map(byte).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

string_conversions!(Mac);
plain_schema!(Mac as String);

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_code::Code;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "aa:bb",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:1",
            "02:00:00:00:00:+1",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:01 ",
            "02-00-00-00-00-01",
            "} drop",
        ] {
            let fault = text.parse::<Mac>().expect_err(text);
            assert_eq!(fault.code, Code::InvalidValue, "{text}");
            assert!(serde_json::from_value::<Mac>(text.into()).is_err(), "{text}");
        }
        assert_eq!("02:0A:0b:00:00:FF".parse(), Ok(Mac([2, 10, 11, 0, 0, 255])));
    }

    proptest! {
        #[test]
        fn an_address_is_read_as_it_was_written(bytes: [u8; 6]) {
            let mac = Mac::from_bytes(bytes);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            let json = serde_json::to_value(mac).expect("JSON");
            prop_assert_eq!(&json, &serde_json::Value::from(mac.to_string()));
            prop_assert_eq!(serde_json::from_value::<Mac>(json).expect("an address"), mac);
        }

        #[test]
        fn any_text_is_an_address_or_refused(text in "([0-9a-fA-F+ ]{0,3}:?){0,8}|\\PC{0,20}") {
            if let Ok(mac) = text.parse::<Mac>() {
                prop_assert_eq!(mac.to_string(), text.to_ascii_lowercase());
            }
        }
    }
}
