//! The claims of the fleet, while this coordinator leads: who waits, who is served, and whose client has
//! gone. Which claim is served next, and where, is decided by [`mvm_model::fleet::Claims`].

use crate::held_claims::HeldClaims;
use crate::records::{CLAIMS, ClaimRecord};
use crate::turns::Turns;
use crate::writer::Writer;
use crate::{Error, Result};
use mvm_api::fleet::HeldClaim;
use mvm_model::fleet::{ClaimDenied, Claims, Grant, Limits, NodeOffer, Outcome};
use mvm_model::{LeaseId, Name, PoolRef, Timestamp};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokio::sync::oneshot;

/// A client's request for a machine.
#[derive(Clone, Debug)]
pub(crate) struct ClaimOrder {
    /// The claim's id: the same one is the same claim.
    pub id: LeaseId,
    pub pool: PoolRef,
    pub holder: String,
    pub lease_s: Option<u64>,
    /// Whether the claim is wanted only if an earlier leader has served it.
    pub again: bool,
}

/// All claims of the fleet, while we lead.
pub(crate) struct ClaimQueue {
    inner: Mutex<Inner>,
    limits: Limits,
    /// Which request has its turn to serve a claim.
    pub turns: Turns,
    /// The claims whose client is connected.
    pub held: HeldClaims,
}

struct Inner {
    claims: Claims,
    writer: Option<Writer>,
    waiters: HashMap<LeaseId, oneshot::Sender<Grant>>,
    /// Claims that an earlier leader served or whose connection broke, and that nobody has asked
    /// for since.
    orphans: BTreeMap<LeaseId, ClaimRecord>,
    /// How often a claim's connection has broken, over all claims.
    partings: u64,
    /// The number of the last parting of each claim whose connection broke.
    parted: BTreeMap<LeaseId, u64>,
}

impl ClaimQueue {
    pub fn new(limits: Limits) -> ClaimQueue {
        let (turns, held) = Default::default();
        ClaimQueue { inner: Mutex::new(Inner::new(limits, None)), limits, turns, held }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Begins to lead, with the claims that earlier leaders have recorded.
    pub fn begin(&self, writer: Writer, records: BTreeMap<LeaseId, ClaimRecord>) {
        let mut inner = self.inner();
        *inner = Inner::new(self.limits, Some(writer));
        for (id, record) in &records {
            // Each counts as held until its node says otherwise.
            inner.claims.adopt(*id, &record.pool, &record.node, Timestamp::EPOCH);
        }
        inner.orphans = records;
    }

    /// Leads no more: the requests that wait notice, as their channels close.
    pub fn finish(&self) {
        *self.inner() = Inner::new(self.limits, None);
    }

    /// Returns the node that would serve a claim of the pool soonest; `None` if none could.
    pub fn soonest(&self, pool: &PoolRef) -> Option<Name> {
        self.inner().claims.soonest(pool).cloned()
    }

    /// Returns how many claims wait.
    pub fn waiting(&self) -> usize {
        self.inner().claims.waiting()
    }

    /// Returns how many transactions the claims of this leadership have taken so far.
    pub fn commits(&self) -> u64 {
        self.inner().writer.as_ref().map_or(0, Writer::commits)
    }

    /// Sets the weights of these tenants.
    pub fn weigh<'a>(&self, weights: impl IntoIterator<Item = (&'a Name, u32)>) {
        let mut inner = self.inner();
        weights.into_iter().for_each(|(tenant, weight)| inner.claims.set_weight(tenant, weight));
    }

    /// Sets what the node offers, and serves what fits now.
    pub fn offer(&self, node: &Name, room: NodeOffer) {
        let mut inner = self.inner();
        inner.claims.set_node(node, room);
        inner.pump();
    }

    /// Takes the list of claims that the node holds: those that it does not hold have ended, or
    /// never came there. Returns those whose client may come back for them, and those that are
    /// unknown here.
    pub fn resolve(&self, node: &Name, held: &[HeldClaim]) -> (Vec<LeaseId>, Vec<LeaseId>) {
        let held: BTreeSet<LeaseId> = held.iter().map(|claim| claim.id).collect();
        let mut inner = self.inner();
        let here = inner.orphans.iter().filter(|(_, record)| record.node == *node);
        let (there, gone): (Vec<LeaseId>, Vec<LeaseId>) =
            here.map(|(id, _)| *id).partition(|id| held.contains(id));
        for id in gone {
            inner.orphans.remove(&id);
            inner.conclude(id);
        }
        let strays = inner.claims.strays(node, held);
        (there, strays)
    }

    /// Sends no more claims to the node.
    pub fn close(&self, node: &Name) {
        self.inner().claims.close_node(node);
    }

    /// Queues the claim, which waits until `deadline` on the coordinator's timeline. Errors:
    /// `queue_full`, `claim_lost` or `leader_changed`.
    pub fn queue(
        &self,
        id: LeaseId,
        pool: &PoolRef,
        deadline: Timestamp,
    ) -> Result<oneshot::Receiver<Grant>> {
        let mut inner = self.inner();
        if inner.writer.is_none() {
            return Err(Error::Succeeded);
        }
        inner.claims.submit(id, pool, deadline).map_err(|refusal| refused(refusal, pool))?;
        let (sender, grant) = oneshot::channel();
        inner.waiters.insert(id, sender);
        inner.pump();
        Ok(grant)
    }

    /// Queues the claim again in its old place, after its node has refused it. Errors:
    /// `leader_changed`, where the queue that the claim was in is gone.
    pub fn again(&self, id: LeaseId) -> Result<oneshot::Receiver<Grant>> {
        let mut inner = self.inner();
        if inner.claims.node_of(id).is_none() {
            return Err(Error::Succeeded);
        }
        let (sender, grant) = oneshot::channel();
        inner.waiters.insert(id, sender);
        inner.claims.settle(id, Outcome::Refused);
        inner.pump();
        Ok(grant)
    }

    pub fn settle(&self, id: LeaseId, outcome: Outcome) {
        let mut inner = self.inner();
        inner.claims.settle(id, outcome);
        inner.pump();
    }

    /// Takes a claim out of the queue for which nobody waits any more; returns whether it was still
    /// there, and so was sent nowhere.
    pub fn cancel(&self, id: LeaseId) -> bool {
        let mut inner = self.inner();
        inner.waiters.remove(&id);
        inner.claims.cancel(id)
    }

    /// Ends the claim; its record is removed a moment later.
    pub fn conclude(&self, id: LeaseId) {
        let mut inner = self.inner();
        inner.conclude(id);
        inner.pump();
    }

    /// Takes the claim's orphan, if there is one.
    pub fn orphan(&self, id: LeaseId) -> Result<Option<ClaimRecord>> {
        let mut inner = self.inner();
        if inner.writer.is_none() {
            return Err(Error::Succeeded);
        }
        inner.parted.remove(&id);
        Ok(inner.orphans.remove(&id))
    }

    /// Puts back an orphan that was taken in vain.
    pub fn put_back(&self, id: LeaseId, record: ClaimRecord) {
        self.inner().orphans.insert(id, record);
    }

    /// Takes an orphan of an earlier leadership that nobody has come back for. One whose client was here since then,
    /// and has gone again, is left to [`ClaimQueue::take_parted`]: its time begins with the parting.
    pub fn take_orphan(&self, id: LeaseId) -> Option<ClaimRecord> {
        let mut inner = self.inner();
        if inner.parted.contains_key(&id) {
            return None;
        }
        inner.orphans.remove(&id)
    }

    /// Keeps a claim whose connection broke. Returns the number of the parting.
    pub fn part(&self, id: LeaseId, record: ClaimRecord) -> u64 {
        let mut inner = self.inner();
        inner.partings += 1;
        let parting = inner.partings;
        inner.orphans.insert(id, record);
        inner.parted.insert(id, parting);
        parting
    }

    /// Takes a claim that nobody has come back for since that parting.
    pub fn take_parted(&self, id: LeaseId, parting: u64) -> Option<ClaimRecord> {
        let mut inner = self.inner();
        if inner.parted.get(&id) != Some(&parting) {
            return None;
        }
        inner.parted.remove(&id);
        inner.orphans.remove(&id)
    }

    pub fn writer(&self) -> Result<Writer> {
        self.inner().writer.clone().ok_or(Error::Succeeded)
    }
}

