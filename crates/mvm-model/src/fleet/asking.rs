//! What a leader does with a node's answer to a claim, or with its silence.
//!
//! A claim has one id, and a node gives the same id the same machine, so asking again does no harm.
//! A claim must never go to another node while the first one may still bring up a machine for it,
//! and must never wait for a node that does not answer any more.

use crate::timestamp::Timestamp;
use std::time::Duration;

/// How long a node may be out of the leader's reach in the middle of a claim. A node that
/// the other coordinators cannot reach either is given up at once.
pub const AWAY: Duration = Duration::from_secs(15);
/// The same limit if the claim's client already uses the machine: the node's agent may be
/// restarting while the machine goes on.
pub const USED_AWAY: Duration = Duration::from_secs(60);
/// How long a node may take to bring up a machine.
pub const BRING: Duration = Duration::from_secs(120);

/// The outcome of one request to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// The node refused the request, which had no effect.
    Refused,
    /// The node tried and failed: something may be left of it there.
    Failed,
    /// The request did not reach the node.
    Unreached,
    /// No answer came: the request may or may not have been carried out, or may still be.
    Nothing,
}

/// What the leader does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The node has nothing of the claim: another node may serve it.
    Elsewhere,
    /// The node must end what it may have of the claim; then another node may serve it.
    EndFirst,
    /// The same node is asked again with the same id.
    Again,
    /// The claim is lost: nobody knows what the node has of it.
    GiveUp,
}

/// A claim that one node is being asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    began: Timestamp,
    /// Whether the node may have something of the claim.
    asked: bool,
    /// Whether the claim's client already uses the machine.
    used: bool,
    /// Since when the node has been out of reach; `None` while it is in reach.
    away_since: Option<Timestamp>,
}

impl Asking {
    /// Begins to ask a node for a new claim.
    pub fn new(now: Timestamp) -> Asking {
        Asking { began: now, asked: false, used: false, away_since: None }
    }

    /// Begins to ask a node that was asked for this claim before, by an earlier leader or for a
    /// request whose connection broke. `used` says whether the client already uses the machine that
    /// it got there.
    pub fn anew(used: bool, now: Timestamp) -> Asking {
        Asking { asked: true, used, ..Asking::new(now) }
    }

    /// Returns what to do after a request. `reached` says whether the leader's link to the node is
    /// up, `lost` whether no coordinator reaches the node.
    pub fn heard(&mut self, heard: CallOutcome, reached: bool, lost: bool, now: Timestamp) -> Step {
        match heard {
            CallOutcome::Refused if !self.asked => return Step::Elsewhere,
            CallOutcome::Unreached if !self.asked => return Step::Elsewhere,
            // An earlier request with the same id may have succeeded.
            CallOutcome::Refused => self.away_since = None,
            CallOutcome::Failed => (self.asked, self.away_since) = (true, None),
            CallOutcome::Nothing if reached => (self.asked, self.away_since) = (true, None),
            CallOutcome::Nothing | CallOutcome::Unreached => {
                self.asked = true;
                self.away_since.get_or_insert(now);
            }
        }
        let away = self.away_since.map_or(Duration::ZERO, |since| now.since(since));
        let (lost, most) = match self.used {
            true => (false, USED_AWAY),
            false => (lost, AWAY),
        };
        if lost || away >= most || now.since(self.began) >= BRING {
            return Step::GiveUp;
        }
        match heard {
            CallOutcome::Refused | CallOutcome::Failed => Step::EndFirst,
            CallOutcome::Unreached | CallOutcome::Nothing => Step::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CallOutcome::{Failed, Nothing, Refused, Unreached};
    use Step::{Again, Elsewhere, EndFirst, GiveUp};

    const BEGAN: Timestamp = Timestamp::EPOCH;
    const MS: Duration = Duration::from_millis(1);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_node_that_has_nothing_of_a_claim_is_left_at_once() {
        assert_eq!(Asking::new(BEGAN).heard(Refused, true, false, at(1)), Elsewhere);
        assert_eq!(Asking::new(BEGAN).heard(Unreached, false, false, at(1)), Elsewhere);
        assert_eq!(Asking::new(BEGAN).heard(Unreached, false, true, at(1)), Elsewhere);
    }

    #[test]
    fn a_node_that_may_have_something_of_it_ends_that_first() {
        assert_eq!(Asking::new(BEGAN).heard(Failed, true, false, at(1)), EndFirst);
        let mut asking = Asking::new(BEGAN);
        assert_eq!(asking.heard(Nothing, true, false, at(10)), Again, "its agent was killed");
        assert_eq!(asking.heard(Unreached, false, false, at(500)), Again);
        assert_eq!(
            asking.heard(Refused, true, false, at(4000)),
            EndFirst,
            "it is not asked for 120 s"
        );
        assert_eq!(asking.heard(Nothing, true, false, at(4500)), Again, "the end was cut off");
        assert_eq!(asking.heard(Failed, true, false, at(5000)), EndFirst);
    }

    #[test]
    fn a_new_leader_waits_for_a_node_that_it_does_not_reach_yet() {
        let mut asking = Asking::anew(false, BEGAN);
        assert_eq!(asking.heard(Unreached, false, false, at(1)), Again, "it has only just begun");
        assert_eq!(asking.heard(Refused, true, false, at(900)), EndFirst);
        assert_eq!(asking.heard(Unreached, false, true, at(1000)), GiveUp);
    }

    #[test]
    fn a_machine_that_is_in_use_is_not_given_up_because_its_agent_is_started_anew() {
        let mut asking = Asking::anew(true, BEGAN);
        assert_eq!(asking.heard(Unreached, false, true, BEGAN + AWAY + MS), Again);
        assert_eq!(asking.heard(Unreached, false, true, BEGAN + USED_AWAY), Again);
        assert_eq!(asking.heard(Unreached, false, true, BEGAN + AWAY + MS + USED_AWAY), GiveUp);
    }

    #[test]
    fn a_node_that_is_away_is_waited_for_briefly_and_one_that_works_for_long() {
        let mut away = Asking::new(BEGAN);
        assert_eq!(away.heard(Nothing, false, false, at(1000)), Again);
        assert_eq!(away.heard(Unreached, false, false, at(1000) + AWAY - MS), Again);
        assert_eq!(away.heard(Unreached, false, false, at(1000) + AWAY), GiveUp);
        let mut back = away;
        assert_eq!(back.heard(Nothing, true, false, at(1000) + AWAY), Again, "it has come back");
        assert_eq!(
            back.heard(Unreached, false, false, at(2000) + AWAY),
            Again,
            "a wait of its own"
        );
        assert_eq!(
            back.heard(Unreached, false, true, at(2001) + AWAY),
            GiveUp,
            "nobody reaches it"
        );
        let mut busy = Asking::new(BEGAN);
        assert_eq!(busy.heard(Nothing, true, false, BEGAN + BRING - MS), Again);
        assert_eq!(busy.heard(Nothing, true, false, BEGAN + BRING), GiveUp);
    }
}
