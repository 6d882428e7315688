//! Names and references: `tenant`, `tenant/pool`, `tenant/pool/i-xxxxxxxx`.

use crate::error::Fault;
use crate::id::InstanceId;
use crate::text::{shown, string_conversions};
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The name of a tenant or a pool: 1 to 63 of `a-z 0-9 -`, no hyphen first or last (the rules of
/// an RFC 1123 label, so that names can become host names).
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend(
    "pattern" = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    "minLength" = 1,
    "maxLength" = 63
))]
pub struct Name(String);

impl Name {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let cause = if text.is_empty() {
            "is empty"
        } else if !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            "has a character other than a-z, 0-9 and '-'"
        } else if text.len() > 63 {
            "is longer than 63 characters"
        } else if text.starts_with('-') || text.ends_with('-') {
            "begins or ends with a hyphen"
        } else {
            return Ok(Name(text.to_owned()));
        };
        let shown = shown(text);
        Err(Fault::new(Code::InvalidName, format!("the name {shown:?} {cause}"))
            .hint("use 1 to 63 of a-z, 0-9 and '-', with no hyphen first or last"))
    }
}

/// A pool's full name: `tenant/pool`.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = r"^[a-z0-9-]{1,63}/[a-z0-9-]{1,63}$"))]
pub struct PoolRef {
    /// The tenant's name.
    pub tenant: Name,
    /// The pool's name inside the tenant.
    pub pool: Name,
}

impl FromStr for PoolRef {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [tenant, pool] => Ok(PoolRef { tenant: tenant.parse()?, pool: pool.parse()? }),
            _ => Err(malformed(text, "a pool", "tenant/pool, such as ci/runners")),
        }
    }
}

impl fmt::Display for PoolRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.pool)
    }
}

/// An instance's full name: `tenant/pool/i-xxxxxxxx`.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = r"^[a-z0-9-]{1,63}/[a-z0-9-]{1,63}/i-[0-9a-f]{8}$"))]
pub struct InstanceRef {
    /// The instance's pool.
    pub pool: PoolRef,
    /// The instance's id.
    pub id: InstanceId,
}

impl FromStr for InstanceRef {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [tenant, pool, id] => Ok(InstanceRef {
                pool: PoolRef { tenant: tenant.parse()?, pool: pool.parse()? },
                id: id.parse()?,
            }),
            _ => {
                Err(malformed(text, "an instance", "tenant/pool/id, such as ci/runners/i-0123abcd"))
            }
        }
    }
}

impl fmt::Display for InstanceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.id)
    }
}

fn malformed(text: &str, what: &str, form: &str) -> Fault {
    let shown: String = text.chars().take(200).collect();
    Fault::new(Code::InvalidReference, format!("{shown:?} does not name {what}"))
        .hint(format!("write it as {form}"))
}

string_conversions!(Name, PoolRef, InstanceRef);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
