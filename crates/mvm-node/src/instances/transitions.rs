//! The durable side of transitions: their admission, intent and outcome.

use super::slot::Live;
use super::slots::Slots;
use crate::audit::note_target;
use crate::error::InternalError;
use crate::random::random_bytes;
use crate::records::{RecordSet, Records, not_built};
use crate::{Error, Result};
use mvm_model::accelerator::Processor;
use mvm_model::admission::{admit_instance, admit_state};
use mvm_model::network::mac_of;
use mvm_model::{
    Actor, CacheDisk, Instance, InstanceId, Intent, PoolRef, State, Tenant, Timestamp,
};
use std::sync::Arc;

/// How many ids are drawn to find one that no instance has.
const ID_DRAWS: usize = 64;

/// Records transitions of instances.
pub(crate) struct Transitions {
    records: Arc<Records>,
    slots: Arc<Slots>,
}

impl Transitions {
    /// Makes the service that writes to these records.
    pub(crate) fn new(records: Arc<Records>, slots: Arc<Slots>) -> Transitions {
        Transitions { records, slots }
    }

    /// Records a new instance of the pool. The reconciler brings it to the state `goal`, if there
    /// is one.
    pub async fn create(&self, pool: &PoolRef, goal: Option<State>) -> Result<Instance> {
        self.create_with(pool, |instance| instance.goal = goal).await
    }

    /// Records a new instance of the pool, changed by `also`.
    pub(crate) async fn create_with(
        &self,
        pool: &PoolRef,
        also: impl FnOnce(&mut Instance),
    ) -> Result<Instance> {
        let drawn = draw_ids()?;
        self.records
            .change(|records, changes| {
                let now = self.records.clock().now();
                let mut instance = new_instance(records, pool, &drawn, now)?;
                also(&mut instance);
                changes.put_instance(instance.clone());
                note_target(instance.reference());
                Ok(instance)
            })
            .await
    }

    /// Writes the intent, if the table, the quotas and the lease allow the transition.
    pub(super) async fn begin(
        &self,
        id: InstanceId,
        to: State,
        by: &Actor,
    ) -> Result<(Tenant, Instance)> {
        self.begin_with(id, to, by, |_| {}).await
    }

    /// Like [`Transitions::begin`]; `also` changes the record in the same write.
    pub(super) async fn begin_with(
        &self,
        id: InstanceId,
        to: State,
        by: &Actor,
        also: impl FnOnce(&mut Instance),
    ) -> Result<(Tenant, Instance)> {
        self.records
            .change(|records, changes| {
                let before = admit(records, id, to, by)?;
                let tenant = records.tenant(&before.pool.tenant)?.clone();
                let mut instance = before.clone();
                also(&mut instance);
                instance.intent =
                    Some(Intent { from: before.state, to, since: self.records.clock().now() });
                changes.put_instance(instance.clone());
                Ok((tenant, instance))
            })
            .await
    }

    /// Writes the outcome of a start: that the instance runs on this processor, or `failed` with the
    /// reason.
    pub(super) async fn conclude(
        &self,
        id: InstanceId,
        processor: Option<Processor>,
        outcome: Result<()>,
    ) -> Result<()> {
        match outcome {
            Ok(()) => {
                let runs = |instance: &mut Instance| {
                    instance.processor = processor;
                    reached(instance, State::Running, self.records.clock().now());
                };
                self.records.update(id, runs).await
            }
            Err(error) => {
                self.set_failed(id, &error.to_string()).await?;
                Err(error)
            }
        }
    }

    /// Removes the intent of a transition that has changed nothing.
    pub(super) async fn abandon(&self, id: InstanceId) -> Result<()> {
        self.records.update(id, |instance| instance.intent = None).await
    }

    /// Ends a machine that cannot be saved, and records why.
    pub(crate) async fn fail(&self, live: &mut Live, id: InstanceId, error: Error) -> Result<()> {
        if let Err(second) = live.kill().await {
            tracing::error!(instance = %id, "cannot end a machine: {second}");
        }
        self.set_failed(id, &error.to_string()).await?;
        Err(error)
    }

    /// Checks and writes a transition that changes nothing but the record.
    pub(super) async fn record_transition(
        &self,
        id: InstanceId,
        to: State,
        by: &Actor,
        also: impl FnOnce(&mut Instance),
    ) -> Result<()> {
        self.records
            .change(|records, changes| {
                let mut instance = admit(records, id, to, by)?.clone();
                also(&mut instance);
                release_manual_lease(&mut instance, to, by);
                reached(&mut instance, to, self.records.clock().now());
                changes.put_instance(instance);
                Ok(())
            })
            .await
    }

    /// Writes the outcome of a transition on behalf of `by`.
    pub(super) async fn complete(&self, id: InstanceId, to: State, by: &Actor) -> Result<()> {
        self.records
            .update(id, |instance| {
                release_manual_lease(instance, to, by);
                reached(instance, to, self.records.clock().now());
            })
            .await
    }

