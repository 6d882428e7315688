//! Acquiring an instance: chosen, leased and brought to `running`; on a failure given back or ended, and
//! another one tried. A warm one is leased and runs by one record.

use super::{Leases, held_by, leased, may_run};
use crate::Result;
use crate::audit;
use crate::instances::{HeldWarm, draw_ids, new_instance};
use crate::lease_request::LeaseRequest;
use crate::records::{RecordSet, Transaction};
use mvm_api::Problem;
use mvm_model::cache;
use mvm_model::choose::choose;
use mvm_model::mover::may_take;
use mvm_model::{Code, Instance, InstanceId, InstanceRef, Lease, Mover, PoolRef, State};

/// How many instances are tried before it is given up.
const TRIES: usize = 3;

/// Which instance of a pool somebody wants.
pub(crate) trait Choice: Sync {
    /// The instance to take; none: a new one is to be made.
    fn choose<'a>(&self, world: &'a RecordSet, pool: &'a PoolRef) -> Result<Option<&'a Instance>>;

    /// What else is written when this instance is taken.
    fn note(&self, _world: &RecordSet, _changes: &mut Transaction, _taken: &Instance) {}
}

/// The readiest that fits.
pub(crate) struct Readiest;

impl Choice for Readiest {
    fn choose<'a>(&self, world: &'a RecordSet, pool: &'a PoolRef) -> Result<Option<&'a Instance>> {
        let record = world.pool(pool)?;
        let revision = record.current_revision().map_or("", |revision| &revision.digest);
        let fit = world.of_pool(pool).filter(|i| cache::same(&i.caches, &record.caches));
        Ok(choose(record.recycle, revision, fit))
    }
}

impl Leases {
    /// Takes an instance of the pool for a job and brings it to `running`: the readiest there is,
    /// or a new one. Gives the instance with its lease, and the state that it was in.
    pub async fn claim(&self, pool: &PoolRef, wish: &LeaseRequest) -> Result<(Instance, State)> {
        self.acquire(pool, wish, &Readiest, None).await
    }

    /// Takes the instance of the pool that `choice` says and brings it to `running`, under a lease of
    /// this id where one is given. Gives the instance with its lease, and the state that it was in.
    pub(crate) async fn acquire(
        &self,
        pool: &PoolRef,
        wish: &LeaseRequest,
        choice: &impl Choice,
        id: Option<&str>,
    ) -> Result<(Instance, State)> {
        // What there is no room to end is not begun.
        self.instances.check_space()?;
        let mut last = None;
        for _ in 0..TRIES {
            let mut lease = wish.lease()?;
            lease.id = id.map_or(lease.id, str::to_owned);
            // Who asks waits until it is up, however long that takes.
            let _held = self.holders.hold(&lease.id);
            let (instance, warm) = self.reserve(pool, &lease, choice).await?;
            self.wake.notify();
            let outcome = async {
                let from = self.bring_up(instance.id, warm, &lease.id).await?;
                let now = self.records.read(|world| leased(world, &lease.id).cloned())?;
                Ok((now, from))
            };
            match outcome.await {
                Ok(claimed) => return Ok(claimed),
                Err(problem) => {
                    tracing::warn!(instance = %instance.reference(), "claim failed: {problem}");
                    self.untake_or_end(&instance, &lease.id).await;
                    last = Some(problem);
                }
            }
        }
        Err(last.unwrap_or_else(|| Problem::internal("a claim ended without a result")))
    }

    /// Brings a leased instance to `running`; one that is held warm is so by its record. Gives the state
    /// that it was in.
    async fn bring_up(&self, id: InstanceId, warm: Option<HeldWarm>, lease: &str) -> Result<State> {
        match warm {
            Some(warm) => warm.resume(&self.instances).await.map(|()| State::Warm),
            None => {
                let by = Mover::Lease(lease.to_owned());
                self.instances.bring(id, State::Running, &by).await
            }
        }
    }

