//! Claims: each is decided by the model, written down once, and served by one node.
//!
//! A claim's record is durable before the node is asked, and its id is the id of the lease there. So
//! whoever leads next finds the record and asks the node: it has the lease, or it never will, since
//! a node that knows the new leader takes no word of the old one.

use crate::asking::{self, Unserved, ask};
use crate::fleet::{Fleet, Lead};
use crate::port::Refused;
use crate::records::{CLAIMS, ClaimRecord, put};
use crate::renewal::HeldClaims;
use crate::turns::Turns;
use crate::writer::Writer;
use crate::{Result, now};
use mvm_api::Problem;
use mvm_api::fleet::HeldClaim;
use mvm_api::types::Claim;
use mvm_model::fleet::{Asking, Claims, Grant, Limits, Outcome, Refusal, Room, room};
use mvm_model::{Name, PoolRef};
use mvm_store::Expect;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// How many nodes a claim tries that say no.
const TRIES: u32 = 5;
/// How long a node has to end a claim before it is asked again.
const END: Duration = Duration::from_secs(30);
/// How long a claim stays whose client went with the leader before, in case that it comes back.
const ORPHANED: Duration = Duration::from_secs(30);
/// How long a claim stays whose connection broke: its client is dead, or asks for it again through
/// another coordinator.
const PARTED: Duration = Duration::from_secs(10);

/// Somebody wants a machine.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    /// The claim's id: the same one is the same claim.
    pub id: String,
    pub pool: PoolRef,
    pub holder: String,
    pub lease_s: Option<u64>,
    /// Only if an earlier leader has served it.
    pub again: bool,
}