    /// Writes the outcome of a transition that gave the instance a machine; `up` notes how it came
    /// up, and on which processor.
    pub(super) async fn arrive_up(
        &self,
        id: InstanceId,
        to: State,
        by: &Actor,
        up: impl FnOnce(&mut Instance),
    ) -> Result<()> {
        self.records
            .update(id, |instance| {
                up(instance);
                release_manual_lease(instance, to, by);
                reached(instance, to, self.records.clock().now());
            })
            .await
    }

    /// Handles an instance that is in the wanted state already: at most its lease is ended.
    pub(super) async fn stay(&self, id: InstanceId, to: State, by: &Actor) -> Result<()> {
        self.records
            .change(|records, changes| {
                let mut instance = records.by_id(id)?.clone();
                by.check(&instance)?;
                if by.gives_up(&instance, to) {
                    release_manual_lease(&mut instance, to, by);
                    changes.put_instance(instance);
                }
                Ok(())
            })
            .await
    }

    /// Records that the guest has ended its machine by itself.
    pub(super) async fn set_ended(&self, id: InstanceId, reason: &str) -> Result<()> {
        self.records
            .update(id, |instance| {
                reached(instance, State::Stopped, self.records.clock().now());
                instance.reason = Some(reason.to_owned());
            })
            .await
    }

    pub(crate) async fn set_failed(&self, id: InstanceId, reason: &str) -> Result<()> {
        // If a machine was ended under an operation, the interrupt is the reason, not the machine's
        // end.
        let interrupted = self.slots.of(id).waits.interrupted().map(|why| why.to_string());
        let reason = interrupted.as_deref().unwrap_or(reason);
        self.records
            .update(id, |instance| {
                tracing::warn!(instance = %instance.reference(), reason, "failed");
                instance.reach(State::Failed, self.records.clock().now());
                instance.reason = Some(reason.to_owned());
            })
            .await
    }
}

/// Notes that the instance reached a state at `now`.
pub(super) fn reached(instance: &mut Instance, to: State, now: Timestamp) {
    tracing::info!(instance = %instance.reference(), from = %instance.state, %to, "moved");
    instance.reach(to, now);
}

/// Ends a manual lease if the transition makes it unnecessary.
fn release_manual_lease(instance: &mut Instance, to: State, by: &Actor) {
    if by.gives_up(instance, to) {
        instance.lease = None;
    }
}

/// Checks lease, table and quotas for one transition. Returns the record as it is.
pub(super) fn admit<'a>(
    records: &'a RecordSet,
    id: InstanceId,
    to: State,
    by: &Actor,
) -> Result<&'a Instance> {
    let instance = records.by_id(id)?;
    by.check(instance)?;
    instance.state.check(to)?;
    let tenant = records.tenant(&instance.pool.tenant)?;
    let usage = records.usage(&tenant.name);
    admit_state(&tenant.name, &tenant.quotas, &usage, instance, to)?;
    Ok(instance)
}

/// Draws numbers from which [`new_instance`] chooses an id.
pub(crate) fn draw_ids() -> Result<Vec<u32>> {
    (0..ID_DRAWS).map(|_| Ok(u32::from_le_bytes(random_bytes::<4>()?))).collect()
}

/// Returns a new instance of the pool, made at `now`, if quotas and subnet have room for it.
pub(crate) fn new_instance(
    records: &RecordSet,
    reference: &PoolRef,
    drawn: &[u32],
    now: Timestamp,
) -> Result<Instance> {
    let pool = records.pool(reference)?;
    let tenant = records.tenant(&reference.tenant)?;
    let revision = pool.current_revision().ok_or_else(|| not_built(reference))?;
    let usage = records.usage(&tenant.name);
    let in_pool = records.of_pool(reference).count() as u64;
    admit_instance(&tenant.name, &tenant.quotas, &usage, pool, in_pool)?;
    let address = tenant.network.allocate(&records.addresses(&tenant.name))?;
    let id = drawn
        .iter()
        .map(|number| InstanceId::from_number(*number))
        .find(|id| !records.instances.contains_key(id))
        .ok_or(InternalError::NoInstanceId)?;
    Ok(Instance {
        id,
        pool: reference.clone(),
        state: State::Created,
        intent: None,
        goal: None,
        reason: None,
        paused: None,
        template: None,
        dormant: false,
        processor: None,
        revision: revision.digest,
        resources: pool.resources,
        cpu_model: pool.cpu_model.clone(),
        // The cache disks are made when the machine is started.
        caches: pool
            .caches
            .iter()
            .map(|disk| CacheDisk { generation: 0, ..disk.clone() })
            .collect(),
        address,
        mac: mac_of(tenant.network.tenant_net_id, address),
        created_at: now,
        state_since: now,
        lease: None,
        leases_served: 0,
        way_up: None,
    })
}
