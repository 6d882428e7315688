//! The CPU models of a pool's machines: the host's own CPU, or a named model that hosts with
//! different CPUs can offer alike.
//!
//! A name is all that is compared between hosts, so that it must mean the same everywhere: a machine
//! gets the model in full, or is not started.

use crate::error::Fault;
use crate::text::{invalid, string_conversions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The CPU model that a pool's machines have: the host's own, or a named one that hosts with
/// different CPUs can offer alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", "minLength" = 1, "maxLength" = 48))]
pub struct CpuModel(String);

/// The word for the host's own CPU.
const HOST: &str = "host";
/// The longest name in bytes; QEMU's longest has 30.
const LONGEST: usize = 48;

impl CpuModel {
    /// Returns the model as text, in QEMU's words.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the model; `None` for the host's own CPU.
    pub fn named(&self) -> Option<&str> {
        (!self.is_host()).then_some(self.as_str())
    }

    /// Returns whether machines see the host's own CPU.
    pub fn is_host(&self) -> bool {
        self.0 == HOST
    }
}

impl Default for CpuModel {
    fn default() -> Self {
        CpuModel(HOST.to_owned())
    }
}

impl FromStr for CpuModel {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let fits = (1..=LONGEST).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if fits && !text.starts_with(['.', '_', '-']) {
            return Ok(CpuModel(text.to_owned()));
        }
        let hint =
            "write host, or a name of `qemu-system-x86_64 -cpu help`, such as EPYC or Nehalem";
        Err(invalid(text, "CPU model").hint(hint))
    }
}

string_conversions!(CpuModel);

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A CPU model that a hypervisor knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedModel {
    /// The name.
    pub name: CpuModel,
    /// The version that the name stands for, if it stands for one.
    pub alias_of: Option<CpuModel>,
    /// The features of the model that cannot be had here.
    pub lacks: Vec<String>,
    /// Whether the model is the same on every host that offers it in full.
    pub is_fixed: bool,
}

/// Why no machine gets a CPU model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuModelFault {
    /// The hypervisor does not know the name.
    Unknown,
    /// The name stands for something else on every host.
    Varies,
    /// The model has no 64-bit mode.
    Narrow,
    /// These features of the model cannot be had here.
    Lacks(Vec<String>),
}

/// How many lacking features, and how many other models, a message names.
const SHOWN: usize = 8;

impl fmt::Display for CpuModelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuModelFault::Unknown => f.write_str("QEMU knows no model of that name"),
            CpuModelFault::Varies => {
                f.write_str("that name is another CPU on every host; say host instead")
            }
            CpuModelFault::Narrow => f.write_str("it has no 64-bit mode, which guests need"),
            CpuModelFault::Lacks(features) => {
                write!(f, "these of its features cannot be had: {}", list(features))
            }
        }
    }
}

