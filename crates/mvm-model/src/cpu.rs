//! What a host's CPU shows to guests that are to see it as it is (`-cpu host`).
//!
//! A machine's memory is full of decisions that were made for its CPU: patched instructions, chosen
//! library functions, the size of saved registers. It can go on only on a CPU that shows the same.

use crate::hex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// The features that come and go with microcode: the word, the bit and the name of each. A guest may
/// find more of them than it began with, and none less. (Intel SDM vol. 2A, CPUID; AMD APM vol. 3,
/// appendix E.)
const OF_MICROCODE: [(&str, u32, &str); 17] = [
    ("7.0.ebx", 4, "hle"),
    ("7.0.ebx", 11, "rtm"),
    ("7.0.edx", 9, "srbds_ctrl"),
    ("7.0.edx", 10, "md_clear"),
    ("7.0.edx", 11, "rtm_always_abort"),
    ("7.0.edx", 13, "tsx_force_abort"),
    ("7.0.edx", 26, "ibrs"),
    ("7.0.edx", 27, "stibp"),
    ("7.0.edx", 28, "flush_l1d"),
    ("7.0.edx", 29, "arch_capabilities"),
    ("7.0.edx", 31, "ssbd"),
    ("80000008.ebx", 12, "amd_ibpb"),
    ("80000008.ebx", 14, "amd_ibrs"),
    ("80000008.ebx", 15, "amd_stibp"),
    ("80000008.ebx", 24, "amd_ssbd"),
    ("80000008.ebx", 25, "virt_ssbd"),
    ("80000008.ebx", 28, "amd_psfd"),
];

/// The bits that say what the host's kernel has turned on, not what the CPU has: OSXSAVE, OSPKE.
const OF_SYSTEM: [(&str, u32); 2] = [("1.ecx", 27), ("7.0.ecx", 4)];

/// What the instruction CPUID says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpuid {
    /// `AuthenticAMD`, `GenuineIntel`.
    pub vendor: String,
    /// Family, model and stepping: EAX of leaf 1.
    pub signature: u32,
    /// The model's name.
    pub name: String,
    /// The words of features, each with its leaf and register: `7.0.ebx`.
    pub words: Vec<(&'static str, u32)>,
}

/// The identity of a CPU, as far as a guest can see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuIdentity {
    /// The model's name, for people: `AMD EPYC 7763 64-Core Processor`.
    pub name: String,
    /// Vendor, family and model: `AuthenticAMD 25/1`.
    pub kind: String,
    /// SHA-256 in hex of the features, without those of microcode.
    pub features: String,
    /// The features of microcode.
    pub microcode: BTreeSet<String>,
}

impl CpuIdentity {
    /// Returns the identity of a CPU that says this of itself.
    pub fn of(cpuid: &Cpuid) -> CpuIdentity {
        let (mut text, mut microcode) = (String::new(), BTreeSet::new());
        for (word, value) in &cpuid.words {
            let mut lasting = *value;
            for (_, bit, name) in OF_MICROCODE.iter().filter(|(of, ..)| of == word) {
                if value & (1 << bit) != 0 {
                    microcode.insert((*name).to_owned());
                }
                lasting &= !(1 << bit);
            }
            for (_, bit) in OF_SYSTEM.iter().filter(|(of, _)| of == word) {
                lasting &= !(1 << bit);
            }
            text.push_str(&format!("{word} {lasting:08x}\n"));
        }
        let (family, model) = family_and_model(cpuid.signature);
        let plain = |text: &str| {
            let plain: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
            plain.trim().to_owned()
        };
        CpuIdentity {
            name: plain(&cpuid.name),
            kind: format!("{} {family}/{model}", plain(&cpuid.vendor)),
            features: hex::sha256(text.as_bytes()),
            microcode,
        }
    }

