//! Leases: takes, extends and ends the right to use an instance.

mod acquire;

pub(crate) use acquire::{Choice, Readiest};

use crate::audit::{self, Auditor};
use crate::caches::Caches;
use crate::error::Missing;
use crate::holders::{LeaseHolders, job_on};
use crate::instances::{Instances, Slots, draw_ids, new_instance};
use crate::lease_request::{LeaseRequest, checked};
use crate::records::{RecordSet, Records};
use crate::wake::Wake;
use crate::{Error, Result};
use mvm_api::types::{HeldBy, LeaseView};
use mvm_model::admission::admit_state;
use mvm_model::lease::Purpose;
use mvm_model::recycling::{Ending, ending};
use mvm_model::{Actor, Instance, InstanceId, Lease, LeaseId, PoolRef, State, Timestamp};
use mvm_server::Peer;
use std::sync::Arc;
use std::time::Duration;

/// How long a manual lease is extended at a time while a session is open, in ms.
const SESSION_GRACE: Duration = Duration::from_secs(10);
/// The leases on instances.
pub(crate) struct Leases {
    records: Arc<Records>,
    instances: Arc<Instances>,
    caches: Arc<Caches>,
    slots: Arc<Slots>,
    holders: Arc<LeaseHolders>,
    auditor: Arc<Auditor>,
    wake: Wake,
}

impl Leases {
    /// Makes the service for the leases of these records, whose holders these are.
    pub(crate) fn new(
        records: Arc<Records>,
        instances: Arc<Instances>,
        caches: Arc<Caches>,
        slots: Arc<Slots>,
        holders: Arc<LeaseHolders>,
        auditor: Arc<Auditor>,
        wake: Wake,
    ) -> Leases {
        Leases { records, instances, caches, slots, holders, auditor, wake }
    }

    /// Makes an instance that has its lease from the beginning, if it may run.
    pub(crate) async fn create_leased(
        &self,
        pool: &PoolRef,
        request: &LeaseRequest,
    ) -> Result<Instance> {
        let (drawn, lease) = (draw_ids()?, request.lease(self.records.clock().now())?);
        self.records
            .change(|records, changes| {
                let now = self.records.clock().now();
                let mut instance = new_instance(records, pool, &drawn, now)?;
                may_run(records, &instance)?;
                (instance.lease, instance.leases_served) = (Some(lease), 1);
                changes.put_instance(instance.clone());
                audit::note_lease(&instance);
                Ok(instance)
            })
            .await
    }

    /// Returns all leases.
    pub(crate) fn list(&self) -> Vec<LeaseView> {
        self.records.read(|records| {
            let view = |i| self.holders.view(i, self.holder_of(records, i));
            records.instances.values().filter_map(view).collect()
        })
    }

    /// Returns who holds the lease of an instance, besides the connection of its claim.
    fn holder_of(&self, records: &RecordSet, instance: &Instance) -> Option<HeldBy> {
        let job = job_on(records.jobs.values(), instance).map(|job| HeldBy::Job(job.id));
        job.or_else(|| (self.slots.of(instance.id).sessions() > 0).then_some(HeldBy::Session))
    }

    /// Lets a lease end `seconds` from now; a job's lease at the latest then.
    pub(crate) async fn extend(&self, id: LeaseId, seconds: u64) -> Result<LeaseView> {
        checked(seconds)?;
        self.records
            .change(|records, changes| {
                let mut instance = leased(records, id)?.clone();
                extend(&mut instance, self.records.clock().now() + Duration::from_secs(seconds));
                let view = self.holders.view(&instance, self.holder_of(records, &instance));
                changes.put_instance(instance);
                view.ok_or_else(|| no_lease(id))
            })
            .await
    }

    /// Returns the id of the lease that this text names, if the lease exists and this caller may see
    /// it. Leases of other tenants are not found, nor is what cannot be a lease's id.
    pub(crate) fn lease_for(&self, peer: &Peer, text: &str) -> Result<LeaseId> {
        let unknown = || Missing::Lease(text.to_owned());
        let id = text.parse().map_err(|_| unknown())?;
        let seen =
            self.records.read(|records| leased(records, id).map(|i| peer.sees(&i.pool.tenant)))?;
        if seen { Ok(id) } else { Err(unknown().into()) }
    }

    /// Ends a lease now, also that of a job. The instance is recycled by the pool's rule.
    pub(crate) async fn release(&self, id: LeaseId) -> Result<()> {
        let instance =
            self.records.read(|records| leased(records, id).map(|instance| instance.id))?;
        self.end(instance).await;
        Ok(())
    }

    /// Ends this lease, unless it has ended already and the instance may have another one.
    pub(crate) async fn end_of(&self, id: InstanceId, lease: LeaseId) {
        if self.records.read(|records| held_by(records, id, lease).is_some()) {
            self.end(id).await;
        }
    }

    /// Ends this lease and destroys its instance, whatever the pool's rule: the guest did not act
    /// in time and must not be asked for anything more.
    pub(crate) async fn discard(&self, id: InstanceId, lease: LeaseId) {
        let work = async { self.instances.destroy(id, &Actor::Lease(lease)).await };
        let held = async || self.records.read(|records| held_by(records, id, lease).is_some());
        if held().await
            && let Err(error) = self.auditor.as_agent_on("lease.end", id, work).await
            && held().await
        {
            tracing::error!(instance = %id, "cannot destroy: {error}");
            self.holders.not_ended(lease);
        }
        self.wake.notify();
    }