/// All claims of the fleet, while we lead.
pub(crate) struct Desk {
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

impl Desk {
    pub fn new(limits: Limits) -> Desk {
        let (turns, held) = Default::default();
        Desk { inner: Mutex::new(Inner::new(limits, None)), limits, turns, held }
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

    /// What the node offers has changed.
    pub fn refresh(&self, fleet: &Fleet, node: &Name) {
        if let Some(room) = room_of(fleet, node) {
            let mut inner = self.inner();
            inner.claims.set_node(node, room);
            inner.pump();
        }
    }

    /// The node offers this, whatever is known of it.
    #[cfg(test)]
    pub fn offer(&self, node: &Name, room: Room) {
        self.inner().claims.set_node(node, room);
    }

    /// The node is not to be asked any more.
    pub fn close(&self, node: &Name) {
        self.inner().claims.close_node(node);
    }

    /// The node has told which claims it holds: what it does not hold has ended, or never came there,
    /// and what it holds of which nothing is known here belongs to nobody.
    pub fn resolve(&self, fleet: &Arc<Fleet>, node: &Name, held: &[HeldClaim]) {
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
        drop(inner);
        if let Some(lead) = fleet.lead() {
            for id in strays {
                tokio::spawn(end_stray(fleet.clone(), lead.clone(), id, node.clone()));
            }
            for id in there {
                tokio::spawn(reap(fleet.clone(), lead.clone(), id));
            }
        }
        self.refresh(fleet, node);
    }

    /// Has the claim wait for its turn.
    fn queue(
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
    fn again(&self, id: &str) -> oneshot::Receiver<Grant> {
        let (tell, told) = oneshot::channel();
        let mut inner = self.inner();
        inner.waiters.insert(id.to_owned(), tell);
        inner.claims.settle(id, Outcome::Refused);
        inner.pump();
        told
    }

    fn settle(&self, id: &str, outcome: Outcome) {
        let mut inner = self.inner();
        inner.claims.settle(id, outcome);
        inner.pump();
    }

    /// Nobody waits any more; whether it had not been sent anywhere.
    fn cancel(&self, id: &str) -> bool {
        let mut inner = self.inner();
        inner.waiters.remove(id);
        inner.claims.cancel(id)
    }

    /// It has ended: its record goes some time.
    fn conclude(&self, id: &str) {
        let mut inner = self.inner();
        inner.conclude(id);
        inner.pump();
    }

    /// Takes what an earlier leader has served.
    pub(crate) fn orphan(&self, id: &str) -> Result<Option<ClaimRecord>> {
        let mut inner = self.inner();
        if inner.writer.is_none() {
            return Err(succeeded());
        }
        inner.parted.remove(id);
        Ok(inner.orphans.remove(id))
    }

    /// Keeps a claim whose connection broke. Gives the number of the parting.
    fn part(&self, id: &str, record: ClaimRecord) -> u64 {
        let mut inner = self.inner();
        inner.partings += 1;
        let parting = inner.partings;
        inner.orphans.insert(id.to_owned(), record);
        inner.parted.insert(id.to_owned(), parting);
        parting
    }

    /// Takes a claim that nobody has come back for since that parting.
    fn take_parted(&self, id: &str, parting: u64) -> Option<ClaimRecord> {
        let mut inner = self.inner();
        if inner.parted.get(id) != Some(&parting) {
            return None;
        }
        inner.parted.remove(id);
        inner.orphans.remove(id)
    }

    fn writer(&self) -> Result<Writer> {
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

/// What the node offers, if it may be asked.
fn room_of(fleet: &Fleet, node: &Name) -> Option<Room> {
    if !fleet.leads() {
        return None;
    }
    let view = fleet.view();
    let known = view.nodes.get(node).filter(|known| known.reached && known.resolved)?;
    let (status, share) = (known.status.as_ref(), view.placement.nodes.get(node)?);
    let seen = known.record.node(status)?;
    // It is reached by us, whatever the record says.
    let seen = mvm_model::fleet::Node { lost_since: None, ..seen };
    Some(room(&view.shapes, &seen, share))
}

/// Serves a claim, as this leadership: gives the machine and the node that it is on. `gone` ends when
/// nobody waits for it any more. It is to be run to its end: dropped in between it would leave its
/// claim behind.
pub(crate) async fn serve(
    fleet: &Arc<Fleet>,
    lead: &Arc<Lead>,
    wish: &Wish,
    gone: impl Future<Output = ()>,
) -> Result<(Claim, Name)> {
    let mut gone = std::pin::pin!(gone);
    match fleet.desk.orphan(&wish.id)? {
        Some(record) => return reattach(fleet, lead, wish, record, gone).await,
        None if wish.again => return Err(over()),
        None => {}
    }
    let patience = fleet.options.patience;
    let mut told = fleet.desk.queue(&wish.id, &wish.pool, patience)?;
    let ends = Instant::now() + patience;
    let mut expect = Expect::Absent;
    for _ in 0..TRIES {
        let grant = tokio::select! {
            grant = &mut told => grant.map_err(|_| succeeded())?,
            () = tokio::time::sleep_until(ends) => match fleet.desk.cancel(&wish.id) {
                true => return Err(waited(wish, patience)),
                false => told.await.map_err(|_| succeeded())?,
            },
            () = &mut gone => match fleet.desk.cancel(&wish.id) {
                true => return Err(parted()),
                false => told.await.map_err(|_| succeeded())?,
            },
        };
        let record = ClaimRecord {
            pool: wish.pool.clone(),
            node: grant.node.clone(),
            holder: wish.holder.clone(),
            lease_s: wish.lease_s,
        };
        let writer = fleet.desk.writer()?;
        let write = put(format!("{CLAIMS}{}", wish.id), &record, expect);
        if let Err(problem) = writer.put(write).await {
            fleet.desk.settle(&wish.id, Outcome::Failed);
            // It may have been written: the claim can be asked for again.
            fleet.desk.conclude(&wish.id);
            return Err(problem);
        }
        expect = Expect::Any;
        match ask(fleet, lead, wish, &grant.node, Asking::new(now())).await {
            Ok(claim) => {
                fleet.desk.settle(&wish.id, Outcome::Served);
                fleet.places.note(claim.reference.to_string(), &grant.node);
                return Ok((claim, grant.node));
            }
            Err(Unserved::Elsewhere(_)) => told = fleet.desk.again(&wish.id),
            Err(unserved) => {
                // The record stays: the node is asked to end it when it is reached again.
                fleet.desk.settle(&wish.id, Outcome::Failed);
                let node = grant.node.clone();
                tokio::spawn(release(fleet.clone(), lead.clone(), wish.id.clone(), node));
                return Err(asking::told(unserved, &grant.node));
            }
        }
    }
    // It waits again: not any more.
    if !fleet.desk.cancel(&wish.id) {
        fleet.desk.settle(&wish.id, Outcome::Failed);
    }
    fleet.desk.conclude(&wish.id);
    let detail = format!("{TRIES} nodes could not serve a claim of pool {}", wish.pool);
    Err(Problem::new(503, "no_machine", detail).hint("see `mvm fleet status`"))
}

/// A client comes back for what it was given before, or may have been. Where it goes away again the
/// claim waits for its next request.
async fn reattach(
    fleet: &Arc<Fleet>,
    lead: &Arc<Lead>,
    wish: &Wish,
    record: ClaimRecord,
    gone: impl Future<Output = ()>,
) -> Result<(Claim, Name)> {
    if (&record.pool, &record.holder) != (&wish.pool, &wish.holder) {
        fleet.desk.inner().orphans.insert(wish.id.clone(), record);
        let detail = "this idempotency key is of another claim";
        return Err(Problem::new(409, "conflict", detail));
    }
    let asking = Asking::anew(wish.again, now());
    let outcome = tokio::select! {
        outcome = ask(fleet, lead, wish, &record.node, asking) => outcome,
        () = gone => {
            part(fleet.clone(), lead.clone(), wish, record.node);
            return Err(parted());
        }
    };
    match outcome {
        Ok(claim) => Ok((claim, record.node)),
        Err(unserved) => {
            let node = record.node.clone();
            tokio::spawn(release(fleet.clone(), lead.clone(), wish.id.clone(), node));
            Err(asking::told(unserved, &record.node))
        }
    }
}

/// Ends an orphan that nobody comes back for while this leadership lasts.
async fn reap(fleet: Arc<Fleet>, lead: Arc<Lead>, id: String) {
    tokio::time::sleep(ORPHANED).await;
    if !fleet.leads_as(&lead) {
        return;
    }
    let orphan = fleet.desk.inner().orphans.remove(&id);
    if let Some(record) = orphan {
        tracing::info!(claim = id, node = %record.node, "nobody came back for it");
        release(fleet, lead, id, record.node).await;
    }
}

/// Keeps a claim for a while whose connection broke, or whose client has asked for it again: the
/// client may still use the machine.
pub(crate) fn part(fleet: Arc<Fleet>, lead: Arc<Lead>, wish: &Wish, node: Name) {
    if !fleet.leads_as(&lead) {
        return;
    }
    let id = wish.id.clone();
    let record = ClaimRecord {
        pool: wish.pool.clone(),
        node: node.clone(),
        holder: wish.holder.clone(),
        lease_s: wish.lease_s,
    };
    let parting = fleet.desk.part(&id, record);
    tokio::spawn(async move {
        tokio::time::sleep(PARTED).await;
        if fleet.leads_as(&lead) && fleet.desk.take_parted(&id, parting).is_some() {
            tracing::info!(claim = id, %node, "its client went away without a word");
            release(fleet, lead, id, node).await;
        }
    });
}

/// Has the node end a claim that is nobody's. It has no record; where this fails the node ends it by
/// itself.
async fn end_stray(fleet: Arc<Fleet>, lead: Arc<Lead>, id: String, node: Name) {
    tracing::warn!(claim = id, %node, "the node holds a claim of nobody's: it is ended");
    let Ok(port) = fleet.port(&node) else { return };
    match timeout(END, port.end(&id, &lead.leader)).await {
        Ok(Ok(())) => {}
        Ok(Err(refused)) => tracing::warn!(claim = id, %node, "not ended: {}", refused.problem()),
        Err(_) => tracing::warn!(claim = id, %node, "not ended: no answer in time"),
    }
}

/// Has the node end the claim, however long that takes; another leadership goes on with it from the
/// record, unless its client comes back.
pub(crate) async fn release(fleet: Arc<Fleet>, lead: Arc<Lead>, id: String, node: Name) {
    let mut pause = Duration::from_millis(100);
    while fleet.leads_as(&lead) {
        let known = fleet.view().nodes.contains_key(&node);
        let outcome = match fleet.port(&node) {
            _ if !known => Ok(()),
            Ok(port) => timeout(END, port.end(&id, &lead.leader)).await.unwrap_or_else(|_| {
                Err(Refused::Unknown(Problem::new(504, "timeout", "no answer in time")))
            }),
            Err(refused) => Err(refused),
        };
        match outcome {
            Ok(()) => return fleet.desk.conclude(&id),
            Err(refused) => tracing::debug!(claim = id, %node, "not ended: {}", refused.problem()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
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
            Problem::new(429, "queue_full", detail).hint("try again later")
        }
        // Requests for one claim are served one at a time: what is known is being given back.
        Refusal::Known => {
            Problem::new(503, "claim_lost", "the machine of this claim is given back")
                .hint("claim again, with another idempotency key")
        }
    }
}

fn waited(wish: &Wish, patience: Duration) -> Problem {
    let seconds = patience.as_secs();
    let detail = format!("no node had a machine of pool {} within {seconds} s", wish.pool);
    Problem::new(503, "no_machine", detail).hint("see `mvm fleet status`")
}

fn parted() -> Problem {
    Problem::new(499, "connection_broken", "the client has gone")
}

fn over() -> Problem {
    Problem::new(410, "claim_ended", "no earlier leader has served this claim, or it has ended")
        .hint("claim anew")
}

/// Another coordinator leads.
pub(crate) fn succeeded() -> Problem {
    Problem::new(503, "leader_changed", "this coordinator does not lead any more").hint("try again")
}
