//! The rules that were put in force last, kept in the state directory for the next agent, which can
//! thus tell rules that vanished while no agent ran from rules that never existed.

use crate::nftables::Parts;
use std::fs;
use std::io::Result;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const FILE: &str = "walls";
const VERSION: &str = "1";

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

    /// Returns the parts that were in force; `None` if none are known to have been.
    pub(crate) fn read(&self) -> Option<Parts> {
        parse(&fs::read_to_string(&self.file).ok()?, &self.place)
    }

    /// Removes the file before rules are changed, so that an agent that is killed meanwhile leaves
    /// nothing untrue.
    pub(crate) fn forget(&self) {
        let _ = fs::remove_file(&self.file);
    }

    /// Writes the file after rules were changed. It need not survive a crash of the host, so it is
    /// not synced.
    pub(crate) fn keep(&self, parts: &Parts) {
        if let Err(error) = self.write(parts) {
            let file = self.file.display();
            tracing::warn!(
                "cannot write {file}: rules that go while no agent runs are not told: {error}"
            );
        }
    }

    fn write(&self, parts: &Parts) -> Result<()> {
        let aside = self.file.with_extension("part");
        fs::write(&aside, text(parts, &self.place))?;
        fs::rename(&aside, &self.file)
    }
}

fn text(parts: &Parts, place: &str) -> String {
    let lines = parts.iter().map(|(name, sum)| format!("{sum:016x} {name}\n"));
    std::iter::once(format!("{place}\n")).chain(lines).collect()
}

fn parse(text: &str, place: &str) -> Option<Parts> {
    let mut lines = text.lines();
    if lines.next()? != place {
        return None;
    }
    let part = |line: &str| {
        let (sum, name) = line.split_once(' ')?;
        Some((name.to_owned(), u64::from_str_radix(sum, 16).ok()?))
    };
    lines.map(part).collect::<Option<Parts>>().filter(|parts| !parts.is_empty())
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
            prop_assert_eq!(parse(&text(&parts, "1 a 2"), "1 a 2"), Some(parts.clone()));
            prop_assert_eq!(parse(&text(&parts, "1 a 2"), "1 b 2"), None);
            let _ = parse(&any_text, "1 a 2");
        }
    }
}
