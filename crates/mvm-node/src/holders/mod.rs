//! The holders of leases. A job's lease lives as long as its holder (`mvm_model::lease`).
//!
//! A holder is the connection of a claim, an operation under way for the lease, a job, an open
//! session, or a coordinator that renews the lease for its client. Holders are not recorded: a new
//! agent counts every holder as seen when it starts.

use crate::locks::locked;
use mvm_api::types::{HeldBy, LeaseView};
use mvm_clock::Clock;
use mvm_model::lease::{Holders, RENEW};
use mvm_model::{Instance, Job, JobState, Lease, LeaseId, Timestamp};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;

/// The pause before a lease whose end failed is ended again.
const AGAIN: Duration = Duration::from_secs(5);

/// The agent's knowledge of leases beside their records.
pub(crate) struct LeaseHolders {
    clock: Clock,
    signs: Lock<Holders>,
    /// The leases that are being ended.
    ending: Lock<HashSet<LeaseId>>,
    /// The leases whose end failed, and when to try again.
    unended: Lock<HashMap<LeaseId, Timestamp>>,
}

impl LeaseHolders {
    pub(crate) fn new(clock: Clock) -> Arc<LeaseHolders> {
        let signs = Lock::new(Holders::begin(clock.now()));
        let (ending, unended) = Default::default();
        Arc::new(LeaseHolders { clock, signs, ending, unended })
    }

    /// Holds the lease until the guard is dropped.
    pub(crate) fn hold(self: &Arc<Self>, lease: LeaseId) -> Hold {
        locked(&self.signs).hold(lease);
        Hold { holders: self.clone(), lease }
    }

    /// Notes a sign of the lease's holder.
    pub(crate) fn renew(&self, lease: LeaseId) {
        locked(&self.signs).renew(lease, self.clock.now());
    }

    /// Returns when the lease ends, on the node's timeline, if its holder gives no further sign.
    pub(crate) fn ends_at(&self, lease: &Lease) -> Timestamp {
        lease.ends_at(locked(&self.signs).seen(lease.id, self.clock.now()))
    }

    /// Returns whether the lease is to be ended now and is not being ended already.
    pub(crate) fn is_due(&self, lease: &Lease) -> bool {
        let now = self.clock.now();
        let again = locked(&self.unended).get(&lease.id).is_some_and(|at| now >= *at);
        (again || now >= self.ends_at(lease)) && !locked(&self.ending).contains(&lease.id)
    }

    /// Marks the lease as being ended until the guard is dropped; `None` where it is already.
    pub(crate) fn begin_end(self: &Arc<Self>, lease: LeaseId) -> Option<Ending> {
        locked(&self.unended).remove(&lease);
        let first = locked(&self.ending).insert(lease);
        first.then(|| Ending { holders: self.clone(), lease })
    }

    /// Notes that ending the lease failed; it is tried again.
    pub(crate) fn not_ended(&self, lease: LeaseId) {
        locked(&self.unended).insert(lease, self.clock.now() + AGAIN);
    }

    /// Forgets the leases that no longer exist.
    pub(crate) fn retain(&self, is_there: impl Fn(LeaseId) -> bool) {
        locked(&self.signs).retain(&is_there);
        locked(&self.unended).retain(|lease, _| is_there(*lease));
    }

    /// Returns the lease of this instance as its holders determine it, in wall-clock times.
    pub(crate) fn view(&self, instance: &Instance, held_by: Option<HeldBy>) -> Option<LeaseView> {
        let lease = self.shown(instance.lease.as_ref()?);
        let connected = || self.is_connected(lease.id).then_some(HeldBy::Claim);
        let held = lease.purpose.lives_with_holder();
        let held_by = held.then(|| held_by.or_else(connected)).flatten();
        let now = self.clock.wall_of(self.clock.now());
        let left = lease.expires_at.since(now);
        Some(LeaseView {
            lease,
            instance: instance.reference(),
            left_s: left.as_secs(),
            held_by,
            node_id: None,
        })
    }

    /// Returns whether the client of the lease's claim is connected: here, or at the coordinator,
    /// which reports it.
    fn is_connected(&self, lease: LeaseId) -> bool {
        let signs = locked(&self.signs);
        let now = self.clock.now();
        let said = || signs.seen(lease, now) + RENEW * 3 / 2 > now;
        signs.is_held(lease) || lease.is_claim() && said()
    }

    /// Returns a lease in wall-clock times, with its present end.
    pub(crate) fn shown(&self, lease: &Lease) -> Lease {
        Lease {
            since: self.clock.wall_of(lease.since),
            expires_at: self.clock.wall_of(self.ends_at(lease)),
            longest_until: lease.longest_until.map(|at| self.clock.wall_of(at)),
            ..lease.clone()
        }
    }
}

/// Returns the job that runs on an instance.
pub(crate) fn job_on<'a>(
    mut jobs: impl Iterator<Item = &'a Job>,
    instance: &Instance,
) -> Option<&'a Job> {
    jobs.find(|job| {
        matches!(job.state, JobState::Starting | JobState::Running)
            && job.attempts.last().is_some_and(|attempt| attempt.instance.id == instance.id)
    })
}

/// Holds a lease until it is dropped.
pub(crate) struct Hold {
    holders: Arc<LeaseHolders>,
    lease: LeaseId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        locked(&self.holders.signs).let_go(self.lease, self.holders.clock.now());
    }
}

/// Marks a lease as being ended, until it is dropped.
pub(crate) struct Ending {
    holders: Arc<LeaseHolders>,
    lease: LeaseId,
}

impl Drop for Ending {
    fn drop(&mut self) {
        locked(&self.holders.ending).remove(&self.lease);
    }
}

#[cfg(test)]
mod tests;
