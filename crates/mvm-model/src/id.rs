//! The ids of instances, jobs and leases: a letter and eight hexadecimal digits, unique on a node;
//! sixteen digits where a lease is a claim's, unique in a fleet.

use crate::error::Fault;
use crate::text::{plain_schema, shown, string_conversions};
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
                    let hint = concat!(
                        "an id is ", $letter, "- and eight hexadecimal digits, such as ", $letter,
                        "-0123abcd"
                    );
                    invalid(text, $what).hint(hint)
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

/// The id of a lease. One that a node draws is `l-` and eight hexadecimal digits, unique on the
/// node. A lease of a fleet's claim has the claim's id: `l-` and sixteen digits, unique in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LeaseId(LeaseNumber);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum LeaseNumber {
    OfNode(u32),
    OfClaim(u64),
}

impl LeaseId {
    /// Returns the id of a node's own lease with this number; the caller chooses a random one.
    pub const fn from_number(number: u32) -> Self {
        LeaseId(LeaseNumber::OfNode(number))
    }

    /// Returns the id of the claim with this number, and so of its lease.
    pub const fn of_claim(number: u64) -> Self {
        LeaseId(LeaseNumber::OfClaim(number))
    }

    /// Returns whether the id belongs to a fleet's claim.
    pub fn is_claim(self) -> bool {
        matches!(self.0, LeaseNumber::OfClaim(_))
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            LeaseNumber::OfNode(number) => write!(f, "l-{number:08x}"),
            LeaseNumber::OfClaim(number) => write!(f, "l-{number:016x}"),
        }
    }
}

impl FromStr for LeaseId {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let of_claim = || claim_number(text).map(LeaseId::of_claim);
        number(text, "l-").map(LeaseId::from_number).or_else(of_claim).ok_or_else(|| {
            invalid(text, "lease")
                .hint("an id is l- and eight or sixteen hexadecimal digits, such as l-0123abcd")
        })
    }
}

string_conversions!(LeaseId);
plain_schema!(LeaseId as String);

fn invalid(text: &str, what: &str) -> Fault {
    let shown = shown(text);
    Fault::new(Code::InvalidReference, format!("{shown:?} is not a valid {what} id"))
}

fn number(text: &str, prefix: &str) -> Option<u32> {
    u32::from_str_radix(digits(text, prefix, 8)?, 16).ok()
}

fn claim_number(text: &str) -> Option<u64> {
    u64::from_str_radix(digits(text, "l-", 16)?, 16).ok()
}

/// Returns the digits after the prefix, if they are so many: `from_str_radix` takes a sign as well.
fn digits<'a>(text: &'a str, prefix: &str, count: usize) -> Option<&'a str> {
    let digits = text.strip_prefix(prefix)?;
    let plain = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (plain && digits.len() == count).then_some(digits)
}
