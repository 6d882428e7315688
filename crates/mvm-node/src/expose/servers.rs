//! The instances behind fronts: woken under a lease for as long as they serve.

use crate::Result;
use crate::audit::Auditor;
use crate::error::Missing;
use crate::instances::{Instances, Slot};
use crate::lease_request::LeaseRequest;
use crate::leases::{Choice, Leases, extend};
use crate::records::{RecordSet, Records, Transaction};
use crate::spares::Spares;
use mvm_clock::Clock;
use mvm_model::expose::Expose;
use mvm_model::lease::Purpose;
use mvm_model::{Instance, InstanceId, PoolRef, State};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The length of a serving instance's lease, in seconds, which is extended again and again. If the
/// agent ends and does not come back in this time, the next one puts the instance to sleep.
const LEASE_S: u64 = 60;

/// The service of instances that serve fronts.
pub(super) struct Servers {
    records: Arc<Records>,
    instances: Arc<Instances>,
    leases: Arc<Leases>,
    spares: Arc<Spares>,
    auditor: Arc<Auditor>,
}

/// The changes that are due for a front's instances.
pub(super) struct Due {
    /// Instances that no longer serve the front.
    pub lost: Vec<InstanceId>,
    /// Instances whose leases are to be extended.
    leases: Vec<InstanceId>,
    /// Instances that are outdated and can no longer serve.
    outdated: Vec<InstanceId>,
}

impl Servers {
    /// Makes the service for these instances.
    pub fn new(
        records: Arc<Records>,
        instances: Arc<Instances>,
        leases: Arc<Leases>,
        spares: Arc<Spares>,
        auditor: Arc<Auditor>,
    ) -> Servers {
        Servers { records, instances, leases, spares, auditor }
    }

    /// Returns the node's clock.
    pub fn clock(&self) -> &Clock {
        self.records.clock()
    }

    /// Returns the slot of an instance that serves.
    pub fn slot(&self, id: InstanceId) -> Arc<Slot> {
        self.instances.slot(id)
    }

    /// Returns the instances that are leased for a front, with their states.
    pub fn held_by(&self, record: &Expose) -> Vec<(InstanceId, State)> {
        self.records.read(|records| {
            let held = records.of_pool(&record.pool).filter(|i| is_held_by(i, record.listen));
            held.map(|instance| (instance.id, instance.state)).collect()
        })
    }

    /// Returns whether the instance is leased for this front and runs.
    pub fn is_held(&self, id: InstanceId, listen: SocketAddr) -> bool {
        let held = |i: &Instance| is_held_by(i, listen) && i.state == State::Running;
        self.records.read(|records| records.instances.get(&id).is_some_and(held))
    }

    /// Brings an instance to `running` for a front, and leases it.
    pub async fn wake_for(&self, pool: &PoolRef, listen: SocketAddr) -> Result<InstanceId> {
        let holder = format!("expose:{listen}");
        let request = LeaseRequest { holder, purpose: Purpose::Expose, lease_s: Some(LEASE_S) };
        let woken = async {
            let (woken, _) = self.leases.acquire(pool, &request, &NextServer(listen), None).await?;
            Ok(woken.id)
        };
        self.auditor.as_agent("expose.wake", Some(&pool.tenant), pool, None, woken).await
    }

    /// Ends the lease of an instance that no longer serves.
    pub async fn end(&self, id: InstanceId) {
        self.leases.end(id).await;
    }

    /// Destroys an instance that nobody holds.
    pub async fn destroy(&self, id: InstanceId) -> Result<()> {
        self.spares.destroy(id).await
    }

    /// Returns the changes that are due for this front's instances.
    pub fn due(&self, pool: &PoolRef, listen: SocketAddr, serving: &[InstanceId]) -> Due {
        let half = self.clock().now() + Duration::from_secs(LEASE_S) / 2;
        self.records.read(|records| {
            let (mut lost, mut leases) = (Vec::new(), Vec::new());
            for id in serving {
                match records.instances.get(id).filter(|i| is_held_by(i, listen)) {
                    None => lost.push(*id),
                    Some(i) if i.lease.as_ref().is_some_and(|l| l.expired(half)) => {
                        leases.push(*id);
                    }
                    Some(_) => {}
                }
            }
            let outdated = || {
                let record = records.exposes.get(&listen)?;
                Some(record.outdated(records.pools.get(pool)?, records.of_pool(pool)))
            };
            Due { lost, leases, outdated: outdated().unwrap_or_default() }
        })
    }

    /// Carries out the changes.
    pub async fn apply(&self, due: Due) {
        if let Err(error) = self.extend_held(&due.leases).await {
            tracing::warn!("cannot extend leases: {error}");
        }
        for id in due.outdated {
            if let Err(error) = self.destroy(id).await {
                tracing::warn!(instance = %id, "cannot destroy: {error}");
            }
        }
    }

    /// Extends the leases of these instances, counted from now.
    pub async fn extend_held(&self, due: &[InstanceId]) -> Result<()> {
        let expires_at = self.clock().now() + Duration::from_secs(LEASE_S);
        self.records
            .change(|records, changes| {
                for instance in due.iter().filter_map(|id| records.instances.get(id)) {
                    let mut instance = instance.clone();
                    extend(&mut instance, expires_at);
                    changes.put_instance(instance);
                }
                Ok(())
            })
            .await
    }
}

/// Chooses the next instance to serve the front at this address.
struct NextServer(SocketAddr);

impl NextServer {
    fn record<'a>(&self, records: &'a RecordSet) -> Result<&'a Expose> {
        records.exposes.get(&self.0).ok_or_else(|| Missing::FrontAt(self.0).into())
    }
}

impl Choice for NextServer {
    fn choose<'a>(
        &self,
        records: &'a RecordSet,
        pool: &'a PoolRef,
    ) -> Result<Option<&'a Instance>> {
        Ok(self.record(records)?.choose(records.pool(pool)?, records.of_pool(pool)))
    }

    /// Adds the instance to the front's record, and removes those that are gone.
    fn note(&self, records: &RecordSet, changes: &mut Transaction, taken: &Instance) {
        let Ok(known) = self.record(records) else { return };
        let mut record = known.clone();
        record.instances.retain(|id| records.instances.contains_key(id));
        record.instances.insert(taken.id);
        if *known != record {
            changes.put_expose(record);
        }
    }
}

fn is_held_by(instance: &Instance, listen: SocketAddr) -> bool {
    let holder = format!("expose:{listen}");
    instance.lease.as_ref().is_some_and(|l| l.purpose == Purpose::Expose && l.holder == holder)
}
