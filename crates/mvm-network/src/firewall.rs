//! The firewall's rules: putting them in force, and checking whether they still are.

use crate::memory::{Kept, Memory};
use crate::nftables::{Nftables, Parts};
use crate::rules::{Ruleset, Surroundings};
use crate::{Error, Result, nft, render};
use mvm_model::Digest;
use parking_lot::{Mutex, MutexGuard};
use std::path::Path;

/// How often rules are put in force again because somebody changes nftables at the same moment.
const TRIES: usize = 3;

const PUT: &str = "put the firewall rules in force";
const GONE: &str = "all tables are gone";

/// What was put in force, and what the kernel held then.
struct RulesInForce {
    rules: Kept,
    generation: u32,
}

/// What `apply` had to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing: the rules were in force already.
    Already,
    /// The rules differ from the former ones.
    Changed,
    /// Parts of the former rules had vanished or been changed by somebody else; the list describes
    /// them. All rules are in force again.
    Restored(Vec<String>),
}

/// The firewall's tables of one owner.
pub(crate) struct Firewall {
    owner: String,
    nftables: Nftables,
    /// What was put in force last, by this agent or the one before; `None` if nothing is known.
    in_force: Mutex<Option<RulesInForce>>,
    memory: Option<Memory>,
}

impl Firewall {
    /// Opens the tables of this owner, of which nothing is known to be in force.
    pub(crate) fn open(owner: &str) -> Result<Firewall> {
        let (owner, nftables) = (owner.to_owned(), Nftables::open()?);
        Ok(Firewall { owner, nftables, in_force: Mutex::default(), memory: None })
    }

    /// Adds what the agent before has kept in the state directory.
    pub(crate) fn of_root(self, root: &Path) -> Firewall {
        let memory = Memory::at(root);
        // No change has the number 0, so the first look compares what is there.
        let before = |rules| RulesInForce { rules, generation: 0 };
        let in_force = Mutex::new(memory.read().map(before));
        Firewall { in_force, memory: Some(memory), ..self }
    }

    /// Puts the rules in force in place of the former ones, all at once, and checks whether the
    /// former ones were still in force. If nothing is known of them, `machines` says whether there
    /// must have been some.
    pub(crate) async fn apply(
        &self,
        rules: &Ruleset,
        around: &Surroundings,
        machines: bool,
    ) -> Result<Applied> {
        let text = render::render(&self.owner, rules, around);
        let lost = match self.knows_nothing() && machines {
            true if self.nftables.parts(&self.table())?.1.is_empty() => vec![GONE.to_owned()],
            true => Vec::new(),
            false => self.lost()?,
        };
        if lost.is_empty() && self.holds(&text) == Some(true) {
            return Ok(Applied::Already);
        }
        self.put(text).await?;
        Ok(if lost.is_empty() { Applied::Changed } else { Applied::Restored(lost) })
    }

    /// Returns whether these are the rules that were put in force; `None` if none were.
    pub(crate) fn are(&self, rules: &Ruleset, around: &Surroundings) -> Option<bool> {
        self.holds(&render::render(&self.owner, rules, around))
    }

    fn holds(&self, text: &str) -> Option<bool> {
        self.in_force().as_ref().map(|in_force| in_force.rules.text == Digest::of(text))
    }

    /// Returns whether an earlier agent may have put rules in force without leaving a record of it.
    pub(crate) fn knows_nothing(&self) -> bool {
        self.memory.is_some() && self.in_force().is_none()
    }

    /// Returns whether rules were put in force and still are.
    pub(crate) fn stand(&self) -> Result<bool> {
        Ok(self.lost()?.is_empty() && self.in_force().is_some())
    }

    /// Removes the tables, and the record of them.
    pub(crate) async fn remove(&self) -> Result<()> {
        *self.in_force() = None;
        self.memory.iter().for_each(Memory::forget);
        nft::run_nft(&render::removal(&self.owner)).await.map_err(|error| self.held(error))
    }

    /// Returns the name of the tables.
    pub(crate) fn table(&self) -> String {
        format!("mvm_{}", self.owner)
    }

