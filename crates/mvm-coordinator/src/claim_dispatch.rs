//! Claims: each is decided by the model, written down once, and served by one node.
//!
//! A claim's record is durable before the node is asked, and its id is the id of the lease there.
//! So the next leader finds the record and asks the node, which has the lease or never will: a node
//! that knows the new leader takes no word of the old one.

use crate::asking::{self, Unserved, ask};
use crate::claim_queue::ClaimOrder;
use crate::leadership::Lead;
use crate::node_client::Refused;
use crate::records::{CLAIMS, ClaimRecord, put};
use crate::state::ClusterState;
use crate::{Error, Result};
use mvm_api::fleet::HeldClaim;
use mvm_api::types::Claim;
use mvm_model::fleet::{Asking, NodeOffer, Outcome, node_offer};
use mvm_model::{LeaseId, Name};
use mvm_store::Expect;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How many nodes may refuse a claim before it is given up.
const TRIES: u32 = 5;
/// How long a node has to end a claim before it is asked again.
const END: Duration = Duration::from_secs(30);
/// How long a claim is kept whose client went with the leader before, in case it comes back.
const ORPHANED: Duration = Duration::from_secs(30);
/// How long a claim is kept whose connection broke: its client is dead, or asks for it again
/// through another coordinator.
const PARTED: Duration = Duration::from_secs(10);

/// Tells the queue what the node offers now.
pub(crate) fn refresh(fleet: &ClusterState, node: &Name) {
    if let Some(room) = offer_of(fleet, node) {
        fleet.claims.offer(node, room);
    }
}

/// Takes the node's list of claims that it holds. Those that are unknown here belong to nobody, and
/// are ended.
pub(crate) fn resolve(fleet: &Arc<ClusterState>, node: &Name, held: &[HeldClaim]) {
    let (there, strays) = fleet.claims.resolve(node, held);
    if let Some(lead) = fleet.lead() {
        for id in strays {
            tokio::spawn(end_stray(fleet.clone(), lead.clone(), id, node.clone()));
        }
        for id in there {
            tokio::spawn(reap(fleet.clone(), lead.clone(), id));
        }
    }
    refresh(fleet, node);
}

/// Returns what the node offers; `None` where it may not be asked.
fn offer_of(fleet: &ClusterState, node: &Name) -> Option<NodeOffer> {
    if !fleet.leads() {
        return None;
    }
    let view = fleet.view();
    let known = view.nodes.get(node).filter(|known| known.reached && known.resolved)?;
    let (status, share) = (known.status.as_ref(), view.placement.nodes.get(node)?);
    let seen = known.record.node(status)?;
    // This coordinator reaches it, whatever the record says.
    let seen = mvm_model::fleet::FleetNode { lost_since: None, ..seen };
    Some(node_offer(&view.shapes, &seen, share))
}

/// Serves a claim for this leadership, and returns the machine with its node. `gone` ends when
/// nobody waits for the claim any more. The future must run to its end: dropped in between it would
/// leave its claim behind.
pub(crate) async fn serve(
    fleet: &Arc<ClusterState>,
    lead: &Arc<Lead>,
    order: &ClaimOrder,
    gone: impl Future<Output = ()>,
) -> Result<(Claim, Name)> {
    let mut gone = std::pin::pin!(gone);
    match fleet.claims.orphan(order.id)? {
        Some(record) => return reattach(fleet, lead, order, record, gone).await,
        None if order.again => return Err(Error::ClaimEnded),
        None => {}
    }
    let patience = fleet.options.patience;
    let deadline = fleet.clock().now() + patience;
    let mut granted = fleet.claims.queue(order.id, &order.pool, deadline)?;
    let ends = Instant::now() + patience;
    let mut expect = Expect::Absent;
    for _ in 0..TRIES {
        let grant = tokio::select! {
            grant = &mut granted => grant.map_err(|_| Error::Succeeded)?,
            () = tokio::time::sleep_until(ends) => match fleet.claims.cancel(order.id) {
                true => return Err(waited(order, patience)),
                false => granted.await.map_err(|_| Error::Succeeded)?,
            },
            () = &mut gone => match fleet.claims.cancel(order.id) {
                true => return Err(Error::ClientGone),
                false => granted.await.map_err(|_| Error::Succeeded)?,
            },
        };
        let record = ClaimRecord {
            pool: order.pool.clone(),
            node: grant.node.clone(),
            holder: order.holder.clone(),
            lease_s: order.lease_s,
        };
        let writer = fleet.claims.writer()?;
        let write = put(format!("{CLAIMS}{}", order.id), &record, expect);
        if let Err(error) = writer.put(write).await {
            fleet.claims.settle(order.id, Outcome::Failed);
            // The record may have been written: it is removed, and the claim can be asked for
            // again.
            fleet.claims.conclude(order.id);
            return Err(error);
        }
        expect = Expect::Any;
        let asking = Asking::new(fleet.clock().now());
        match ask(fleet, lead, order, &grant.node, asking).await {
            Ok(claim) => {
                fleet.claims.settle(order.id, Outcome::Served);
                fleet.nodes.locations.note(claim.reference.to_string(), &grant.node);
                return Ok((claim, grant.node));
            }
            Err(Unserved::Elsewhere(_)) => granted = fleet.claims.again(order.id)?,
            Err(unserved) => {
                // The record stays: the node is asked to end it when it is reached again.
                fleet.claims.settle(order.id, Outcome::Failed);
                let node = grant.node.clone();
                tokio::spawn(release(fleet.clone(), lead.clone(), order.id, node));
                return Err(asking::client_error(unserved, &grant.node));
            }
        }
    }
    // The last refusal has put the claim into the queue again.
    if !fleet.claims.cancel(order.id) {
        fleet.claims.settle(order.id, Outcome::Failed);
    }
    fleet.claims.conclude(order.id);
    Err(Error::NoMachine { tries: TRIES, pool: order.pool.clone() })
}

