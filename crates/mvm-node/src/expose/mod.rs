//! Pools behind TCP ports: fronts that wake an instance when a connection comes.
//!
//! What is decided, who serves and when it ends, is decided in `mvm_model::expose`; here are the
//! listeners, the connections, and the leases that an instance is held by while it serves.

mod front;
mod metrics;

use crate::audit::{self, Auditor};
use crate::clock::wall;
use crate::instances::{Instances, Slot, draw_ids, new_instance};
use crate::lease_request::LeaseRequest;
use crate::leases::{Leases, extend, may_run};
use crate::locks::locked;
use crate::problem::not_found;
use crate::records::{Records, Transaction, World};
use crate::spares::Spares;
use crate::wake::Wake;
use crate::{Result, now};
use front::Front;
use metrics::Metrics;
use mvm_api::Problem;
use mvm_api::expose::{ExposePool, ExposeView, ServingView};
use mvm_model::expose::Expose;
use mvm_model::lease::Purpose;
use mvm_model::{Code, Instance, InstanceId, InstanceRef, Mover, PoolRef, Recycle, State};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex as Lock};
use tokio::net::TcpListener;

/// How long an instance is leased for at a time while it serves, in seconds: so long after the end
/// of an agent that does not come back it is put to sleep by the next one.
const LEASE_S: u64 = 60;
/// How many instances a wake tries before it gives up.
const TRIES: usize = 3;

/// Listens; the error says why not.
async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|cause| {
        let detail = format!("cannot listen on {listen}: {cause}");
        match cause.kind() {
            ErrorKind::AddrInUse => Problem::new(Code::PortInUse, detail)
                .hint("choose another port, or end what listens there: see `ss -ltnp`"),
            ErrorKind::AddrNotAvailable => Problem::new(Code::ListenFailed, detail)
                .hint("name an address of this machine, in the agent's network namespace"),
            _ => Problem::new(Code::ListenFailed, detail),
        }
    })
}

/// The pools behind ports.
pub(crate) struct Exposes {
    records: Arc<Records>,
    instances: Arc<Instances>,
    leases: Arc<Leases>,
    spares: Arc<Spares>,
    auditor: Arc<Auditor>,
    wake: Wake,
    /// The fronts that are open, by where they listen.
    open: Lock<BTreeMap<SocketAddr, Arc<Front>>>,
    metrics: Metrics,
}

impl Exposes {
    /// No front is open yet.
    pub(crate) fn new(
        records: Arc<Records>,
        instances: Arc<Instances>,
        leases: Arc<Leases>,
        spares: Arc<Spares>,
        auditor: Arc<Auditor>,
        wake: Wake,
    ) -> Exposes {
        let (open, metrics) = (Lock::default(), Metrics::default());
        Exposes { records, instances, leases, spares, auditor, wake, open, metrics }
    }

    /// The slot of an instance that serves.
    fn slot(&self, id: InstanceId) -> Arc<Slot> {
        self.instances.slot(id)
    }

    /// Registers what is counted.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Puts a pool behind a port, or changes the limits of the front that is there.
    pub async fn expose(
        self: &Arc<Self>,
        pool: &PoolRef,
        wanted: ExposePool,
    ) -> Result<ExposeView> {
        wanted.limits.validate()?;
        if wanted.to == 0 {
            return Err(Problem::new(Code::InvalidValue, "port 0 of the guest")
                .hint("name the port that the guest's server listens on, 1 to 65535"));
        }
        self.records.read(|world| world.pool(pool).map(drop))?;
        let known = self.records.read(|world| world.exposes.get(&wanted.listen).cloned());
        let (record, listener) = match known {
            Some(known) if known.pool == *pool && known.to == wanted.to => {
                (Expose { limits: wanted.limits, ..known }, None)
            }
            Some(known) => {
                let detail =
                    format!("{} is a front of {} (port {})", known.listen, known.pool, known.to);
                return Err(Problem::new(Code::InUse, detail)
                    .hint(format!("remove it: mvm pool unexpose {}", known.pool)));
            }
            None => {
                let listener = bind(wanted.listen).await?;
                let listen = listener
                    .local_addr()
                    .map_err(|cause| crate::problem::io("see where it listens", cause))?;
                let record = Expose {
                    listen,
                    pool: pool.clone(),
                    to: wanted.to,
                    limits: wanted.limits,
                    instances: Default::default(),
                    created_at: wall(),
                };
                (record, Some(listener))
            }
        };
        self.records
            .change(|world, changes| {
                world.pool(pool)?;
                // Instances may have been added since it was read.
                let kept = world.exposes.get(&record.listen).map(|known| known.instances.clone());
                let instances = kept.unwrap_or_default();
                changes.put_expose(Expose { instances, ..record.clone() });
                Ok(())
            })
            .await?;
        match listener {
            Some(listener) => drop(self.open_front(&record, Some(listener))),
            None => self.set_limits(&record),
        }
        self.expose_view(record.listen).await
    }

