//! The claims of the fleet, while this coordinator leads: who waits, who is served, and whose client has
//! gone. Which claim is served next, and where, is decided by [`mvm_model::fleet::Claims`].

use crate::errors::succeeded;
use crate::held_claims::HeldClaims;
use crate::records::{CLAIMS, ClaimRecord};
use crate::turns::Turns;
use crate::writer::Writer;
use crate::{Result, now};
use mvm_api::Problem;
use mvm_api::fleet::HeldClaim;
use mvm_model::fleet::{Claims, Grant, Limits, NodeOffer, Outcome, Refusal};
use mvm_model::{Code, Name, PoolRef};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Somebody wants a machine.
#[derive(Clone, Debug)]
pub(crate) struct ClaimOrder {
    /// The claim's id: the same one is the same claim.
    pub id: String,
    pub pool: PoolRef,
    pub holder: String,
    pub lease_s: Option<u64>,
    /// Only if an earlier leader has served it.
    pub again: bool,
}

/// All claims of the fleet, while we lead.
pub(crate) struct ClaimQueue {
    inner: Mutex<Inner>,
    limits: Limits,
    /// Whose turn it is to serve a claim.
    pub turns: Turns,
    /// Whose client is there.
    pub held: HeldClaims,
}

struct Inner {
    claims: Claims,
    writer: Option<Writer>,
    waiters: HashMap<String, oneshot::Sender<Grant>>,
    /// Served by an earlier leader or over a connection that broke, and nobody has asked for them
    /// since.
    orphans: BTreeMap<String, ClaimRecord>,
    /// How often a claim's connection has broken, over all claims.
    partings: u64,
    /// Of claims whose connection broke, which parting was the last.
    parted: BTreeMap<String, u64>,
}

