//! Which nodes are lost, and which of those in reach has the least to do.

use crate::Millis;
use crate::name::Name;

/// Returns since when a node is lost, if it is.
///
/// `before` is what was recorded. `alive`: some coordinator reaches the node. `settled`: the leader has led for long
/// enough that the links to all nodes have had their time; until then nobody is newly lost.
pub fn lost_since(
    before: Option<Millis>,
    alive: bool,
    settled: bool,
    now: Millis,
) -> Option<Millis> {
    if alive { None } else { before.or(settled.then_some(now)) }
}

/// Returns the node with the fewest leases of a pool, given those in reach that serve it; of equals the first by name.
pub fn least_leased<'a>(serving: impl IntoIterator<Item = (&'a Name, u32)>) -> Option<&'a Name> {
    serving.into_iter().min_by_key(|(name, leased)| (*leased, *name)).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_lost_from_the_first_moment_that_nobody_reaches_it_and_a_new_leader_waits() {
        assert_eq!(lost_since(None, true, true, 9), None);
        assert_eq!(lost_since(Some(3), true, false, 9), None, "it is back");
        assert_eq!(lost_since(None, false, false, 9), None, "too early to tell");
        assert_eq!(lost_since(None, false, true, 9), Some(9));
        assert_eq!(lost_since(Some(3), false, true, 9), Some(3), "and not anew");
        assert_eq!(lost_since(Some(3), false, false, 9), Some(3));
    }
}