/// Returns the first of these words, and how many more there are.
fn list(words: &[String]) -> String {
    let (shown, rest) = words.split_at(words.len().min(SHOWN));
    match rest.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The models of QEMU without the 64-bit mode, without their versions.
const NARROW: [&str; 10] = [
    "486", "athlon", "base", "coreduo", "kvm32", "n270", "pentium", "pentium2", "pentium3",
    "qemu32",
];

/// Returns whether a model has no 64-bit mode.
fn is_narrow(model: &CpuModel) -> bool {
    NARROW.contains(&unversioned(model))
}

/// Returns a name without its version: `EPYC` for `EPYC-v2`.
fn unversioned(model: &CpuModel) -> &str {
    let name = model.as_str();
    match name.rsplit_once("-v") {
        Some((base, version)) if version.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => name,
    }
}

/// Returns the model that machines get for a name: its present version where the name has several,
/// so that it is the same after the next upgrade of the hypervisor.
pub fn choose(name: &CpuModel, offered: &[OfferedModel]) -> Result<CpuModel, CpuModelFault> {
    let found = offered.iter().find(|one| one.name == *name).ok_or(CpuModelFault::Unknown)?;
    if is_narrow(name) {
        Err(CpuModelFault::Narrow)
    } else if !found.is_fixed {
        Err(CpuModelFault::Varies)
    } else if !found.lacks.is_empty() {
        Err(CpuModelFault::Lacks(found.lacks.clone()))
    } else {
        Ok(found.alias_of.as_ref().unwrap_or(&found.name).clone())
    }
}

/// Returns the names that machines can get, without their versions, for a message.
pub fn choices(offered: &[OfferedModel]) -> String {
    let fits = |one: &&OfferedModel| {
        unversioned(&one.name) == one.name.as_str() && choose(&one.name, offered).is_ok()
    };
    let mut names: Vec<String> =
        offered.iter().filter(fits).map(|one| one.name.to_string()).collect();
    names.sort_unstable();
    list(&names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_code::Code;
    use proptest::prelude::*;

    fn offered(name: &str, alias_of: Option<&str>, lacks: &[&str]) -> OfferedModel {
        OfferedModel {
            name: name.parse().expect(name),
            alias_of: alias_of.map(|name| name.parse().expect(name)),
            lacks: lacks.iter().map(ToString::to_string).collect(),
            is_fixed: name != "max",
        }
    }

    fn some() -> Vec<OfferedModel> {
        vec![
            offered("Nehalem", Some("Nehalem-v1"), &[]),
            offered("Nehalem-v1", None, &[]),
            offered("EPYC", Some("EPYC-v1"), &["sha-ni", "topoext"]),
            offered("EPYC-v1", None, &["sha-ni", "topoext"]),
            offered("max", None, &[]),
            offered("qemu32-v1", None, &[]),
            offered("qemu32", Some("qemu32-v1"), &[]),
        ]
    }

    #[test]
    fn a_cpu_model_is_a_word_without_options() {
        for good in ["host", "EPYC-Milan-v2", "Nehalem", "qemu64", "486", "Opteron_G1"] {
            assert_eq!(good.parse::<CpuModel>().expect(good).as_str(), good);
        }
        let long = "x".repeat(49);
        for bad in ["", "host,+svm", "-S", "EPYC enforce", "é", "EPYC\n", long.as_str()] {
            assert_eq!(bad.parse::<CpuModel>().expect_err(bad).code, Code::InvalidValue);
        }
        assert!(CpuModel::default().is_host());
    }

    #[test]
    fn a_name_gets_the_version_that_it_stands_for_or_is_refused() {
        let chosen = |name: &str| choose(&name.parse().expect(name), &some());
        assert_eq!(chosen("Nehalem").expect("it").as_str(), "Nehalem-v1");
        assert_eq!(chosen("Nehalem-v1").expect("it").as_str(), "Nehalem-v1");
        assert_eq!(chosen("nehalem"), Err(CpuModelFault::Unknown));
        assert_eq!(chosen("max"), Err(CpuModelFault::Varies));
        assert_eq!(chosen("qemu32"), Err(CpuModelFault::Narrow));
        assert_eq!(chosen("qemu32-v1"), Err(CpuModelFault::Narrow));
        let lacking = chosen("EPYC").expect_err("it lacks some");
        assert!(lacking.to_string().ends_with("sha-ni, topoext"), "{lacking}");
        assert_eq!(choices(&some()), "Nehalem");
        let many: Vec<String> = (0..10).map(|n| format!("f{n}")).collect();
        assert!(CpuModelFault::Lacks(many).to_string().ends_with("f7 and 2 more"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic_and_what_is_read_is_one_word(text in ".{0,60}") {
            match text.parse::<CpuModel>() {
                Ok(model) => {
                    prop_assert_eq!(model.as_str(), text.as_str());
                    prop_assert!(!text.contains([',', '=', '+', ' ', '\0', '\n']));
                    prop_assert!(!text.starts_with('-') && text.len() <= LONGEST);
                }
                Err(fault) => prop_assert_eq!(fault.code, Code::InvalidValue),
            }
        }

        #[test]
        fn a_model_is_the_same_word_in_json_and_in_its_schema(
            text in "[A-Za-z0-9][A-Za-z0-9._-]{0,47}",
        ) {
            let model: CpuModel = text.parse().expect("it fits the pattern");
            let json = serde_json::to_string(&model).expect("JSON");
            prop_assert_eq!(&json, &format!("{text:?}"));
            prop_assert_eq!(serde_json::from_str::<CpuModel>(&json).expect("JSON"), model.clone());
            prop_assert_eq!(model.named().is_none(), text == "host");
        }

        #[test]
        fn whatever_is_chosen_lacks_nothing_and_is_fixed(
            lacks: Vec<bool>, is_fixed: bool, at in any::<proptest::sample::Index>(),
        ) {
            let one = |(number, lacks): (usize, &bool)| OfferedModel {
                is_fixed,
                ..offered(&format!("m{number}"), None, if *lacks { &["x"] } else { &[] })
            };
            let all: Vec<OfferedModel> = lacks.iter().enumerate().map(one).collect();
            let name: CpuModel = format!("m{}", at.index(lacks.len() + 1)).parse().expect("a name");
            let found = all.iter().find(|one| one.name == name);
            let fits = found.is_some_and(|one| one.is_fixed && one.lacks.is_empty());
            prop_assert_eq!(choose(&name, &all).is_ok(), fits);
        }
    }
}
