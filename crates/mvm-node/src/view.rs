//! Records as the API shows them.

use crate::Result;
use crate::clock::Shown;
use crate::deadlines::STATS;
use crate::instances::disk_use_kib;
use crate::node::Node;
use crate::problem::OrProblem;
use crate::records::World;
use crate::shortfalls::Lacks;
use mvm_api::types::{InstanceStats, InstanceView, PoolView, RevisionView, TenantView};
use mvm_hypervisor::Machine;
use mvm_model::plan::ready;
use mvm_model::policy::{self, Next};
use mvm_model::{Instance, InstanceRef, Millis, Pool, PoolRef, State, Tenant};
use std::sync::Arc;

impl Node {
    /// A tenant with what it uses.
    pub(crate) fn tenant_view(&self, world: &World, tenant: &Tenant) -> TenantView {
        TenantView {
            tenant_id: tenant.name.clone(),
            network: tenant.network.clone(),
            gateway: tenant.network.gateway(),
            bridge: self.links.bridge_name(tenant),
            quotas: tenant.quotas,
            usage: world.usage(&tenant.name),
            created_at: tenant.created_at,
        }
    }

    /// A pool with what it holds.
    pub(crate) fn pool_view(&self, world: &World, pool: &Pool, lacks: &Lacks) -> PoolView {
        let of_pool = || world.of_pool(&pool.reference);
        let leased = of_pool().filter(|i| i.lease.is_some()).count() as u32;
        let is_failed = |i: &&Instance| i.lease.is_none() && i.state == State::Failed;
        let failed = of_pool().filter(is_failed).count() as u32;
        PoolView {
            tenant_id: pool.reference.tenant.clone(),
            pool_id: pool.reference.pool.clone(),
            flake_ref: pool.flake_ref.clone(),
            profile: pool.profile.clone(),
            override_inputs: pool.override_inputs.clone(),
            instance_resources: pool.resources,
            caches: pool.caches.clone(),
            desired_counts: pool.desired,
            building_since: self.builds.since(&pool.reference),
            ready_counts: ready(pool, of_pool()),
            leased,
            failed,
            instances: of_pool().count() as u32,
            recycle: pool.recycle,
            prewarm: pool.prewarm.clone(),
            runtime_policy: pool.runtime_policy,
            egress: pool.egress.clone(),
            template_ready: self.templates.of_pool(pool).is_some(),
            template_renewal: self.templates.renewal_of(pool),
            revision: pool.current_revision().cloned(),
            stale: pool.stale,
            last_failure: self.health.of(&pool.reference).last_failure,
            shortfalls: lacks.of(pool),
            created_at: pool.created_at,
        }
    }

    fn instance_view(
        &self,
        instance: &Instance,
        pid: Option<u32>,
        lingers_until: Option<Millis>,
        next: Option<Next>,
    ) -> InstanceView {
        InstanceView {
            reference: instance.reference(),
            tenant_id: instance.pool.tenant.clone(),
            pool_id: instance.pool.pool.clone(),
            instance_id: instance.id.to_string(),
            state: instance.state,
            going_to: instance.goal.or(instance.intent.map(|intent| intent.to)),
            reason: instance.reason.clone(),
            paused: self.halted.paused(instance.id),
            address: instance.address,
            mac: instance.mac.clone(),
            instance_resources: instance.resources,
            revision: instance.revision.clone(),
            lease: instance.lease.as_ref().map(|lease| self.leases.shown(lease)),
            leases_served: instance.leases_served,
            way_up: instance.way_up,
            pid,
            simulated: self.parts.hypervisor.description().simulated,
            node_id: None,
            created_at: instance.created_at,
            state_since: instance.state_since,
            lingers_until,
            next,
        }
    }

    /// The instance as it is now, with its process.
    pub(crate) async fn show(&self, reference: &InstanceRef) -> Result<InstanceView> {
        let (instance, until, next) = self.records.read(|world| {
            let instance = world.instance(reference)?;
            let (pool, idle) = (world.pool(&instance.pool)?, self.idle_since(instance.id));
            let next = policy::next(pool, instance, idle);
            let until = policy::lingers_until(&pool.runtime_policy, instance);
            Ok::<_, mvm_api::Problem>((instance.clone(), until, next))
        })?;
        let slot = self.slots.of(instance.id);
        // While a transition holds the gate the process is in flux: shown without waiting.
        let (pid, lingers) = match slot.gate.try_lock() {
            Ok(live) => (live.process().map(|machine| machine.process().pid), live.lingers()),
            Err(_) => (None, false),
        };
        Ok(self.instance_view(&instance, pid, lingers.then_some(until), next).shown())
    }

    /// All builds of a pool.
    pub(crate) async fn revisions(&self, pool: &PoolRef) -> Result<Vec<RevisionView>> {
        let images = &self.parts.images;
        self.records.read(|world| {
            let record = world.pool(pool)?;
            let view = |entry: &mvm_model::pool::RevisionEntry| RevisionView {
                current: record.current == Some(entry.number),
                present: images.get(&entry.digest).is_ok(),
                instances: world.of_pool(pool).filter(|i| i.revision == entry.digest).count()
                    as u32,
                entry: entry.clone(),
            };
            Ok(record.revisions.iter().map(view).collect())
        })
    }

    /// What an instance uses, as the host and its guest count it.
    pub(crate) async fn stats(&self, reference: &InstanceRef) -> Result<InstanceStats> {
        let instance = self.records.read(|world| world.instance(reference).cloned())?;
        let mut stats = InstanceStats {
            state: instance.state,
            cpu_time_ms: 0,
            resident_kib: 0,
            proportional_kib: 0,
            net_sent_bytes: 0,
            net_received_bytes: 0,
            disk_kib: disk_use_kib(&self.parts.root.files(instance.id).dir),
            guest: None,
        };
        // The tap counts from the host's side: what it receives, the guest has sent.
        if let Ok(tap) = self.links.counters(&instance).await {
            stats.net_sent_bytes = tap.rx_bytes;
            stats.net_received_bytes = tap.tx_bytes;
        }
        let machine = self.machine_for_stats(&instance, &mut stats).await;
        let Some(machine) = machine else { return Ok(stats) };
        let machine = match machine.stats().await {
            // What lingers may end at any time.
            Err(_) if instance.state == State::Sleeping => return Ok(stats),
            stats => stats.or_problem()?,
        };
        stats.cpu_time_ms = machine.cpu_time_ms;
        stats.resident_kib = machine.resident_kib;
        stats.proportional_kib = machine.proportional_kib;
        Ok(stats)
    }

    /// The process of an instance, and what its guest says; neither is waited for for long.
    async fn machine_for_stats(
        &self,
        instance: &Instance,
        stats: &mut InstanceStats,
    ) -> Option<Arc<dyn Machine>> {
        let (slot, until) = (self.slots.of(instance.id), STATS.begin());
        let Ok(mut live) = tokio::time::timeout_at(until.at, slot.gate.lock()).await else {
            stats.guest = Some("a transition is under way".into());
            return None;
        };
        let machine = live.process()?.clone();
        if instance.state == State::Running {
            let channel = tokio::time::timeout_at(until.at, live.channel()).await;
            // Others need not wait for what it says.
            drop(live);
            let said = match channel {
                Ok(Ok(channel)) => slot.waits.guest(until, channel.stats()).await.ok(),
                _ => None,
            };
            let said = said.and_then(|said| serde_json::to_value(said).ok());
            stats.guest = said.or_else(|| Some("does not answer".into()));
        }
        Some(machine)
    }
}
