//! Identities of callers: a role and a name, written as a SPIFFE id in the only URI SAN of a
//! certificate. Also the other contents of a certificate, as the API shows them.

use mvm_model::{Code, Fault, Name, Timestamp, hex};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The prefix of all ids, with the trust domain.
const DOMAIN: &str = "spiffe://mvm/";

/// A DNS name that the certificates of all servers have besides their identity. Clients that know
/// no identities (curl) can check it.
pub const SERVER_NAME: &str = "mvm.internal";

/// What a caller may do. The table of routes ([`crate::routes`]) grants access by role alone.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// An agent on a node.
    Node,
    /// A coordinator.
    Coordinator,
    /// A person or program that may do everything.
    Operator,
    /// A person or program that may use what one tenant owns.
    TenantOperator,
    /// A machine that may become a node, once.
    Joiner,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 5] =
        [Role::Node, Role::Coordinator, Role::Operator, Role::TenantOperator, Role::Joiner];

    /// Returns the role as it is written in ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Node => "node",
            Role::Coordinator => "coordinator",
            Role::Operator => "operator",
            Role::TenantOperator => "tenant-operator",
            Role::Joiner => "joiner",
        }
    }

    /// Returns whether the role serves the API. All others only call it.
    pub fn serves(self) -> bool {
        matches!(self, Role::Node | Role::Coordinator)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The identity that a certificate proves.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^spiffe://mvm/"))]
pub enum Identity {
    /// `spiffe://mvm/node/NAME`
    Node(Name),
    /// `spiffe://mvm/coordinator/NAME`
    Coordinator(Name),
    /// `spiffe://mvm/operator/NAME`
    Operator(Name),
    /// `spiffe://mvm/tenant-operator/TENANT/NAME`
    TenantOperator {
        /// The tenant that it is confined to.
        tenant: Name,
        /// The operator's name.
        name: Name,
    },
    /// `spiffe://mvm/joiner/NAME`. The name is that of the node that the joiner may become.
    Joiner(Name),
}

impl Identity {
    /// Returns the identity's role.
    pub fn role(&self) -> Role {
        match self {
            Identity::Node(_) => Role::Node,
            Identity::Coordinator(_) => Role::Coordinator,
            Identity::Operator(_) => Role::Operator,
            Identity::TenantOperator { .. } => Role::TenantOperator,
            Identity::Joiner(_) => Role::Joiner,
        }
    }

    /// Returns the identity's name.
    pub fn name(&self) -> &Name {
        match self {
            Identity::Node(name)
            | Identity::Coordinator(name)
            | Identity::Operator(name)
            | Identity::TenantOperator { name, .. }
            | Identity::Joiner(name) => name,
        }
    }

    /// Returns the tenant that the identity is confined to, if any.
    pub fn tenant(&self) -> Option<&Name> {
        match self {
            Identity::TenantOperator { tenant, .. } => Some(tenant),
            _ => None,
        }
    }

    /// Returns the id's part after the role: `NAME`, or `TENANT/NAME`.
    fn path(&self) -> String {
        match self.tenant() {
            Some(tenant) => format!("{tenant}/{}", self.name()),
            None => self.name().to_string(),
        }
    }

    /// Returns the identity as leases name a holder and logs a caller: `operator:alice`,
    /// `tenant-operator:ci/bob`.
    pub fn holder(&self) -> String {
        format!("{}:{}", self.role(), self.path())
    }

    /// Returns the identity as a part of a record's key: `operator/alice`,
    /// `tenant-operator/ci/bob`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.role(), self.path())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DOMAIN}{}", self.key())
    }
}

impl FromStr for Identity {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let path = text.strip_prefix(DOMAIN).ok_or_else(|| malformed(text))?;
        match path.split('/').collect::<Vec<_>>()[..] {
            ["node", name] => Ok(Identity::Node(name.parse()?)),
            ["coordinator", name] => Ok(Identity::Coordinator(name.parse()?)),
            ["operator", name] => Ok(Identity::Operator(name.parse()?)),
            ["tenant-operator", tenant, name] => {
                Ok(Identity::TenantOperator { tenant: tenant.parse()?, name: name.parse()? })
            }
            ["joiner", name] => Ok(Identity::Joiner(name.parse()?)),
            _ => Err(malformed(text)),
        }
    }
}

fn malformed(text: &str) -> Fault {
    let shown: String = text.chars().take(200).collect();
    Fault::new(Code::InvalidReference, format!("{shown:?} is not a valid mvm identity"))
        .hint("write it as spiffe://mvm/ROLE/NAME, such as spiffe://mvm/operator/alice")
}

impl TryFrom<String> for Identity {
    type Error = Fault;
    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> String {
        identity.to_string()
    }
}

/// A certificate's serial number, in hexadecimal digits.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Serial(String);

impl Serial {
    /// Makes a serial number of its bytes, most significant first.
    pub fn of(bytes: &[u8]) -> Serial {
        let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        Serial(hex::digits(&bytes[first..]))
    }

    /// Returns the number's bytes, most significant first.
    pub fn bytes(&self) -> Vec<u8> {
        let digits = self.0.as_bytes();
        let value = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
        digits.chunks(2).map(|pair| pair.iter().fold(0, |sum, d| sum << 4 | value(*d))).collect()
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The period in which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Validity {
    /// The first valid millisecond since the Unix epoch.
    pub not_before: Timestamp,
    /// The first millisecond after the period.
    pub not_after: Timestamp,
}

/// The contents of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Facts {
    /// The identity that the certificate proves.
    pub identity: Identity,
    /// The certificate's serial number.
    pub serial: Serial,
    /// The period in which the certificate is valid.
    #[serde(flatten)]
    pub validity: Validity,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = Name> {
        "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?".prop_map(|text| text.parse().expect("a name"))
    }

    fn identity() -> impl Strategy<Value = Identity> {
        prop_oneof![
            name().prop_map(Identity::Node),
            name().prop_map(Identity::Coordinator),
            name().prop_map(Identity::Operator),
            (name(), name()).prop_map(|(tenant, name)| Identity::TenantOperator { tenant, name }),
            name().prop_map(Identity::Joiner),
        ]
    }

    proptest! {
        #[test]
        fn an_identity_survives_being_written(identity in identity()) {
            prop_assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        }

        /// Each identity is written in one way: writing what was read gives the same text.
        #[test]
        fn what_is_read_was_written_so(text in "(spiffe://mvm/)?[a-z/.:A-Z0-9 -]{0,40}|.*") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }

        /// A changed id is invalid or a different identity, never the same one.
        #[test]
        fn a_changed_id_is_another_or_none(identity in identity(), at in any::<prop::sample::Index>(), byte in 0x20u8..0x7f) {
            let mut text = identity.to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            let text = String::from_utf8(text).unwrap();
            if let Ok(read) = text.parse::<Identity>() {
                prop_assert_eq!(read == identity, text == identity.to_string());
            }
        }
    }
}
