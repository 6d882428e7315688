//! Acquires an instance: chooses it, leases it and brings it to `running`. After a failure, gives
//! the instance back or ends it, and tries another one. A warm instance is leased and set to
//! running with one record.

use super::{Leases, held_by, leased, may_run};
use crate::Result;
use crate::audit;
use crate::error::InternalError;
use crate::instances::{HeldWarm, draw_ids, new_instance};
use crate::lease_request::LeaseRequest;
use crate::records::{RecordSet, Transaction};
use mvm_model::actor::may_take;
use mvm_model::cache;
use mvm_model::choose::choose;
use mvm_model::{
    Actor, Code, Instance, InstanceId, InstanceRef, Lease, LeaseId, PoolRef, State, Timestamp,
};

/// How many instances are tried before the claim fails.
const TRIES: usize = 3;

/// The rule that chooses an instance of a pool.
pub(crate) trait Choice: Sync {
    /// Returns the instance to take; `None` to make a new one.
    fn choose<'a>(&self, records: &'a RecordSet, pool: &'a PoolRef)
    -> Result<Option<&'a Instance>>;

    /// Adds further changes to the transaction that takes the instance.
    fn note(&self, _records: &RecordSet, _changes: &mut Transaction, _taken: &Instance) {}
}

/// Chooses the suitable instance that is ready soonest.
pub(crate) struct Readiest;

impl Choice for Readiest {
    fn choose<'a>(
        &self,
        records: &'a RecordSet,
        pool: &'a PoolRef,
    ) -> Result<Option<&'a Instance>> {
        let record = records.pool(pool)?;
        let revision = record.current_revision().map(|revision| revision.digest);
        let fit = records.of_pool(pool).filter(|i| cache::same(&i.caches, &record.caches));
        Ok(choose(record.recycle, revision, fit))
    }
}

impl Leases {
    /// Takes the instance of the pool that is ready soonest, or a new one, for a job, and brings it
    /// to `running`. Returns the instance with its lease, and the state that it was in before.
    pub async fn claim(&self, pool: &PoolRef, request: &LeaseRequest) -> Result<(Instance, State)> {
        self.acquire(pool, request, &Readiest, None).await
    }

    /// Takes the instance of the pool that `choice` returns and brings it to `running`. The lease
    /// has the id `id`, if one is given. Returns the instance with its lease, and the state that it
    /// was in before.
    pub(crate) async fn acquire(
        &self,
        pool: &PoolRef,
        request: &LeaseRequest,
        choice: &impl Choice,
        id: Option<LeaseId>,
    ) -> Result<(Instance, State)> {
        // A full disk could stop the machine while it runs, so the claim fails early.
        self.instances.check_space()?;
        let mut last = None;
        for _ in 0..TRIES {
            let mut lease = request.lease(self.records.clock().now())?;
            lease.id = id.unwrap_or(lease.id);
            // The caller waits until the instance is up, however long that takes, so the lease
            // counts as held.
            let _held = self.holders.hold(lease.id);
            let (instance, warm) = self.reserve(pool, &lease, choice).await?;
            self.wake.notify();
            let outcome = async {
                let from = self.bring_to_running(instance.id, warm, lease.id).await?;
                let now = self.records.read(|records| leased(records, lease.id).cloned())?;
                Ok((now, from))
            };
            match outcome.await {
                Ok(claimed) => return Ok(claimed),
                Err(error) => {
                    tracing::warn!(instance = %instance.reference(), "claim failed: {error}");
                    self.cancel_or_end(&instance, lease.id).await;
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| InternalError::ClaimWithoutResult.into()))
    }

    /// Brings a leased instance to `running`. A warm instance whose record already says so is only
    /// resumed. Returns the state that the instance was in before.
    async fn bring_to_running(
        &self,
        id: InstanceId,
        warm: Option<HeldWarm>,
        lease: LeaseId,
    ) -> Result<State> {
        match warm {
            Some(warm) => warm.resume(&self.instances).await.map(|()| State::Warm),
            None => {
                let by = Actor::Lease(lease);
                self.instances.transition_to(id, State::Running, &by).await
            }
        }
    }

    /// Chooses and leases an instance in one step, so that no two claims get the same one. Makes an
    /// instance where there is none. If the quotas do not let it run, nothing is taken or made.
    /// Returns the instance in the state that it was in before; if it was warm and its record
    /// already says that it runs, its gate is held as well.
    async fn reserve(
        &self,
        pool: &PoolRef,
        lease: &Lease,
        choice: &impl Choice,
    ) -> Result<(Instance, Option<HeldWarm>)> {
        let drawn = draw_ids()?;
        let is_warm = |records: &RecordSet| {
            let chosen = choice.choose(records, pool).ok().flatten();
            chosen.is_some_and(|instance| instance.state == State::Warm)
        };
        let at_once = self.records.read(is_warm) && self.instances.may_resume().await;
        self.records
            .change(|records, changes| {
                let now = self.records.clock().now();
                let mut instance = match choice.choose(records, pool)? {
                    Some(found) => found.clone(),
                    None => new_instance(records, pool, &drawn, now)?,
                };
                may_run(records, &instance)?;
                instance.lease = Some(lease.clone());
                instance.leases_served += 1;
                audit::note_lease(&instance);
                let warm = at_once.then(|| self.instances.hold_warm(&instance)).flatten();
                put(changes, &instance, warm.as_ref(), now);
                choice.note(records, changes, &instance);
                Ok((instance, warm))
            })
            .await
    }

    /// Takes a manual lease on one instance, or extends the lease that the same holder has, if the
    /// instance may run, and brings the instance to `running`. Returns the state that it was in
    /// before. On an error that leaves the instance unchanged, its lease is unchanged too.
    pub async fn take(&self, reference: &InstanceRef, request: &LeaseRequest) -> Result<State> {
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let wanted = request.lease(self.records.clock().now())?;
            let (before, lease, warm) = self.lease(reference, &wanted).await?;
            let outcome = self.bring_to_running(reference.id, warm, lease).await;
            let Err(error) = outcome else { return outcome };
            // The lease was ended while this call waited for the gate: take a new one.
            if error.code() != Code::LeaseEnded || tries == 0 {
                self.restore_lease(&before).await?;
                return Err(error);
            }
        }
    }

