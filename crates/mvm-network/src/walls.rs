//! The firewall's rules: put in force, and whether they still are.

use crate::nftables::{Nftables, Parts};
use crate::rules::{Ruleset, Surroundings};
use crate::{Error, Result, nft, render};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How often rules are put in force anew where somebody changes nftables at the same moment.
const TRIES: usize = 3;

/// What was put in force, and what the kernel had of it then.
struct Standing {
    text: String,
    generation: u32,
    parts: Parts,
}

/// What it took to have the rules in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing: they were.
    Already,
    /// They are others than before.
    Changed,
    /// Those that were in force before were gone, or somebody had changed them: these parts of the tables.
    /// All is in force again.
    Restored(Vec<String>),
}

/// The firewall's tables of one owner.
pub(crate) struct Walls {
    owner: String,
    nftables: Nftables,
    /// What was put in force last.
    standing: Mutex<Option<Standing>>,
}

impl Walls {
    /// Those of this owner, of which nothing is known to be in force.
    pub(crate) fn open(owner: &str) -> Result<Walls> {
        let (owner, nftables) = (owner.to_owned(), Nftables::open()?);
        Ok(Walls { owner, nftables, standing: Mutex::default() })
    }

    /// Puts the rules in force, in place of those of before; all at once. Looks whether those of before
    /// were still in force.
    pub(crate) async fn apply(&self, rules: &Ruleset, around: &Surroundings) -> Result<Applied> {
        let text = render::render(&self.owner, rules, around);
        let lost = self.lost()?;
        if lost.is_empty() && self.are(rules, around) == Some(true) {
            return Ok(Applied::Already);
        }
        self.put(text).await?;
        Ok(if lost.is_empty() { Applied::Changed } else { Applied::Restored(lost) })
    }

    /// Whether these are the rules that were put in force; nothing where none were.
    pub(crate) fn are(&self, rules: &Ruleset, around: &Surroundings) -> Option<bool> {
        let text = render::render(&self.owner, rules, around);
        self.standing().as_ref().map(|standing| standing.text == text)
    }

    /// Whether rules were put in force, and still are.
    pub(crate) fn stand(&self) -> Result<bool> {
        Ok(self.lost()?.is_empty() && self.standing().is_some())
    }

    /// Removes the tables.
    pub(crate) async fn remove(&self) -> Result<()> {
        *self.standing() = None;
        nft::run_nft(&render::removal(&self.owner)).await
    }

    /// The name of the tables.
    pub(crate) fn table(&self) -> String {
        format!("mvm_{}", self.owner)
    }

    /// The parts of the tables that are not as they were put in force.
    pub(crate) fn lost(&self) -> Result<Vec<String>> {
        let mut standing = self.standing();
        let Some(standing) = standing.as_mut() else { return Ok(Vec::new()) };
        if self.nftables.generation()? == standing.generation {
            return Ok(Vec::new());
        }
        let (generation, parts) = self.nftables.parts(&self.table())?;
        let lost = differences(&standing.parts, &parts);
        if lost.is_empty() {
            // Somebody has changed what is not ours.
            standing.generation = generation;
        }
        Ok(lost)
    }

    async fn put(&self, text: String) -> Result<()> {
        for tries in 1.. {
            let before = self.nftables.generation()?;
            nft::run_nft(&text).await?;
            let (generation, parts) = self.nftables.parts(&self.table())?;
            // One change more, and it was ours: what is there is what was meant. The number has no zero.
            let ours = generation == before.wrapping_add(1).max(1);
            if parts.is_empty() && tries >= TRIES {
                let cause = "they are gone at once: somebody else clears nftables".to_owned();
                return Err(Error::Kernel {
                    what: "put the firewall rules in force".to_owned(),
                    cause,
                });
            }
            if !parts.is_empty() && (ours || tries >= TRIES) {
                *self.standing() = Some(Standing { text, generation, parts });
                break;
            }
        }
        Ok(())
    }

    fn standing(&self) -> MutexGuard<'_, Option<Standing>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of the parts that are gone, were added or are others.
fn differences(wanted: &Parts, found: &Parts) -> Vec<String> {
    let gone = |name: &&String| !found.contains_key(*name);
    if wanted.keys().all(|name| gone(&name)) {
        return vec!["all tables are gone".to_owned()];
    }
    let missing = wanted.keys().filter(gone).map(|name| format!("{name} is gone"));
    let changed = wanted.iter().filter(|(name, sum)| found.get(*name).is_some_and(|f| f != *sum));
    let changed = changed.map(|(name, _)| format!("{name} was changed"));
    let added = found.keys().filter(|name| !wanted.contains_key(*name));
    let added = added.map(|name| format!("{name} was added"));
    missing.chain(changed).chain(added).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_is_named() {
        let parts = |all: &[(&str, u64)]| {
            all.iter().map(|(name, sum)| ((*name).to_owned(), *sum)).collect::<Parts>()
        };
        let wanted = parts(&[("chain a", 1), ("chain b", 2), ("set c", 3)]);
        assert_eq!(differences(&wanted, &wanted), [""; 0]);
        assert_eq!(differences(&wanted, &Parts::new()), ["all tables are gone"]);
        let found = parts(&[("chain a", 1), ("chain b", 9), ("set d", 3)]);
        let said = ["set c is gone", "chain b was changed", "set d was added"];
        assert_eq!(differences(&wanted, &found), said);
    }
}
