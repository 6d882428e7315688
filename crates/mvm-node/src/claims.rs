//! Leases: taking, extending and ending the right to use an instance.

use crate::audit;
use crate::node::{Node, locked};
use crate::template::is_mould;
use crate::world::World;
use crate::{Result, now};
use mvm_api::types::LeaseView;
use mvm_api::{Peer, Problem};
use mvm_model::cache;
use mvm_model::choose::choose;
use mvm_model::lease::{DEFAULT_LEASE_S, Purpose};
use mvm_model::{Instance, InstanceId, InstanceRef, Lease, Millis, PoolRef, Recycle, State};
use std::sync::Arc;

/// How many instances a claim tries before it gives up.
const CLAIM_TRIES: usize = 3;
/// How long a lease outlives its deadline and the last session, in ms.
const SESSION_GRACE_MS: u64 = 10_000;
/// How long is waited before a lease that could not be ended is tried again, in ms.
const AGAIN_MS: Millis = 5000;
/// The longest lease, in seconds: a week.
const MAX_LEASE_S: u64 = 7 * 24 * 3600;

/// Who wants a lease, what for, and for how long.
#[derive(Clone, Debug)]
pub struct Wish {
    /// `uid:N`, or the holder of a certificate: `operator:alice`.
    pub holder: String,
    /// What for.
    pub purpose: Purpose,
    /// In seconds; the default where absent.
    pub lease_s: Option<u64>,
}

impl Wish {
    pub(crate) fn lease(&self) -> Result<Lease> {
        let seconds = self.lease_s.unwrap_or(DEFAULT_LEASE_S);
        checked(seconds)?;
        let since = now();
        Ok(Lease {
            id: format!("l-{}", crate::identity::hex_digits(8)?),
            holder: self.holder.clone(),
            purpose: self.purpose,
            since,
            expires_at: since + seconds * 1000,
        })
    }
}

impl Node {
    /// Takes an instance of the pool for a job and brings it to `running`: the readiest there is,
    /// or a new one. Gives the instance with its lease, and the state that it was in.
    pub async fn claim(self: &Arc<Self>, pool: &PoolRef, wish: &Wish) -> Result<(Instance, State)> {
        self.claim_as(pool, wish, None).await
    }

    /// The same, under a lease of this id.
    pub(crate) async fn claim_as(
        self: &Arc<Self>,
        pool: &PoolRef,
        wish: &Wish,
        id: Option<&str>,
    ) -> Result<(Instance, State)> {
        // What there is no room to end is not begun.
        self.check_space()?;
        let mut last = None;
        for _ in 0..CLAIM_TRIES {
            let mut lease = wish.lease()?;
            lease.id = id.map_or(lease.id, str::to_owned);
            let instance = self.reserve(pool, &lease).await?;
            self.kick.notify_one();
            match self.bring(instance.id, State::Running).await {
                Ok(from) => {
                    let now = self.read(|world| world.by_id(instance.id).cloned()).await?;
                    return Ok((now, from));
                }
                Err(problem) => {
                    tracing::warn!(instance = %instance.reference(), "claim failed: {problem}");
                    self.end_lease(instance.id).await;
                    last = Some(problem);
                }
            }
        }
        Err(last.unwrap_or_else(|| Problem::internal("a claim ended without a result")))
    }

    /// Chooses and leases in one step, so that no two claims get one instance.
    async fn reserve(&self, pool: &PoolRef, lease: &Lease) -> Result<Instance> {
        let chosen = self
            .change(|world, changes| {
                let record = world.pool(pool)?;
                let Some(revision) = record.current_revision() else { return Ok(None) };
                let fit = world.of_pool(pool).filter(|i| cache::same(&i.caches, &record.caches));
                let found = choose(record.recycle, &revision.digest, fit);
                let Some(mut instance) = found.cloned() else { return Ok(None) };
                instance.lease = Some(lease.clone());
                instance.leases_served += 1;
                changes.put_instance(instance.clone());
                audit::note_lease(&instance);
                Ok(Some(instance))
            })
            .await?;
        if let Some(instance) = chosen {
            return Ok(instance);
        }
        let fresh = self.create(pool, None).await?;
        self.lease(&fresh.reference(), lease).await
    }

    /// Takes a manual lease on one instance, or extends the one that is there.
    pub async fn take(&self, reference: &InstanceRef, wish: &Wish) -> Result<Instance> {
        self.lease(reference, &wish.lease()?).await
    }