impl ClaimQueue {
    pub fn new(limits: Limits) -> ClaimQueue {
        let (turns, held) = Default::default();
        ClaimQueue { inner: Mutex::new(Inner::new(limits, None)), limits, turns, held }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to lead, with what an earlier leader has written down.
    pub fn begin(&self, writer: Writer, records: BTreeMap<String, ClaimRecord>) {
        let mut inner = self.inner();
        *inner = Inner::new(self.limits, Some(writer));
        for (id, record) in &records {
            // Until its node says otherwise.
            inner.claims.adopt(id, &record.pool, &record.node, 0);
        }
        inner.orphans = records;
    }

    /// Leads no more: all that wait are told so, as their channels close.
    pub fn finish(&self) {
        *self.inner() = Inner::new(self.limits, None);
    }

    /// The node that would serve a claim of the pool soonest, if any could.
    pub fn soonest(&self, pool: &PoolRef) -> Option<Name> {
        self.inner().claims.soonest(pool).cloned()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.inner().claims.waiting()
    }

    /// Transactions for claims so far, of this leadership.
    pub fn commits(&self) -> u64 {
        self.inner().writer.as_ref().map_or(0, Writer::commits)
    }

    /// Gives the tenants their weights.
    pub fn weigh<'a>(&self, weights: impl IntoIterator<Item = (&'a Name, u32)>) {
        let mut inner = self.inner();
        weights.into_iter().for_each(|(tenant, weight)| inner.claims.set_weight(tenant, weight));
    }

    /// The node offers this.
    pub fn offer(&self, node: &Name, room: NodeOffer) {
        let mut inner = self.inner();
        inner.claims.set_node(node, room);
        inner.pump();
    }

    /// The node has told which claims it holds: what it does not hold has ended, or never came there.
    /// Gives those whose client may come back for them, and those of which nothing is known here.
    pub fn resolve(&self, node: &Name, held: &[HeldClaim]) -> (Vec<String>, Vec<String>) {
        let held: BTreeSet<&str> = held.iter().map(|claim| claim.id.as_str()).collect();
        let mut inner = self.inner();
        let here = inner.orphans.iter().filter(|(_, record)| record.node == *node);
        let (there, gone): (Vec<String>, Vec<String>) =
            here.map(|(id, _)| id.clone()).partition(|id| held.contains(id.as_str()));
        for id in gone {
            inner.orphans.remove(&id);
            inner.conclude(&id);
        }
        let strays = inner.claims.strays(node, held.iter().copied());
        (there, strays)
    }

    /// The node is not to be asked any more.
    pub fn close(&self, node: &Name) {
        self.inner().claims.close_node(node);
    }

    /// Has the claim wait for its turn.
    pub fn queue(
        &self,
        id: &str,
        pool: &PoolRef,
        patience: Duration,
    ) -> Result<oneshot::Receiver<Grant>> {
        let deadline = now() + patience.as_millis() as u64;
        let mut inner = self.inner();
        if inner.writer.is_none() {
            return Err(succeeded());
        }
        inner.claims.submit(id, pool, deadline).map_err(|refusal| refused(refusal, pool))?;
        let (tell, told) = oneshot::channel();
        inner.waiters.insert(id.to_owned(), tell);
        inner.pump();
        Ok(told)
    }

    /// The node has said no: the claim waits again, in its old place.
    pub fn again(&self, id: &str) -> oneshot::Receiver<Grant> {
        let (tell, told) = oneshot::channel();
        let mut inner = self.inner();
        inner.waiters.insert(id.to_owned(), tell);
        inner.claims.settle(id, Outcome::Refused);
        inner.pump();
        told
    }

    pub fn settle(&self, id: &str, outcome: Outcome) {
        let mut inner = self.inner();
        inner.claims.settle(id, outcome);
        inner.pump();
    }

    /// Nobody waits any more; whether it had not been sent anywhere.
    pub fn cancel(&self, id: &str) -> bool {
        let mut inner = self.inner();
        inner.waiters.remove(id);
        inner.claims.cancel(id)
    }

    /// It has ended: its record goes some time.
    pub fn conclude(&self, id: &str) {
        let mut inner = self.inner();
        inner.conclude(id);
        inner.pump();
    }

    /// Takes what an earlier leader has served.
    pub fn orphan(&self, id: &str) -> Result<Option<ClaimRecord>> {
        let mut inner = self.inner();
        if inner.writer.is_none() {
            return Err(succeeded());
        }
        inner.parted.remove(id);
        Ok(inner.orphans.remove(id))
    }

    /// Puts an orphan back that was taken for nothing.
    pub fn put_back(&self, id: &str, record: ClaimRecord) {
        self.inner().orphans.insert(id.to_owned(), record);
    }

    /// Takes an orphan that nobody has come back for.
    pub fn take_orphan(&self, id: &str) -> Option<ClaimRecord> {
        self.inner().orphans.remove(id)
    }

    /// Keeps a claim whose connection broke. Gives the number of the parting.
    pub fn part(&self, id: &str, record: ClaimRecord) -> u64 {
        let mut inner = self.inner();
        inner.partings += 1;
        let parting = inner.partings;
        inner.orphans.insert(id.to_owned(), record);
        inner.parted.insert(id.to_owned(), parting);
        parting
    }

    /// Takes a claim that nobody has come back for since that parting.
    pub fn take_parted(&self, id: &str, parting: u64) -> Option<ClaimRecord> {
        let mut inner = self.inner();
        if inner.parted.get(id) != Some(&parting) {
            return None;
        }
        inner.parted.remove(id);
        inner.orphans.remove(id)
    }

    pub fn writer(&self) -> Result<Writer> {
        self.inner().writer.clone().ok_or_else(succeeded)
    }
}

impl Inner {
    fn new(limits: Limits, writer: Option<Writer>) -> Inner {
        let (waiters, orphans, parted) = Default::default();
        Inner { claims: Claims::new(limits), writer, waiters, orphans, partings: 0, parted }
    }

    /// Sends out all that can be served now.
    fn pump(&mut self) {
        while let Some(grant) = self.claims.next_grant() {
            let id = grant.claim.clone();
            // Its task has gone: nothing was written, nothing was asked.
            let sent = self.waiters.remove(&id).is_some_and(|tell| tell.send(grant).is_ok());
            if !sent {
                self.claims.settle(&id, Outcome::Failed);
            }
        }
    }

    fn conclude(&mut self, id: &str) {
        self.claims.end(id);
        if let Some(writer) = &self.writer {
            writer.delete(format!("{CLAIMS}{id}"));
        }
    }
}

fn refused(refusal: Refusal, pool: &PoolRef) -> Problem {
    match refusal {
        Refusal::TenantFull | Refusal::Full => {
            let whose = match refusal {
                Refusal::Full => "the fleet".to_owned(),
                _ => format!("tenant {}", pool.tenant),
            };
            let detail = format!("as many claims of {whose} wait as may");
            Problem::new(Code::QueueFull, detail).hint("try again later")
        }
        // Requests for one claim are served one at a time: what is known is being given back.
        Refusal::Known => Problem::new(Code::ClaimLost, "the machine of this claim is given back")
            .hint("claim again, with another idempotency key"),
    }
}
