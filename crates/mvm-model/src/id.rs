//! The ids of instances and jobs: a letter and eight hexadecimal digits, unique on a node.

use crate::error::Fault;
use crate::text::string_conversions;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $letter:literal, $pattern:literal, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(try_from = "String", into = "String")]
        #[schemars(extend("pattern" = $pattern))]
        pub struct $name(u32);

        impl $name {
            /// Returns the id with this number; the caller chooses a random one.
            pub fn from_number(number: u32) -> Self {
                $name(number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "-{:08x}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Fault;

            fn from_str(text: &str) -> Result<Self, Fault> {
                number(text, concat!($letter, "-")).map($name).ok_or_else(|| {
                    let shown: String = text.chars().take(80).collect();
                    let message = format!(concat!("{:?} is not a valid ", $what, " id"), shown);
                    let hint = concat!(
                        "an id is ", $letter, "- and eight hexadecimal digits, such as ", $letter,
                        "-0123abcd"
                    );
                    Fault::new(Code::InvalidReference, message).hint(hint)
                })
            }
        }

        string_conversions!($name);
    )*};
}

ids! {
    /// `i-` and eight hexadecimal digits, unique on a node.
    InstanceId, "i", r"^i-[0-9a-f]{8}$", "instance";
    /// `j-` and eight hexadecimal digits, unique on a node.
    JobId, "j", r"^j-[0-9a-f]{8}$", "job";
}

impl InstanceId {
    /// Returns the eight digits without `i-`, as in the name of the tap.
    pub fn digits(self) -> String {
        format!("{:08x}", self.0)
    }
}

fn number(text: &str, prefix: &str) -> Option<u32> {
    let digits = text.strip_prefix(prefix)?;
    let plain = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}