    async fn lease(&self, reference: &InstanceRef, wanted: &Lease) -> Result<Instance> {
        self.change(|world, changes| {
            let mut instance = world.instance(reference)?.clone();
            match &mut instance.lease {
                Some(lease) => lease.expires_at = lease.expires_at.max(wanted.expires_at),
                None => {
                    instance.lease = Some(wanted.clone());
                    instance.leases_served += 1;
                }
            }
            changes.put_instance(instance.clone());
            audit::note_lease(&instance);
            Ok(instance)
        })
        .await
    }

    /// Gives up a manual lease, because its holder puts the machine aside. A job's lease is not
    /// given up so: the job would lose its machine.
    pub async fn put_aside(&self, reference: &InstanceRef) -> Result<()> {
        let leased = self.read(|world| world.instance(reference).map(|i| i.lease.clone())).await?;
        match leased {
            Some(lease) if lease.purpose != Purpose::Manual => Err(Problem::new(
                409,
                "leased",
                format!(
                    "instance {reference} is leased to a job of {} ({})",
                    lease.holder, lease.id
                ),
            )
            .hint("end the job, or destroy the instance")),
            Some(_) => self.update(reference.id, |instance| instance.lease = None).await,
            None => Ok(()),
        }
    }

    /// All leases.
    pub(crate) async fn leases(&self) -> Vec<LeaseView> {
        self.read(|world| {
            let leased = world.instances.values();
            leased
                .filter_map(|i| {
                    Some(LeaseView {
                        lease: i.lease.clone()?,
                        instance: i.reference(),
                        node_id: None,
                    })
                })
                .collect()
        })
        .await
    }

    /// Gives a lease another length, from now on.
    pub(crate) async fn extend_lease(&self, id: &str, seconds: u64) -> Result<LeaseView> {
        checked(seconds)?;
        self.change(|world, changes| {
            let mut instance = leased(world, id)?.clone();
            extend(&mut instance, now() + seconds * 1000);
            let lease = instance.lease.clone().ok_or_else(|| no_lease(id))?;
            let view = LeaseView { lease, instance: instance.reference(), node_id: None };
            changes.put_instance(instance);
            Ok(view)
        })
        .await
    }

    /// The lease is there, as far as this caller may see: another tenant's is not.
    pub(crate) async fn lease_for(&self, peer: &Peer, id: &str) -> Result<()> {
        let seen = self.read(|world| leased(world, id).map(|i| peer.sees(&i.pool.tenant))).await?;
        if seen { Ok(()) } else { Err(no_lease(id)) }
    }

    /// Ends a lease now, a job's too: the instance is recycled by the pool's rule.
    pub(crate) async fn release_lease(self: &Arc<Self>, id: &str) -> Result<()> {
        let instance = self.read(|world| leased(world, id).map(|instance| instance.id)).await?;
        self.end_lease(instance).await;
        Ok(())
    }

    /// Ends this lease, unless it has ended already and the instance may be another's.
    pub(crate) async fn end_lease_of(self: &Arc<Self>, id: InstanceId, lease: &str) {
        let still = |w: &World| w.instances.get(&id)?.lease.as_ref().map(|l| l.id == lease);
        if self.read(still).await == Some(true) {
            self.end_lease(id).await;
        }
    }

    /// Ends this lease with its instance, whatever the pool's rule: the guest did not do in time what
    /// it was to, and is not asked for anything any more.
    pub(crate) async fn discard(self: &Arc<Self>, id: InstanceId, lease: &str) {
        let still = |w: &World| w.instances.get(&id)?.lease.as_ref().map(|l| l.id == lease);
        if self.read(still).await == Some(true)
            && let Err(problem) = self.as_agent_on("lease.end", id, self.destroy(id)).await
        {
            tracing::error!(instance = %id, "cannot destroy: {problem}");
            locked(&self.unended).insert(lease.to_owned(), now() + AGAIN_MS);
        }
        self.kick.notify_one();
    }

    /// Gives an instance back as it was taken: nothing was done with it.
    pub(crate) async fn untake(&self, id: InstanceId) -> Result<()> {
        self.update(id, |instance| {
            instance.lease = None;
            instance.leases_served = instance.leases_served.saturating_sub(1);
        })
        .await
    }