/// Serves a client that comes back for what it was given before, or may have been. Where it goes
/// away again the claim waits for its next request.
async fn reattach(
    fleet: &Arc<ClusterState>,
    lead: &Arc<Lead>,
    order: &ClaimOrder,
    record: ClaimRecord,
    gone: impl Future<Output = ()>,
) -> Result<(Claim, Name)> {
    if (&record.pool, &record.holder) != (&order.pool, &order.holder) {
        fleet.claims.put_back(order.id, record);
        return Err(Error::OtherClaim);
    }
    let asking = Asking::anew(order.again, fleet.clock().now());
    let outcome = tokio::select! {
        outcome = ask(fleet, lead, order, &record.node, asking) => outcome,
        () = gone => {
            part(fleet.clone(), lead.clone(), order, record.node);
            return Err(Error::ClientGone);
        }
    };
    match outcome {
        Ok(claim) => Ok((claim, record.node)),
        Err(unserved) => {
            let node = record.node.clone();
            tokio::spawn(release(fleet.clone(), lead.clone(), order.id, node));
            Err(asking::client_error(unserved, &record.node))
        }
    }
}

/// Ends an orphan that no client comes back for, while this leadership lasts.
async fn reap(fleet: Arc<ClusterState>, lead: Arc<Lead>, id: LeaseId) {
    tokio::time::sleep(ORPHANED).await;
    if !fleet.leads_as(&lead) {
        return;
    }
    let orphan = fleet.claims.take_orphan(id);
    if let Some(record) = orphan {
        tracing::info!(claim = %id, node = %record.node, "nobody came back for it");
        release(fleet, lead, id, record.node).await;
    }
}

/// Keeps a claim for a while whose connection broke, or whose client has asked for it again: the
/// client may still use the machine.
pub(crate) fn part(fleet: Arc<ClusterState>, lead: Arc<Lead>, order: &ClaimOrder, node: Name) {
    if !fleet.leads_as(&lead) {
        return;
    }
    let id = order.id;
    let record = ClaimRecord {
        pool: order.pool.clone(),
        node: node.clone(),
        holder: order.holder.clone(),
        lease_s: order.lease_s,
    };
    let parting = fleet.claims.part(id, record);
    tokio::spawn(async move {
        tokio::time::sleep(PARTED).await;
        if fleet.leads_as(&lead) && fleet.claims.take_parted(id, parting).is_some() {
            tracing::info!(claim = %id, %node, "its client went away without a word");
            release(fleet, lead, id, node).await;
        }
    });
}

/// Asks the node to end a claim that belongs to nobody. There is no record of it: where this fails
/// the node ends it by itself.
async fn end_stray(fleet: Arc<ClusterState>, lead: Arc<Lead>, id: LeaseId, node: Name) {
    tracing::warn!(claim = %id, %node, "the node holds a claim of nobody's: it is ended");
    let Ok(port) = fleet.node_client(&node) else { return };
    match timeout(END, port.end(id, &lead.leader)).await {
        Ok(Ok(())) => {}
        Ok(Err(refused)) => {
            tracing::warn!(claim = %id, %node, "not ended: {}", refused.into_error())
        }
        Err(_) => tracing::warn!(claim = %id, %node, "not ended: no answer in time"),
    }
}

/// Asks the node to end the claim, for as long as that takes; another leadership goes on with it
/// from the record, unless its client comes back.
pub(crate) async fn release(fleet: Arc<ClusterState>, lead: Arc<Lead>, id: LeaseId, node: Name) {
    let mut pause = Duration::from_millis(100);
    while fleet.leads_as(&lead) {
        let known = fleet.view().nodes.contains_key(&node);
        let outcome = match fleet.node_client(&node) {
            _ if !known => Ok(()),
            Ok(port) => timeout(END, port.end(id, &lead.leader))
                .await
                .unwrap_or_else(|_| Err(Refused::Unknown(Error::Timeout))),
            Err(refused) => Err(refused),
        };
        match outcome {
            Ok(()) => return fleet.claims.conclude(id),
            Err(refused) => {
                tracing::debug!(claim = %id, %node, "not ended: {}", refused.into_error())
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

fn waited(order: &ClaimOrder, patience: Duration) -> Error {
    Error::NoMachineInTime { pool: order.pool.clone(), seconds: patience.as_secs() }
}