    /// Returns the parts of the tables that are not as they were put in force.
    pub(crate) fn lost(&self) -> Result<Vec<String>> {
        let mut in_force = self.in_force();
        let Some(in_force) = in_force.as_mut() else { return Ok(Vec::new()) };
        if self.nftables.generation()? == in_force.generation {
            return Ok(Vec::new());
        }
        let (generation, parts) = self.nftables.parts(&self.table())?;
        let lost = differences(&in_force.rules.parts, &parts);
        if lost.is_empty() {
            // Somebody has changed only other tables.
            in_force.generation = generation;
        }
        Ok(lost)
    }

    async fn put(&self, text: String) -> Result<()> {
        self.memory.iter().for_each(Memory::forget);
        let put = self.try_put(text).await.map_err(|error| self.held(error));
        // If nft refused the rules, the old ones are still in force and are recorded again.
        if let (Some(memory), Some(in_force)) = (&self.memory, self.in_force().as_ref()) {
            memory.keep(&in_force.rules);
        }
        put
    }

    async fn try_put(&self, text: String) -> Result<()> {
        for tries in 1.. {
            let before = self.nftables.generation()?;
            nft::run_nft(&text).await?;
            let (generation, parts) = self.nftables.parts(&self.table())?;
            // Exactly one change happened, which was ours, so the kernel holds what was meant.
            // Generations skip zero.
            let ours = generation == before.wrapping_add(1).max(1);
            if parts.is_empty() && tries >= TRIES {
                let cause = "they are gone at once: somebody else clears nftables".to_owned();
                return Err(Error::Kernel { what: PUT.to_owned(), cause });
            }
            if !parts.is_empty() && (ours || tries >= TRIES) {
                let rules = Kept { text: Digest::of(&text), parts };
                *self.in_force() = Some(RulesInForce { rules, generation });
                break;
            }
        }
        Ok(())
    }

    /// Explains nft's "not permitted", which it also reports when another process holds a table of
    /// this name for itself.
    fn held(&self, error: Error) -> Error {
        let Error::NotPermitted { .. } = error else { return error };
        match self.nftables.holder(&self.table()) {
            Ok(Some((table, port))) => Error::Kernel {
                what: PUT.to_owned(),
                cause: format!(
                    "another process holds the table {table} for itself (nft's owner flag, netlink port \
                     {port}, which most often is its pid): end that process"
                ),
            },
            _ => error,
        }
    }

    fn in_force(&self) -> MutexGuard<'_, Option<RulesInForce>> {
        self.in_force.lock()
    }
}

/// Describes the parts that are gone, added or changed. If a table is gone, its parts are not
/// listed.
fn differences(wanted: &Parts, found: &Parts) -> Vec<String> {
    let gone = |name: &&String| !found.contains_key(*name);
    if wanted.keys().all(|name| gone(&name)) {
        return vec![GONE.to_owned()];
    }
    let whole = |family: &str| {
        let tables = wanted.keys().filter(gone);
        tables
            .filter_map(|name| name.strip_prefix("table "))
            .any(|n| n.split(' ').next() == Some(family))
    };
    let told = |name: &&String| {
        let mut words = name.split(' ');
        words.next() == Some("table") || !words.next().is_some_and(whole)
    };
    let missing = wanted.keys().filter(gone).filter(told).map(|name| format!("{name} is gone"));
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
        let wanted = parts(&[("chain x a", 1), ("chain x b", 2), ("set x c", 3)]);
        assert_eq!(differences(&wanted, &wanted), [""; 0]);
        assert_eq!(differences(&wanted, &Parts::new()), ["all tables are gone"]);
        let found = parts(&[("chain x a", 1), ("chain x b", 9), ("set x d", 3)]);
        let said = ["set x c is gone", "chain x b was changed", "set x d was added"];
        assert_eq!(differences(&wanted, &found), said);
        let wanted =
            parts(&[("chain x a", 1), ("chain y b", 2), ("table x t", 3), ("table y t", 4)]);
        let found = parts(&[("chain y b", 2), ("table y t", 4)]);
        assert_eq!(differences(&wanted, &found), ["table x t is gone"]);
    }
}