    /// Ends a lease and recycles the instance by its pool's rule. In a pool that was never scaled a
    /// person's instance only loses its lease: that pool is left alone.
    pub async fn end_lease(self: &Arc<Self>, id: InstanceId) {
        let rule = self
            .read(|world| {
                let instance = world.by_id(id).ok()?;
                let lease = instance.lease.clone()?;
                let pool = world.pools.get(&instance.pool).filter(|_| !is_mould(instance));
                let rule = match pool {
                    Some(pool) if lease.purpose == Purpose::Manual && pool.desired.is_none() => {
                        return Some((Recycle::Keep, State::Running, lease.id));
                    }
                    // For the next connection, whatever becomes of jobs' instances.
                    Some(_) if lease.purpose == Purpose::Expose => Recycle::Sleep,
                    Some(pool) => pool.recycle,
                    None => Recycle::Reset,
                };
                Some((rule, instance.state, lease.id))
            })
            .await;
        let Some((mut recycle, state, lease)) = rule else { return };
        if recycle != Recycle::Reset && !self.close_caches(id).await {
            recycle = Recycle::Reset;
        }
        let recycled = self.as_agent_on("lease.end", id, self.recycle(id, recycle, state)).await;
        if let Err(problem) = recycled {
            tracing::error!(instance = %id, "cannot recycle: {problem}");
            locked(&self.unended).insert(lease, now() + AGAIN_MS);
        }
        self.kick.notify_one();
    }

    async fn recycle(self: &Arc<Self>, id: InstanceId, rule: Recycle, state: State) -> Result<()> {
        match (rule, state) {
            // What has failed, or was never brought up, is worth nothing to the next job.
            (Recycle::Reset, _) | (_, State::Failed | State::Created) => self.destroy(id).await,
            (Recycle::Sleep, _) => match self.bring(id, State::Sleeping).await {
                Ok(_) => self.update(id, |instance| instance.lease = None).await,
                Err(problem) => {
                    tracing::warn!(instance = %id, "cannot put to sleep: {problem}");
                    self.destroy(id).await
                }
            },
            (Recycle::Keep, _) => self.update(id, |instance| instance.lease = None).await,
        }
    }

    /// Ends the leases whose deadline has passed; one with an open session is extended instead.
    pub(crate) async fn expire_leases(self: &Arc<Self>) {
        let now = now();
        let expired: Vec<(InstanceId, Purpose)> = self
            .read(|world| {
                let mut unended = locked(&self.unended);
                unended.retain(|id, _| leased(world, id).is_ok());
                let leased =
                    world.instances.values().filter_map(|i| Some((i.id, i.lease.as_ref()?)));
                // A time that is far ahead is of a clock that was put back since.
                let mut again = |id: &String| {
                    let due = |at: &Millis| now >= *at || *at > now + AGAIN_MS;
                    unended.get(id).is_some_and(due) && unended.remove(id).is_some()
                };
                let due = leased.filter(|(_, lease)| lease.expired(now) || again(&lease.id));
                due.map(|(id, l)| (id, l.purpose)).collect()
            })
            .await;
        for (id, purpose) in expired {
            let node = self.clone();
            let done = match purpose {
                Purpose::Manual if self.slot(id).sessions() > 0 => {
                    self.update(id, |i| extend(i, now + SESSION_GRACE_MS)).await
                }
                Purpose::Manual | Purpose::Run | Purpose::Template | Purpose::Expose => {
                    // Not to be ended twice while the recycling is under way.
                    let later = self.update(id, |i| extend(i, now + 600_000)).await;
                    tokio::spawn(async move { node.end_lease(id).await });
                    later
                }
            };
            if let Err(problem) = done {
                tracing::warn!(instance = %id, "cannot end a lease: {problem}");
            }
        }
    }
}

fn checked(seconds: u64) -> Result<()> {
    if (1..=MAX_LEASE_S).contains(&seconds) {
        return Ok(());
    }
    Err(Problem::new(400, "invalid_value", format!("a lease of {seconds} s"))
        .hint(format!("allowed are 1 to {MAX_LEASE_S} s")))
}

fn no_lease(id: &str) -> Problem {
    crate::problem::not_found(format!("lease {id}"), "see the leases with `mvm lease list`")
}

/// The instance with this lease.
pub(crate) fn leased<'a>(world: &'a World, id: &str) -> Result<&'a Instance> {
    let has = |i: &&Instance| i.lease.as_ref().is_some_and(|lease| lease.id == id);
    world.instances.values().find(has).ok_or_else(|| no_lease(id))
}

/// Sets the deadline of an instance's lease.
pub(crate) fn extend(instance: &mut Instance, expires_at: u64) {
    if let Some(lease) = &mut instance.lease {
        lease.expires_at = expires_at;
    }
}