    fn set_limits(&self, record: &Expose) {
        if let Some(front) = locked(&self.open).get(&record.listen) {
            *locked(&front.limits) = record.limits;
        }
    }

    fn open_front(self: &Arc<Self>, record: &Expose, listener: Option<TcpListener>) -> Arc<Front> {
        let front = Front::new(record, self.metrics.clone());
        locked(&self.open).insert(record.listen, front.clone());
        tokio::spawn(front.clone().run(self.clone(), listener));
        front
    }

    /// At start: opens the fronts again, with the instances that still serve them.
    pub(crate) async fn open_all(self: &Arc<Self>) -> Result<()> {
        let records: Vec<Expose> =
            self.records.read(|world| world.exposes.values().cloned().collect());
        for record in records {
            let front = self.open_front(&record, None);
            for (id, state) in self.held_by(&record).await {
                if state == State::Running {
                    locked(&front.decisions).adopt(id, now());
                    self.extend_held(&[id]).await?;
                } else {
                    let exposes = self.clone();
                    tokio::spawn(async move { exposes.leases.end(id).await });
                }
            }
        }
        Ok(())
    }

    /// The instances that are leased for a front, and their states.
    async fn held_by(&self, record: &Expose) -> Vec<(InstanceId, State)> {
        self.records.read(|world| {
            let held = world.of_pool(&record.pool).filter(|i| is_held_by(i, record.listen));
            held.map(|instance| (instance.id, instance.state)).collect()
        })
    }

    /// Whether the instance is leased for this front and runs.
    async fn is_held(&self, id: InstanceId, listen: SocketAddr) -> bool {
        let held = |i: &Instance| is_held_by(i, listen) && i.state == State::Running;
        self.records.read(|world| world.instances.get(&id).is_some_and(held))
    }

    /// Takes fronts of a pool away: all, or the one that listens there. Their instances are
    /// recycled by the pool's rule: a used one that nobody else may have is destroyed.
    pub async fn unexpose(
        self: &Arc<Self>,
        pool: &PoolRef,
        listen: Option<SocketAddr>,
    ) -> Result<()> {
        let (records, recycle) = self.records.read(|world| {
            let fits = |e: &&Expose| e.pool == *pool && listen.is_none_or(|l| l == e.listen);
            let records: Vec<Expose> = world.exposes.values().filter(fits).cloned().collect();
            world.pool(pool).map(|pool| (records, pool.recycle))
        })?;
        if let (Some(listen), true) = (listen, records.is_empty()) {
            let what = format!("front of {pool} on {listen}");
            return Err(not_found(what, "see them with `mvm pool expose --list`"));
        }
        for record in records {
            let front = locked(&self.open).remove(&record.listen);
            if let Some(front) = front {
                front.close().await;
            }
            for (id, _) in self.held_by(&record).await {
                Box::pin(self.leases.end(id)).await;
            }
            if recycle == Recycle::Reset {
                let used = |i: &Instance| record.instances.contains(&i.id) && !i.is_clean();
                let kept: Vec<InstanceId> = self
                    .records
                    .read(|world| world.of_pool(pool).filter(|i| used(i)).map(|i| i.id).collect());
                for id in kept {
                    Box::pin(self.spares.destroy(id)).await?;
                }
            }
            // Last: cut off before, the front is open again after a restart, and nothing is lost.
            self.records
                .change(|_, changes| {
                    changes.remove_expose(record.listen);
                    Ok(())
                })
                .await?;
        }
        Ok(())
    }

    /// All fronts.
    pub(crate) async fn list(&self) -> Vec<ExposeView> {
        self.records.read(|world| {
            world.exposes.values().map(|record| self.view_of(world, record)).collect()
        })
    }

    async fn expose_view(&self, listen: SocketAddr) -> Result<ExposeView> {
        self.records.read(|world| {
            let record = world.exposes.get(&listen);
            let record = record.ok_or_else(|| not_found("such front any more", "try again"))?;
            Ok(self.view_of(world, record))
        })
    }

    fn view_of(&self, world: &World, record: &Expose) -> ExposeView {
        let front = locked(&self.open).get(&record.listen).cloned();
        let decisions = front.as_ref().map(|f| locked(&f.decisions).clone()).unwrap_or_default();
        let serving: Vec<ServingView> = decisions
            .servers()
            .filter(|(id, _)| world.instances.contains_key(id))
            .map(|(id, connections)| {
                let instance = InstanceRef { pool: record.pool.clone(), id };
                ServingView { instance, connections }
            })
            .collect();
        ExposeView {
            tenant_id: record.pool.tenant.clone(),
            pool_id: record.pool.pool.clone(),
            listen: record.listen,
            to: record.to,
            limits: record.limits,
            refused: front.and_then(|front| locked(&front.refused).clone()),
            connections: serving.iter().map(|server| server.connections).sum(),
            waiting: decisions.waiting(),
            serving,
            created_at: record.created_at,
        }
    }

