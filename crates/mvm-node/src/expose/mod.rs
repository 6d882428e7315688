//! Pools behind TCP ports: fronts that wake an instance when a connection comes.
//!
//! Which instance serves and when it ends is decided in `mvm_model::expose`. Here are the listeners
//! (`front.rs`), the connections (`seats.rs`), and the leases on serving instances (`servers.rs`).

mod front;
mod metrics;
mod seats;
mod servers;

use crate::Result;
use crate::audit::Auditor;
use crate::error::{FrontError, Missing};
use crate::instances::Instances;
use crate::leases::Leases;
use crate::locks::locked;
use crate::records::{RecordSet, Records};
use crate::spares::Spares;
use front::{Front, bind};
use metrics::Metrics;
use mvm_api::expose::{ExposePool, ExposeView, ServingView};
use mvm_model::expose::Expose;
use mvm_model::{Instance, InstanceId, InstanceRef, PoolRef, Recycle, State};
use prometheus_client::registry::Registry;
use servers::Servers;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex as Lock};
use tokio::net::TcpListener;

/// The pools behind ports.
pub(crate) struct Exposes {
    records: Arc<Records>,
    servers: Arc<Servers>,
    /// The open fronts, by address.
    open: Lock<BTreeMap<SocketAddr, Arc<Front>>>,
    metrics: Metrics,
}

impl Exposes {
    /// Makes the service without open fronts.
    pub(crate) fn new(
        records: Arc<Records>,
        instances: Arc<Instances>,
        leases: Arc<Leases>,
        spares: Arc<Spares>,
        auditor: Arc<Auditor>,
    ) -> Exposes {
        let servers = Servers::new(records.clone(), instances, leases, spares, auditor);
        let (open, metrics) = (Lock::default(), Metrics::default());
        Exposes { records, servers: Arc::new(servers), open, metrics }
    }

    /// Registers the metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Puts a pool behind a port, or changes the limits of an existing front.
    pub async fn expose(&self, pool: &PoolRef, wanted: ExposePool) -> Result<ExposeView> {
        wanted.limits.validate()?;
        if wanted.to == 0 {
            return Err(FrontError::GuestPortZero.into());
        }
        self.records.read(|records| records.pool(pool).map(drop))?;
        let known = self.records.read(|records| records.exposes.get(&wanted.listen).cloned());
        let (record, listener) = match known {
            Some(known) if known.pool == *pool && known.to == wanted.to => {
                (Expose { limits: wanted.limits, ..known }, None)
            }
            Some(known) => {
                let Expose { listen, pool, to, .. } = known;
                return Err(FrontError::Taken { listen, pool, to }.into());
            }
            None => {
                let listener = bind(wanted.listen).await?;
                let listen = listener
                    .local_addr()
                    .map_err(|cause| crate::error::io("see where it listens", cause))?;
                let record = Expose {
                    listen,
                    pool: pool.clone(),
                    to: wanted.to,
                    limits: wanted.limits,
                    instances: Default::default(),
                    created_at: self.records.clock().wall(),
                };
                (record, Some(listener))
            }
        };
        self.records
            .change(|records, changes| {
                records.pool(pool)?;
                // Instances may have been added since the record was read.
                let kept = records.exposes.get(&record.listen).map(|known| known.instances.clone());
                let instances = kept.unwrap_or_default();
                changes.put_expose(Expose { instances, ..record.clone() });
                Ok(())
            })
            .await?;
        match listener {
            Some(listener) => drop(self.open_front(&record, Some(listener))),
            None => self.set_limits(&record),
        }
        self.expose_view(record.listen)
    }

    fn set_limits(&self, record: &Expose) {
        if let Some(front) = locked(&self.open).get(&record.listen) {
            front.seats.set_limits(record.limits);
        }
    }

    fn open_front(&self, record: &Expose, listener: Option<TcpListener>) -> Arc<Front> {
        let front = Front::new(record, self.servers.clone(), self.metrics.clone());
        locked(&self.open).insert(record.listen, front.clone());
        tokio::spawn(front.clone().run(listener));
        front
    }

    /// At start: opens the fronts again, with the instances that still serve them.
    pub(crate) async fn open_all(&self) -> Result<()> {
        let fronts: Vec<Expose> =
            self.records.read(|records| records.exposes.values().cloned().collect());
        for record in fronts {
            let front = self.open_front(&record, None);
            for (id, state) in self.servers.held_by(&record) {
                if state == State::Running {
                    front.seats.adopt(id);
                    self.servers.extend_held(&[id]).await?;
                } else {
                    let servers = self.servers.clone();
                    tokio::spawn(async move { servers.end(id).await });
                }
            }
        }
        Ok(())
    }

    /// Removes fronts of a pool: all, or the one at this address. Their instances are recycled by
    /// the pool's rule; a used one that nobody else may have is destroyed.
    pub async fn unexpose(&self, pool: &PoolRef, listen: Option<SocketAddr>) -> Result<()> {
        let (fronts, recycle) = self.records.read(|records| {
            let fits = |e: &&Expose| e.pool == *pool && listen.is_none_or(|l| l == e.listen);
            let fronts: Vec<Expose> = records.exposes.values().filter(fits).cloned().collect();
            records.pool(pool).map(|pool| (fronts, pool.recycle))
        })?;
        if let (Some(listen), true) = (listen, fronts.is_empty()) {
            return Err(Missing::Front { pool: pool.clone(), listen }.into());
        }
        for record in fronts {
            let front = locked(&self.open).remove(&record.listen);
            if let Some(front) = front {
                front.close().await;
            }
            for (id, _) in self.servers.held_by(&record) {
                Box::pin(self.servers.end(id)).await;
            }
            if recycle == Recycle::Reset {
                let used = |i: &Instance| record.instances.contains(&i.id) && !i.is_clean();
                let kept: Vec<InstanceId> = self.records.read(|records| {
                    records.of_pool(pool).filter(|i| used(i)).map(|i| i.id).collect()
                });
                for id in kept {
                    Box::pin(self.servers.destroy(id)).await?;
                }
            }
            // The record goes last: after a crash before this, the front opens again, and nothing
            // is lost.
            self.records
                .change(|_, changes| {
                    changes.remove_expose(record.listen);
                    Ok(())
                })
                .await?;
        }
        Ok(())
    }

    /// Lists all fronts.
    pub(crate) fn list(&self) -> Vec<ExposeView> {
        self.records.read(|records| {
            records.exposes.values().map(|record| self.view_of(records, record)).collect()
        })
    }

    fn expose_view(&self, listen: SocketAddr) -> Result<ExposeView> {
        self.records.read(|records| {
            let record = records.exposes.get(&listen);
            let record = record.ok_or(Missing::NewFront)?;
            Ok(self.view_of(records, record))
        })
    }

    fn view_of(&self, records: &RecordSet, record: &Expose) -> ExposeView {
        let front = locked(&self.open).get(&record.listen).cloned();
        let decisions = front.as_ref().map(|front| front.seats.decisions()).unwrap_or_default();
        let serving: Vec<ServingView> = decisions
            .servers()
            .filter(|(id, _)| records.instances.contains_key(id))
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
}