    /// Returns why a machine that began on this CPU cannot go on on the CPU `here`; `None` if it
    /// can.
    pub fn misfit(&self, here: &CpuIdentity) -> Option<String> {
        let lost: Vec<&str> =
            self.microcode.difference(&here.microcode).map(String::as_str).collect();
        if self.kind != here.kind {
            Some("they are of different models".to_owned())
        } else if self.features != here.features {
            Some("they show different features".to_owned())
        } else if !lost.is_empty() {
            Some(format!("this one's microcode has lost {}", lost.join(", ")))
        } else {
            None
        }
    }

    /// Returns a digest of all that a guest can see, for the names of what depends on it.
    pub fn digest(&self) -> String {
        let microcode: Vec<&str> = self.microcode.iter().map(String::as_str).collect();
        let text = [self.kind.as_str(), &self.features, &microcode.join(" ")].join("\n");
        hex::sha256(text.as_bytes())
    }
}

impl fmt::Display for CpuIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = self.features.get(..12).unwrap_or(&self.features);
        write!(f, "{} ({}, features {features})", self.name, self.kind)
    }
}

/// Returns the family and the model in a signature, with their extensions.
fn family_and_model(signature: u32) -> (u32, u32) {
    let base = (signature >> 8) & 0xf;
    let family = if base == 0xf { base + ((signature >> 20) & 0xff) } else { base };
    let high = if matches!(base, 0x6 | 0xf) { (signature >> 16) & 0xf } else { 0 };
    (family, (high << 4) | ((signature >> 4) & 0xf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cpu(signature: u32, words: &[(&'static str, u32)]) -> CpuIdentity {
        CpuIdentity::of(&Cpuid {
            vendor: "AuthenticAMD".into(),
            signature,
            name: " AMD EPYC 7763 \0".into(),
            words: words.to_vec(),
        })
    }

    #[test]
    fn family_and_model_are_read_as_the_manuals_say() {
        assert_eq!(cpu(0x00a0_0f11, &[]).kind, "AuthenticAMD 25/1");
        assert_eq!(family_and_model(0x0005_0654), (6, 0x55));
        assert_eq!(family_and_model(0x0000_0543), (5, 4));
        assert_eq!(cpu(1, &[]).name, "AMD EPYC 7763");
    }

    #[test]
    fn another_model_and_other_features_are_told() {
        let ibrs = 1 << 26;
        let began = cpu(0x00a0_0f11, &[("1.ecx", 7), ("7.0.edx", ibrs)]);
        assert_eq!(began.misfit(&began), None);
        let why = |signature, words: &[(&'static str, u32)]| {
            began.misfit(&cpu(signature, words)).expect("a reason")
        };
        assert!(why(0x00a1_0f11, &[("1.ecx", 7), ("7.0.edx", ibrs)]).contains("models"));
        assert!(why(0x00a0_0f11, &[("1.ecx", 3), ("7.0.edx", ibrs)]).contains("features"));
        assert!(why(0x00a0_0f11, &[("1.ecx", 15), ("7.0.edx", ibrs)]).contains("features"));
        assert!(why(0x00a0_0f11, &[("1.ecx", 7), ("7.0.edx", 0)]).contains("lost ibrs"));
        // Another stepping, more microcode, and a kernel that has turned XSAVE on.
        let more = cpu(0x00a0_0f12, &[("1.ecx", 7 | 1 << 27), ("7.0.edx", ibrs | 1 << 10)]);
        assert_eq!(began.misfit(&more), None);
        assert!(more.misfit(&began).is_some());
    }

    proptest! {
        #[test]
        fn what_goes_on_there_and_back_has_the_same_digest(
            here in (0_u32..4, 0_u32..4, any::<u32>()), there in (0_u32..4, 0_u32..4, any::<u32>()),
        ) {
            let made = |(model, ecx, edx): (u32, u32, u32)| {
                cpu(0xa00_0f00 | (model << 4), &[("1.ecx", ecx), ("7.0.edx", edx & 0xfc00_0000)])
            };
            let (a, b) = (made(here), made(there));
            let both = a.misfit(&b).is_none() && b.misfit(&a).is_none();
            prop_assert_eq!(both, a.digest() == b.digest());
        }
    }
}
