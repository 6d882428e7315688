//! A node of a fleet: carries out the leader's requests.

use crate::Result;
use crate::desired::Desired;
use crate::error::{LeaseError, NodeError};
use crate::holders::LeaseHolders;
use crate::instances::Instances;
use crate::lease_request::LeaseRequest;
use crate::leases::{Leases, Readiest, leased};
use crate::locks::locked;
use crate::records::{RecordSet, Records};
use mvm_api::fleet::{HeldClaim, Leader, NodeClaim, NodeDocument, RenewClaims};
use mvm_api::types::Claim;
use mvm_model::lease::Purpose;
use mvm_model::{Actor, Lease, LeaseId, State};
use std::collections::HashMap;
use std::sync::{Arc, Mutex as Lock};
use tokio::sync::Mutex;

/// The node as a member of a fleet.
pub(crate) struct Fleet {
    records: Arc<Records>,
    instances: Arc<Instances>,
    leases: Arc<Leases>,
    holders: Arc<LeaseHolders>,
    desired: Arc<Desired>,
    /// One gate for each claim that is being brought up or ended, by the claim's id.
    gates: Lock<HashMap<LeaseId, Arc<Mutex<()>>>>,
}

impl Fleet {
    /// Makes the service, with the leases of the fleet's claims.
    pub(crate) fn new(
        records: Arc<Records>,
        instances: Arc<Instances>,
        leases: Arc<Leases>,
        holders: Arc<LeaseHolders>,
        desired: Arc<Desired>,
    ) -> Fleet {
        Fleet { records, instances, leases, holders, desired, gates: Lock::default() }
    }

    /// Runs `work` while no other task works on the claim.
    async fn with_claim_lock<T>(&self, id: LeaseId, work: impl Future<Output = T>) -> T {
        let gate = locked(&self.gates).entry(id).or_default().clone();
        let outcome = {
            let _alone = gate.lock().await;
            work.await
        };
        let mut gates = locked(&self.gates);
        // Only this task and the map hold the gate, so nobody waits for it.
        if Arc::strong_count(&gate) <= 2 {
            gates.remove(&id);
        }
        outcome
    }
}

impl Fleet {
    /// Obeys this leader from now on. Refuses one that is not the newest.
    pub(crate) async fn follow_leader(&self, leader: &Leader) -> Result<()> {
        let check = |known: Option<&Leader>| match known {
            Some(known) if known.fleet_id != leader.fleet_id => {
                let (ours, theirs) = (known.fleet_id.clone(), leader.fleet_id.clone());
                Err(NodeError::OtherFleet { ours, theirs })
            }
            Some(known) if known.epoch > leader.epoch => {
                Err(NodeError::StaleLeader { epoch: leader.epoch, newest: known.epoch })
            }
            Some(known) => Ok(known.epoch == leader.epoch),
            None => Ok(false),
        };
        if self.records.read(|records| check(records.leader.as_ref()))? {
            return Ok(());
        }
        self.records
            .change(|records, changes| {
                if !check(records.leader.as_ref())? {
                    changes.put_leader(leader.clone());
                }
                Ok(())
            })
            .await
    }

    /// Leaves the fleet, until another one's leader comes. The node keeps its pools and instances.
    pub(crate) async fn leave(&self) -> Result<()> {
        self.records
            .change(|records, changes| {
                if records.leader.is_some() {
                    changes.remove_leader();
                }
                if records.desired.as_ref().is_some_and(|desired| desired.fleet.is_some()) {
                    changes.remove_desired();
                }
                Ok(())
            })
            .await
    }

    /// Puts the fleet's document in force.
    pub(crate) async fn take_document(&self, body: NodeDocument) -> Result<()> {
        body.document.validate()?;
        self.follow_leader(&body.leader).await?;
        self.desired.apply_fleet_document(body.document, &body.digest).await
    }

    /// Provides an instance for a claim of the fleet; always the same one for the same id.
    pub(crate) async fn claim(&self, id: &str, body: NodeClaim) -> Result<Claim> {
        let id = claim_id(id)?;
        self.follow_leader(&body.leader).await?;
        self.with_claim_lock(id, self.claim_alone(id, &body)).await
    }

