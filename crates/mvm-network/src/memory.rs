//! The rules that were put in force last, kept in the state directory for the next agent, which can
//! thus tell rules that vanished while no agent ran from rules that never existed, and need not put
//! in force what is.

use crate::nftables::Parts;
use mvm_model::Digest;
use std::fs;
use std::io::Result;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const FILE: &str = "walls";
const VERSION: &str = "2";

/// What is known of the rules that were put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The digest of the rules as text.
    pub(crate) text: Digest,
    /// What the kernel held then.
    pub(crate) parts: Parts,
}

/// The file in one state directory.
pub(crate) struct Memory {
    file: PathBuf,
    /// The boot and the network namespace that the file is about: rules neither outlive the one nor
    /// leave the other.
    place: String,
}

impl Memory {
    /// Opens the file of this state directory, for this boot and this network namespace.
    pub(crate) fn at(root: &Path) -> Memory {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let netns = fs::metadata("/proc/thread-self/ns/net").map_or(0, |meta| meta.ino());
        Memory { file: root.join(FILE), place: format!("{VERSION} {} {netns}", boot.trim()) }
    }

    /// Returns the rules that were in force; `None` if none are known to have been.
    pub(crate) fn read(&self) -> Option<Kept> {
        parse(&fs::read_to_string(&self.file).ok()?, &self.place)
    }

    /// Removes the file before rules are changed, so that an agent that is killed meanwhile leaves
    /// nothing untrue.
    pub(crate) fn forget(&self) {
        let _ = fs::remove_file(&self.file);
    }

    /// Writes the file after rules were changed. It need not survive a crash of the host, so it is
    /// not synced.
    pub(crate) fn keep(&self, kept: &Kept) {
        if let Err(error) = self.write(kept) {
            let file = self.file.display();
            tracing::warn!(
                "cannot write {file}: rules that go while no agent runs are not told: {error}"
            );
        }
    }

    fn write(&self, kept: &Kept) -> Result<()> {
        let aside = self.file.with_extension("part");
        fs::write(&aside, text(kept, &self.place))?;
        fs::rename(&aside, &self.file)
    }
}

fn text(kept: &Kept, place: &str) -> String {
    let lines = kept.parts.iter().map(|(name, sum)| format!("{sum:016x} {name}\n"));
    std::iter::once(format!("{place}\n{}\n", kept.text)).chain(lines).collect()
}

fn parse(text: &str, place: &str) -> Option<Kept> {
    let mut lines = text.lines();
    if lines.next()? != place {
        return None;
    }
    let text = lines.next()?.parse().ok()?;
    let part = |line: &str| {
        let (sum, name) = line.split_once(' ')?;
        Some((name.to_owned(), u64::from_str_radix(sum, 16).ok()?))
    };
    let parts = lines.map(part).collect::<Option<Parts>>().filter(|parts| !parts.is_empty())?;
    Some(Kept { text, parts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_kept_is_read_back_at_the_same_place_alone(
            parts in prop::collection::btree_map("[a-z]{1,5} [a-z_0-9]{1,9}", any::<u64>(), 1..9),
            any_text in "\\PC{0,60}",
        ) {
            let kept = Kept { text: Digest::of(&any_text), parts };
            prop_assert_eq!(parse(&text(&kept, "1 a 2"), "1 a 2"), Some(kept.clone()));
            prop_assert_eq!(parse(&text(&kept, "1 a 2"), "1 b 2"), None);
            let _ = parse(&any_text, "1 a 2");
            let _ = parse(&format!("1 a 2\n{}\n{any_text}", kept.text), "1 a 2");
        }
    }
}
