//! Which nodes are lost, and which of those in reach has the least to do.

use crate::name::Name;
use crate::timestamp::Timestamp;

/// Returns since when a node is lost, if it is.
///
/// `before` is what was recorded. `alive`: some coordinator reaches the node. `settled`: the leader has led for long
/// enough that the links to all nodes have had their time; until then nobody is newly lost.
pub fn lost_since(
    before: Option<Timestamp>,
    alive: bool,
    settled: bool,
    now: Timestamp,
) -> Option<Timestamp> {
    if alive { None } else { before.or(settled.then_some(now)) }
}

/// Returns the node with the fewest leases of a pool, given those in reach that serve it; of equals the first by name.
pub fn least_leased<'a>(serving: impl IntoIterator<Item = (&'a Name, u32)>) -> Option<&'a Name> {
    serving.into_iter().min_by_key(|(name, leased)| (*leased, *name)).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(before: Option<u64>, alive: bool, settled: bool, now: u64) -> Option<u64> {
        let time = Timestamp::from_millis;
        lost_since(before.map(time), alive, settled, time(now)).map(Timestamp::as_millis)
    }

    #[test]
    fn a_node_is_lost_from_the_first_moment_that_nobody_reaches_it_and_a_new_leader_waits() {
        assert_eq!(lost(None, true, true, 9), None);
        assert_eq!(lost(Some(3), true, false, 9), None, "it is back");
        assert_eq!(lost(None, false, false, 9), None, "too early to tell");
        assert_eq!(lost(None, false, true, 9), Some(9));
        assert_eq!(lost(Some(3), false, true, 9), Some(3), "and not anew");
        assert_eq!(lost(Some(3), false, false, 9), Some(3));
    }
}