    async fn claim_alone(&self, id: LeaseId, body: &NodeClaim) -> Result<Claim> {
        let began = std::time::Instant::now();
        let known = self.records.read(|records| leased(records, id).ok().cloned());
        let (instance, from) = match known {
            Some(known) => {
                let by = Actor::Lease(id);
                let from = self.instances.transition_to(known.id, State::Running, &by).await?;
                (self.records.read(|records| records.by_id(known.id).cloned())?, from)
            }
            None => {
                let (holder, lease_s) = (body.holder.clone(), body.lease_s);
                let request = LeaseRequest { holder, purpose: Purpose::Run, lease_s };
                self.leases.acquire(&body.pool, &request, &Readiest, Some(id)).await?
            }
        };
        let gone = || LeaseError::Ended { id };
        let reference = instance.reference();
        let lease = instance.lease.filter(|lease| lease.id == id).ok_or_else(gone)?;
        let took_ms = began.elapsed().as_secs_f64() * 1000.0;
        let way_up = instance.way_up.filter(|_| from != State::Running);
        Ok(Claim { reference, from, way_up, took_ms, lease: self.holders.shown(&lease) })
    }

    /// Renews the leases of claims whose clients are connected at the leader. Returns those that
    /// have no lease here.
    pub(crate) async fn renew(&self, claims: &RenewClaims) -> Result<Vec<LeaseId>> {
        self.follow_leader(&claims.leader).await?;
        let gone = |records: &RecordSet| {
            let gone = claims.claims.iter().filter(|id| leased(records, **id).is_err());
            gone.copied().collect::<Vec<_>>()
        };
        let gone = self.records.read(gone);
        claims.claims.iter().filter(|id| !gone.contains(id)).for_each(|id| self.holders.renew(*id));
        Ok(gone)
    }

    /// Accepts another leader. The fleet's claims stay until their clients have had time to reach
    /// the new leader. Returns the claims.
    pub(crate) async fn led(&self, leader: &Leader) -> Result<Vec<HeldClaim>> {
        self.follow_leader(leader).await?;
        let held = self.claims();
        held.iter().for_each(|claim| self.holders.renew(claim.id));
        Ok(held)
    }

    /// Ends a claim of the fleet; a claim without a lease has ended already. A claim that is being
    /// brought up is ended afterwards, since a leader that hears that it has ended may give it to
    /// another node.
    pub(crate) async fn release(&self, id: &str, leader: &Leader) -> Result<()> {
        self.follow_leader(leader).await?;
        // No lease has an id that is none.
        let Ok(id) = id.parse() else { return Ok(()) };
        self.with_claim_lock(id, self.release_alone(id)).await
    }

    async fn release_alone(&self, id: LeaseId) -> Result<()> {
        if let Ok(instance) = self.records.read(|records| leased(records, id).map(|i| i.id)) {
            self.leases.end(instance).await;
        }
        match self.records.read(|records| leased(records, id).is_ok()) {
            false => Ok(()),
            // The coordinator repeats the request.
            true => Err(LeaseError::NotEnded { id }.into()),
        }
    }

    /// Returns the claims of the fleet that have a lease here.
    pub(crate) fn claims(&self) -> Vec<HeldClaim> {
        let held = |lease: &Lease, instance| HeldClaim {
            id: lease.id,
            instance,
            expires_at: self.records.clock().wall_of(self.holders.ends_at(lease)),
        };
        self.records.read(|records| {
            let leased = records.instances.values().filter_map(|i| Some((i.lease.as_ref()?, i)));
            let ours = leased.filter(|(lease, _)| lease.id.is_claim());
            ours.map(|(lease, instance)| held(lease, instance.reference())).collect()
        })
    }
}

/// Returns the id of a claim. Ids of a node's own leases are none.
fn claim_id(text: &str) -> Result<LeaseId> {
    let id = text.parse().ok().filter(|id: &LeaseId| id.is_claim());
    let invalid = || LeaseError::InvalidId { shown: text.chars().take(80).collect() };
    Ok(id.ok_or_else(invalid)?)
}