    /// Gives an unused instance back as it was before this lease.
    pub(crate) async fn cancel_lease(&self, id: InstanceId, lease: LeaseId) -> Result<()> {
        self.records
            .change(|records, changes| {
                let Some(mut instance) = held_by(records, id, lease).cloned() else {
                    return Ok(());
                };
                instance.lease = None;
                instance.leases_served = instance.leases_served.saturating_sub(1);
                changes.put_instance(instance);
                Ok(())
            })
            .await
    }

    /// Removes this lease from its instance. Does nothing if the lease has ended.
    async fn remove_lease(&self, id: InstanceId, lease: LeaseId) -> Result<()> {
        self.records
            .change(|records, changes| {
                let Some(mut instance) = held_by(records, id, lease).cloned() else {
                    return Ok(());
                };
                instance.lease = None;
                changes.put_instance(instance);
                Ok(())
            })
            .await
    }

    /// Ends a lease and recycles the instance by its pool's rule. A person's instance in a pool
    /// that was never scaled only loses its lease, because the reconciler leaves that pool alone.
    pub async fn end(&self, id: InstanceId) {
        let due = self.records.read(|records| {
            let instance = records.by_id(id).ok()?;
            let becomes = ending(instance, records.pools.get(&instance.pool))?;
            Some((becomes, instance.lease.as_ref()?.id))
        });
        let Some((mut becomes, lease)) = due else { return };
        if becomes != Ending::Destroy && !self.caches.close(id).await {
            becomes = Ending::Destroy;
        }
        let work = self.recycle(id, becomes, lease);
        let recycled = self.auditor.as_agent_on("lease.end", id, work).await;
        let ended = self.records.read(|records| held_by(records, id, lease).is_none());
        if let Err(error) = recycled
            // The lease may have been ended elsewhere in the meantime, and the instance may have
            // another one.
            && !ended
        {
            tracing::error!(instance = %id, "cannot recycle: {error}");
            self.holders.not_ended(lease);
        }
        self.wake.notify();
    }

    async fn recycle(&self, id: InstanceId, becomes: Ending, lease: LeaseId) -> Result<()> {
        let by = Actor::Lease(lease);
        match becomes {
            Ending::Destroy => self.instances.destroy(id, &by).await,
            Ending::Sleep => match self.instances.transition_to(id, State::Sleeping, &by).await {
                Ok(_) => self.remove_lease(id, lease).await,
                Err(error) => {
                    tracing::warn!(instance = %id, "cannot put to sleep: {error}");
                    self.instances.destroy(id, &by).await
                }
            },
            Ending::Free => self.remove_lease(id, lease).await,
        }
    }

    /// Ends the leases whose deadline has passed or whose holder is gone. A manual lease with an
    /// open session is extended instead.
    pub(crate) async fn expire(self: &Arc<Self>) {
        let due: Vec<(InstanceId, Lease)> = self.records.read(|records| {
            self.holders.retain(|id| leased(records, id).is_ok());
            let leased = records.instances.values().filter_map(|i| Some((i, i.lease.as_ref()?)));
            for (instance, lease) in leased.clone() {
                if self.holder_of(records, instance).is_some() {
                    self.holders.renew(lease.id);
                }
            }
            let due = leased.filter(|(_, lease)| self.holders.is_due(lease));
            due.map(|(instance, lease)| (instance.id, lease.clone())).collect()
        });
        for (id, lease) in due {
            if lease.purpose == Purpose::Manual && self.slots.of(id).sessions() > 0 {
                let later = self.records.clock().now() + SESSION_GRACE;
                if let Err(error) = self.records.update(id, |i| extend(i, later)).await {
                    tracing::warn!(instance = %id, "cannot extend a lease: {error}");
                }
                continue;
            }
            if let Some(ending) = self.holders.begin_end(lease.id) {
                let leases = self.clone();
                tokio::spawn(async move {
                    leases.end_of(id, lease.id).await;
                    drop(ending);
                });
            }
        }
    }
}

fn no_lease(id: LeaseId) -> Error {
    Missing::Lease(id.to_string()).into()
}

/// Returns the instance with this lease.
pub(crate) fn leased(records: &RecordSet, id: LeaseId) -> Result<&Instance> {
    let has = |i: &&Instance| i.lease.as_ref().is_some_and(|lease| lease.id == id);
    records.instances.values().find(has).ok_or_else(|| no_lease(id))
}

/// Returns the instance, if it still has this lease.
fn held_by(records: &RecordSet, id: InstanceId, lease: LeaseId) -> Option<&Instance> {
    let instance = records.instances.get(&id)?;
    instance.lease.as_ref().is_some_and(|held| held.id == lease).then_some(instance)
}

/// Returns an error if the quotas do not let the instance run.
pub(crate) fn may_run(records: &RecordSet, instance: &Instance) -> Result<()> {
    let tenant = records.tenant(&instance.pool.tenant)?;
    let usage = records.usage(&tenant.name);
    Ok(admit_state(&tenant.name, &tenant.quotas, &usage, instance, State::Running)?)
}

/// Sets the deadline of an instance's lease; of a job's lease, the latest time of its end.
pub(crate) fn extend(instance: &mut Instance, until: Timestamp) {
    match &mut instance.lease {
        Some(lease) if lease.purpose.lives_with_holder() => lease.longest_until = Some(until),
        Some(lease) => lease.expires_at = until,
        None => {}
    }
}
