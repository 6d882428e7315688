//! Values of arguments that are more than a word: read before anything is done, so that a fault in
//! one is wrong usage and no agent is started for it.

use mvm_model::{Code, Fault, InstanceRef, Name, PoolRef};
use std::collections::BTreeMap;
use std::str::FromStr;

/// What a list is narrowed down to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// `tenant`
    Tenant(Name),
    /// `tenant/pool`
    Pool(PoolRef),
}

impl FromStr for Of {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.contains('/') {
            true => text.parse().map(Of::Pool),
            false => text.parse().map(Of::Tenant),
        }
    }
}

/// Where a file is copied from or to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path here.
    Local(String),
    /// `tenant/pool/id:/path`
    Guest(InstanceRef, String),
}

impl FromStr for Place {
    type Err = Fault;

    /// `a/b/i-…:path` is in an instance; what begins with `.` or `/`, or looks otherwise, is here.
    fn from_str(text: &str) -> Result<Self, Fault> {
        let local = || Ok(Place::Local(text.to_owned()));
        let Some((reference, path)) = text.split_once(':') else { return local() };
        let parts: Vec<&str> = reference.split('/').collect();
        match parts[..] {
            [tenant, _, id] if id.starts_with("i-") && !matches!(tenant, "" | "." | "..") => {
                Ok(Place::Guest(reference.parse()?, path.to_owned()))
            }
            _ => local(),
        }
    }
}

/// `NAME=VALUE`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What stands before the first `=`, never empty.
    pub name: String,
    /// What stands behind it.
    pub value: String,
}

impl FromStr for Pair {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Pair { name: name.to_owned(), value: value.to_owned() })
            }
            Some(_) => Err(Fault::new(Code::InvalidValue, "nothing stands before the '='")),
            None => Err(Fault::new(Code::InvalidValue, "there is no '=' in it")),
        }
    }
}

/// An environment; of a name that stands twice, the last counts.
pub fn environment(pairs: &[Pair]) -> BTreeMap<String, String> {
    pairs.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_an_instance_only_if_it_says_so() {
        let guest = |text: &str| matches!(text.parse::<Place>(), Ok(Place::Guest(..)));
        let local = |text: &str| matches!(text.parse::<Place>(), Ok(Place::Local(_)));
        assert!(guest("ci/runners/i-0123abcd:/work"));
        assert!(guest("ci/runners/i-0123abcd:"));
        for text in ["src", "./src", "a:b", "/a/i-0123abcd:/x", "./a/i-0123abcd:x", "../a/i-b:x"] {
            assert!(local(text), "{text}");
        }
        for text in ["Ci/runners/i-0123abcd:/work", "ci/runners/i-xyz:/work"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pair_has_a_name() {
        let pair = |text: &str| text.parse::<Pair>().map(|p| (p.name, p.value));
        assert_eq!(pair("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(pair("A=").unwrap(), ("A".into(), String::new()));
        assert!(pair("=b").is_err() && pair("A").is_err() && pair("").is_err());
    }
}
