//! The join token: a string with all that a machine needs to become a node.
//!
//! The token carries a short-lived certificate that is valid for joining only, and the authority to
//! trust. So joining is mutual TLS like everything else.

use crate::directory::{Credential, Signers};
use crate::error::{Cause, Error, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mvm_api::identity::{Identity, Role};
use mvm_model::{Name, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The prefix of every token, by which people and scanners for secrets recognise one.
const PREFIX: &str = "mvm-join-";
/// The version of the format after the prefix.
const VERSION: u32 = 1;
/// The longest token, in bytes.
const LONGEST: usize = 16 * 1024;

/// A join token: a secret. Its holder may become the node that it names.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    version: u32,
    /// The signer's addresses: `HOST:PORT`.
    pub addresses: Vec<String>,
    /// The authority's certificate, in PEM.
    pub ca: String,
    /// The joiner's certificate, in PEM.
    pub certificate: String,
    /// The joiner's key, in PEM.
    pub key: String,
}

impl JoinToken {
    /// Makes a token of these parts.
    pub fn new(addresses: Vec<String>, ca: String, certificate: String, key: String) -> JoinToken {
        JoinToken { version: VERSION, addresses, ca, certificate, key }
    }

    /// Returns the joiner's identity, and the name of the node that it may become. Refused where
    /// the token has expired at `now`.
    pub fn credential(&self, now: Timestamp) -> Result<(Credential, Name)> {
        let both = format!("{}\n{}", self.certificate, self.key);
        let signers = Signers { addresses: self.addresses.clone() };
        let credential = Credential::read(both.as_bytes(), self.ca.as_bytes(), None, signers)
            .map_err(invalid)?;
        let Identity::Joiner(name) = &credential.facts.identity else {
            let role = credential.facts.identity.role();
            return Err(invalid(format!(
                "its certificate is for a {role}, not a {}",
                Role::Joiner
            )));
        };
        let name = name.clone();
        if now >= credential.facts.validity.not_after {
            return Err(Error::TokenExpired(name));
        }
        Ok((credential, name))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A plain struct of strings cannot fail to serialise.
        let json = serde_json::to_vec(self).unwrap_or_default();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(invalid("it is too long"));
        }
        let coded = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| invalid(format!("it does not begin with {PREFIX}")))?;
        let json = URL_SAFE_NO_PAD.decode(coded).map_err(invalid)?;
        let token: JoinToken = serde_json::from_slice(&json).map_err(invalid)?;
        if token.version != VERSION {
            return Err(invalid(format!("its version is {}, not {VERSION}", token.version)));
        }
        if token.addresses.is_empty() {
            return Err(invalid("it names no address"));
        }
        Ok(token)
    }
}

fn invalid(cause: impl Into<Cause>) -> Error {
    Error::Token(cause.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Code;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_survives_being_written(
            addresses in prop::collection::vec(".{0,30}", 1..4),
            ca in ".{0,200}", certificate in ".{0,200}", key in ".{0,200}",
        ) {
            let token = JoinToken::new(addresses, ca, certificate, key.clone());
            let text = token.to_string();
            prop_assert_eq!(format!("  {text}\n").parse::<JoinToken>().unwrap(), token.clone());
            let shown = format!("{token:?}");
            prop_assert!(key.len() < 8 || !shown.contains(&key));
        }

        #[test]
        fn no_bytes_bring_the_reader_down(text in ".{0,200}", json in ".{0,100}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("{PREFIX}{text}").parse::<JoinToken>();
            let coded = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json));
            prop_assert_eq!(coded.parse::<JoinToken>().unwrap_err().code(), Code::TokenInvalid);
        }

        /// A token that was truncated or has an extra character is refused.
        #[test]
        fn a_torn_token_is_refused(at in any::<prop::sample::Index>()) {
            let token = JoinToken::new(vec!["a:1".into()], "b".into(), "c".into(), "d".into());
            let text = token.to_string();
            let cut = &text[..at.index(text.len())];
            prop_assert_eq!(cut.parse::<JoinToken>().unwrap_err().code(), Code::TokenInvalid);
            let longer = format!("{text}A");
            prop_assert!(longer.parse::<JoinToken>().is_err());
        }
    }
}