    /// Chooses and leases in one step, so that no two claims get one instance; makes one where there
    /// is none. Where the quotas do not let it run, nothing is taken and nothing made. Gives the instance
    /// in the state that it was in, and holds it where it was warm and its record says that it runs now.
    async fn reserve(
        &self,
        pool: &PoolRef,
        lease: &Lease,
        choice: &impl Choice,
    ) -> Result<(Instance, Option<HeldWarm>)> {
        let drawn = draw_ids()?;
        let is_warm = |world: &RecordSet| {
            let chosen = choice.choose(world, pool).ok().flatten();
            chosen.is_some_and(|instance| instance.state == State::Warm)
        };
        let at_once = self.records.read(is_warm) && self.instances.may_resume().await;
        self.records
            .change(|world, changes| {
                let mut instance = match choice.choose(world, pool)? {
                    Some(found) => found.clone(),
                    None => new_instance(world, pool, &drawn)?,
                };
                may_run(world, &instance)?;
                instance.lease = Some(lease.clone());
                instance.leases_served += 1;
                audit::note_lease(&instance);
                let warm = at_once.then(|| self.instances.hold_warm(&instance)).flatten();
                put(changes, &instance, warm.as_ref());
                choice.note(world, changes, &instance);
                Ok((instance, warm))
            })
            .await
    }

    /// Takes a manual lease on one instance, or extends the one that the same holder has, if the
    /// instance may run; brings it to `running`. Gives the state that it was in. Where it comes to
    /// nothing and the instance is as before, so is its lease.
    pub async fn take(&self, reference: &InstanceRef, wish: &LeaseRequest) -> Result<State> {
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let (before, lease, warm) = self.lease(reference, &wish.lease()?).await?;
            let outcome = self.bring_up(reference.id, warm, &lease).await;
            let Err(problem) = outcome else { return outcome };
            // Its holder put it aside, or it was released, while this waited: it is taken anew.
            if problem.code != Code::LeaseEnded || tries == 0 {
                self.restore_lease(&before).await?;
                return Err(problem);
            }
        }
    }

    /// Gives the record as it was before, and the id of the lease. Holds the instance where it was warm
    /// and its record says that it runs now.
    async fn lease(
        &self,
        reference: &InstanceRef,
        wanted: &Lease,
    ) -> Result<(Instance, String, Option<HeldWarm>)> {
        let is_warm = |world: &RecordSet| {
            world.instance(reference).is_ok_and(|instance| instance.state == State::Warm)
        };
        let at_once = self.records.read(is_warm) && self.instances.may_resume().await;
        self.records
            .change(|world, changes| {
                let before = world.instance(reference)?;
                may_take(before, &wanted.holder)?;
                if before.state != State::Running {
                    before.state.check(State::Running)?;
                    may_run(world, before)?;
                }
                let mut instance = before.clone();
                let lease = match &mut instance.lease {
                    Some(lease) => {
                        lease.expires_at = lease.expires_at.max(wanted.expires_at);
                        lease.id.clone()
                    }
                    None => {
                        instance.lease = Some(wanted.clone());
                        instance.leases_served += 1;
                        wanted.id.clone()
                    }
                };
                audit::note_lease(&instance);
                let warm = at_once.then(|| self.instances.hold_warm(&instance)).flatten();
                put(changes, &instance, warm.as_ref());
                Ok((before.clone(), lease, warm))
            })
            .await
    }

    /// An instance that could not be brought up, and has not run meanwhile, is leased as before.
    async fn restore_lease(&self, before: &Instance) -> Result<()> {
        self.records
            .change(|world, changes| {
                let Some(now) = world.instances.get(&before.id) else { return Ok(()) };
                let ours = before.lease.is_some() || now.lease.is_some();
                if ours && now.state == before.state && now.state_since == before.state_since {
                    let (lease, leases_served) = (before.lease.clone(), before.leases_served);
                    changes.put_instance(Instance { lease, leases_served, ..now.clone() });
                }
                Ok(())
            })
            .await
    }

    /// What could not be brought up is given back as it was, if it is as it was and is of use.
    async fn untake_or_end(&self, before: &Instance, lease: &str) {
        let same = |world: &RecordSet| {
            let now = held_by(world, before.id, lease);
            now.is_some_and(|now| now.state == before.state && now.state != State::Created)
        };
        let given_back =
            self.records.read(same) && self.cancel_lease(before.id, lease).await.is_ok();
        if !given_back {
            self.end_of(before.id, lease).await;
        }
    }
}

/// Writes the instance; where it is held warm, as one that runs.
fn put(changes: &mut Transaction, instance: &Instance, warm: Option<&HeldWarm>) {
    let mut instance = instance.clone();
    if let Some(warm) = warm {
        warm.note(&mut instance);
    }
    changes.put_instance(instance);
}