impl Inner {
    fn new(limits: Limits, writer: Option<Writer>) -> Inner {
        let (waiters, orphans, parted) = Default::default();
        Inner { claims: Claims::new(limits), writer, waiters, orphans, partings: 0, parted }
    }

    /// Sends out all claims that can be served now.
    fn pump(&mut self) {
        while let Some(grant) = self.claims.next_grant() {
            let id = grant.claim;
            // Where the claim's task has gone, nothing was written and no node was asked.
            let sent = self.waiters.remove(&id).is_some_and(|sender| sender.send(grant).is_ok());
            if !sent {
                self.claims.settle(id, Outcome::Failed);
            }
        }
    }

    fn conclude(&mut self, id: LeaseId) {
        self.claims.end(id);
        if let Some(writer) = &self.writer {
            writer.delete(format!("{CLAIMS}{id}"));
        }
    }
}

fn refused(refusal: ClaimDenied, pool: &PoolRef) -> Error {
    match refusal {
        ClaimDenied::TenantFull | ClaimDenied::Full => {
            let whose = match refusal {
                ClaimDenied::Full => "the fleet".to_owned(),
                _ => format!("tenant {}", pool.tenant),
            };
            Error::QueueFull { whose }
        }
        // Requests for one claim are served one at a time: what is known is being given back.
        ClaimDenied::Known => Error::GivenBack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_was_parted_from_is_left_to_its_own_time() {
        let queue = ClaimQueue::new(Limits { per_node: 1, per_tenant: 1, total: 1 });
        let record = || ClaimRecord {
            pool: "ci/runners".parse().expect("a pool"),
            node: "node-1".parse().expect("a node"),
            holder: "uid:0".to_owned(),
            lease_s: None,
        };
        let [left, parted] = [1, 2].map(LeaseId::of_claim);
        queue.put_back(left, record());
        assert!(queue.take_orphan(left).is_some(), "an earlier leader's");
        let first = queue.part(parted, record());
        let second = queue.part(parted, record());
        assert!(queue.take_orphan(parted).is_none(), "its client was here since");
        assert!(queue.take_parted(parted, first).is_none(), "and came back once");
        assert!(queue.take_parted(parted, second).is_some());
        assert!(queue.take_orphan(parted).is_none());
    }

    #[test]
    fn a_claim_is_not_queued_again_where_its_leadership_has_ended() {
        let queue = ClaimQueue::new(Limits { per_node: 1, per_tenant: 1, total: 1 });
        // The leadership ended while its node was asked: nobody would ever serve the claim.
        queue.finish();
        assert!(matches!(queue.again(LeaseId::of_claim(1)), Err(Error::Succeeded)));
    }
}