    /// Leases the instance. Returns the record as it was before, the lease's id, and the held gate
    /// if the instance was warm and its record already says that it runs.
    async fn lease(
        &self,
        reference: &InstanceRef,
        wanted: &Lease,
    ) -> Result<(Instance, LeaseId, Option<HeldWarm>)> {
        let is_warm = |records: &RecordSet| {
            records.instance(reference).is_ok_and(|instance| instance.state == State::Warm)
        };
        let at_once = self.records.read(is_warm) && self.instances.may_resume().await;
        self.records
            .change(|records, changes| {
                let before = records.instance(reference)?;
                may_take(before, &wanted.holder)?;
                if before.state != State::Running {
                    before.state.check(State::Running)?;
                    may_run(records, before)?;
                }
                let mut instance = before.clone();
                let lease = match &mut instance.lease {
                    Some(lease) => {
                        lease.expires_at = lease.expires_at.max(wanted.expires_at);
                        lease.id
                    }
                    None => {
                        instance.lease = Some(wanted.clone());
                        instance.leases_served += 1;
                        wanted.id
                    }
                };
                audit::note_lease(&instance);
                let warm = at_once.then(|| self.instances.hold_warm(&instance)).flatten();
                put(changes, &instance, warm.as_ref(), self.records.clock().now());
                Ok((before.clone(), lease, warm))
            })
            .await
    }

    /// Restores the former lease of an instance that could not be brought up and has not run
    /// meanwhile.
    async fn restore_lease(&self, before: &Instance) -> Result<()> {
        self.records
            .change(|records, changes| {
                let Some(now) = records.instances.get(&before.id) else { return Ok(()) };
                let ours = before.lease.is_some() || now.lease.is_some();
                if ours && now.state == before.state && now.state_since == before.state_since {
                    let (lease, leases_served) = (before.lease.clone(), before.leases_served);
                    changes.put_instance(Instance { lease, leases_served, ..now.clone() });
                }
                Ok(())
            })
            .await
    }

    /// Cancels the lease of an instance that could not be brought up, if the instance is unchanged and
    /// usable; otherwise ends it.
    async fn cancel_or_end(&self, before: &Instance, lease: LeaseId) {
        let same = |records: &RecordSet| {
            let now = held_by(records, before.id, lease);
            now.is_some_and(|now| now.state == before.state && now.state != State::Created)
        };
        let given_back =
            self.records.read(same) && self.cancel_lease(before.id, lease).await.is_ok();
        if !given_back {
            self.end_of(before.id, lease).await;
        }
    }
}

/// Writes the instance; as running since `now`, if it is held as a warm one.
fn put(changes: &mut Transaction, instance: &Instance, warm: Option<&HeldWarm>, now: Timestamp) {
    let mut instance = instance.clone();
    if let Some(warm) = warm {
        warm.note(&mut instance, now);
    }
    changes.put_instance(instance);
}