    /// Brings an instance to `running` for a front, and leases it.
    async fn wake_for(self: &Arc<Self>, pool: &PoolRef, listen: SocketAddr) -> Result<InstanceId> {
        let woken = async {
            let mut last = None;
            for _ in 0..TRIES {
                let instance = self.hold_for(pool, listen).await?;
                self.wake.notify();
                match self.instances.bring(instance.id, State::Running, &Mover::of(&instance)).await
                {
                    Ok(_) => return Ok(instance.id),
                    Err(problem) => {
                        tracing::warn!(instance = %instance.reference(), "wake failed: {problem}");
                        let lease = instance.lease.map(|lease| lease.id).unwrap_or_default();
                        self.leases.end_of(instance.id, &lease).await;
                        last = Some(problem);
                    }
                }
            }
            Err(last.unwrap_or_else(|| Problem::internal("a wake ended without a result")))
        };
        self.auditor.as_agent("expose.wake", Some(&pool.tenant), pool, None, woken).await
    }

    /// Leases the instance that is to serve next, a new one if there is none.
    async fn hold_for(&self, pool: &PoolRef, listen: SocketAddr) -> Result<Instance> {
        let gone =
            || not_found(format!("front on {listen} any more"), "see `mvm pool expose --list`");
        let holder = format!("expose:{listen}");
        let wish = LeaseRequest { holder, purpose: Purpose::Expose, lease_s: Some(LEASE_S) };
        let lease = wish.lease()?;
        let drawn = draw_ids()?;
        self.records
            .change(|world, changes| {
                let record = world.exposes.get(&listen).ok_or_else(gone)?;
                let mut instance = match record.choose(world.pool(pool)?, world.of_pool(pool)) {
                    Some(found) => found.clone(),
                    None => new_instance(world, pool, &drawn)?,
                };
                may_run(world, &instance)?;
                instance.lease = Some(lease);
                instance.leases_served += 1;
                changes.put_instance(instance.clone());
                remember(world, changes, record, instance.id);
                audit::note_lease(&instance);
                Ok(instance)
            })
            .await
    }

    /// Once a period: ends what is idle, keeps the leases of what serves, and notices what was
    /// taken away. What it begins goes on beside.
    pub(crate) async fn tend(self: &Arc<Self>, front: &Arc<Front>) {
        for id in front.over() {
            let (exposes, front) = (self.clone(), front.clone());
            tokio::spawn(async move {
                exposes.leases.end(id).await;
                front.ended(id);
            });
        }
        let serving: Vec<InstanceId> =
            locked(&front.decisions).servers().map(|(id, _)| id).collect();
        let half = now() + LEASE_S * 1000 / 2;
        let (mut lost, mut due) = (Vec::new(), Vec::new());
        let outdated = self.records.read(|world| {
            for id in serving {
                match world.instances.get(&id).filter(|i| is_held_by(i, front.listen)) {
                    None => lost.push(id),
                    Some(i) if i.lease.as_ref().is_some_and(|l| l.expired(half)) => due.push(id),
                    Some(_) => {}
                }
            }
            let record = world.exposes.get(&front.listen)?;
            let pool = world.pools.get(&front.pool)?;
            Some(record.outdated(pool, world.of_pool(&front.pool)))
        });
        for id in lost {
            front.lose(id);
        }
        let exposes = self.clone();
        let kept = tokio::spawn(async move {
            if let Err(problem) = exposes.extend_held(&due).await {
                tracing::warn!("cannot extend leases: {problem}");
            }
            for id in outdated.into_iter().flatten() {
                if let Err(problem) = exposes.spares.destroy(id).await {
                    tracing::warn!(instance = %id, "cannot destroy: {problem}");
                }
            }
        });
        let _ = kept.await;
    }

    async fn extend_held(&self, due: &[InstanceId]) -> Result<()> {
        let expires_at = now() + LEASE_S * 1000;
        self.records
            .change(|world, changes| {
                for instance in due.iter().filter_map(|id| world.instances.get(id)) {
                    let mut instance = instance.clone();
                    extend(&mut instance, expires_at);
                    changes.put_instance(instance);
                }
                Ok(())
            })
            .await
    }
}

fn is_held_by(instance: &Instance, listen: SocketAddr) -> bool {
    let holder = format!("expose:{listen}");
    instance.lease.as_ref().is_some_and(|l| l.purpose == Purpose::Expose && l.holder == holder)
}

/// Writes down that the instance serves the front, and forgets those that are gone.
fn remember(world: &World, changes: &mut Transaction, record: &Expose, instance: InstanceId) {
    let mut record = record.clone();
    record.instances.retain(|id| world.instances.contains_key(id));
    record.instances.insert(instance);
    if world.exposes.get(&record.listen) != Some(&record) {
        changes.put_expose(record);
    }
}
