//! Tenants and pools: making, changing and removing them.

use crate::Result;
use crate::clock::wall;
use crate::node::Node;
use crate::problem::{IntoProblem, OrProblem, not_found};
use crate::records::{World, not_built};
use crate::state_dir::{is_root, remove_dir};
use ipnet::Ipv4Net;
use mvm_api::Problem;
use mvm_api::types::{
    BuildPool, BuildResult, CreatePool, CreateTenant, FetchImage, QuotaPatch, ScalePool, UpdatePool,
};
use mvm_image::{BuildRequest, Progress};
use mvm_model::admission::{admit_counts, admit_machine, admit_pool};
use mvm_model::cache::disk_mib;
use mvm_model::desired::{ImageSource, settled, source};
use mvm_model::pool::RevisionEntry;
use mvm_model::{Counts, Mover, Name, Pool, PoolRef, State, Tenant};
use mvm_network::Conflict;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

impl Node {
    /// Makes a tenant: record, bridge, rules. One that is there and equal is left as it is.
    pub async fn create_tenant(&self, wanted: CreateTenant) -> Result<()> {
        wanted.network.validate()?;
        let tenant = Tenant {
            name: wanted.name,
            network: wanted.network,
            quotas: wanted.quotas,
            created_at: wall(),
        };
        let known = self.records.read(|world| world.tenants.get(&tenant.name).cloned());
        if let Some(known) = known {
            if known.network.is_same(&tenant.network) && known.quotas == tenant.quotas {
                return Ok(());
            }
            return Err(exists(format!("tenant {}", tenant.name), "mvm tenant update"));
        }
        crate::audit::note_target(&tenant.name);
        let subnet = tenant.network.ipv4_subnet;
        let resolvers = crate::names::resolvers();
        let conflict = self.links.network().conflicts(subnet, &resolvers).await.or_problem()?;
        if let Some(conflict) = conflict {
            return Err(subnet_taken(subnet, conflict));
        }
        self.records
            .change(|world, changes| {
                for other in world.tenants.values() {
                    if let Some(fault) = tenant.network.conflicts_with(&other.network) {
                        let message = format!("{} (tenant {})", fault.message, other.name);
                        return Err(Problem { detail: message, ..fault.into() });
                    }
                }
                changes.put_tenant(tenant.clone());
                Ok(())
            })
            .await?;
        crate::identity::tenant_key(&self.parts.root, &tenant.name)?;
        self.links.set_up_tenant(&tenant).await
    }

    /// Changes quotas. Lowering one below what is in use only keeps the use from growing.
    pub async fn update_tenant(&self, name: &Name, patch: QuotaPatch) -> Result<()> {
        self.records
            .change(|world, changes| {
                let mut tenant = world.tenant(name)?.clone();
                tenant.quotas = patch.apply(tenant.quotas);
                changes.put_tenant(tenant);
                Ok(())
            })
            .await?;
        self.wake.notify();
        Ok(())
    }

    /// Removes a tenant that has no pools left.
    pub async fn destroy_tenant(&self, name: &Name) -> Result<()> {
        let tenant = self
            .records
            .change(|world, changes| {
                let tenant = world.tenant(name)?.clone();
                let pools: Vec<_> = world
                    .pools
                    .keys()
                    .filter(|p| p.tenant == *name)
                    .map(|p| p.to_string())
                    .collect();
                if !pools.is_empty() {
                    let message = format!("tenant {name} still has pools: {}", pools.join(", "));
                    return Err(Problem::new(409, "in_use", message)
                        .hint("destroy them first: mvm pool destroy"));
                }
                changes.remove_tenant(name.clone());
                Ok(tenant)
            })
            .await?;
        self.links.disconnect_tenant(&tenant).await?;
        remove_dir(&self.parts.root.tenant(name))
    }

    /// Makes a pool. One that is there and equal is left as it is.
    pub async fn create_pool(&self, tenant: &Name, wanted: CreatePool) -> Result<()> {
        wanted.resources.validate()?;
        self.admit_shape(&wanted.resources)?;
        wanted.runtime_policy.validate()?;
        wanted.egress.validate()?;
        source(&wanted.flake_ref, &wanted.profile, "$")?;
        settled(&wanted.flake_ref, "$.flake_ref")?;
        let caches = mvm_model::cache::change(&[], wanted.caches)?;
        let reference = PoolRef { tenant: tenant.clone(), pool: wanted.name };
        crate::audit::note_target(&reference);
        let kernel = match &wanted.kernel {
            Some(name) => Some(self.parts.images.kernel(name).or_problem()?.digest),
            None => None,
        };
        self.records
            .change(|world, changes| {
                let owner = world.tenant(tenant)?;
                let pool = Pool {
                    reference: reference.clone(),
                    flake_ref: wanted.flake_ref,
                    profile: wanted.profile,
                    override_inputs: wanted.override_inputs,
                    stale: false,
                    kernel,
                    resources: wanted.resources,
                    caches,
                    desired: None,
                    recycle: wanted.recycle,
                    prewarm: wanted.prewarm.filter(|command| !command.is_empty()),
                    runtime_policy: wanted.runtime_policy,
                    egress: wanted.egress,
                    revisions: Vec::new(),
                    current: None,
                    created_at: wall(),
                };
                if let Some(known) = world.pools.get(&reference) {
                    let same = known.flake_ref == pool.flake_ref
                        && known.profile == pool.profile
                        && known.resources == pool.resources
                        && mvm_model::cache::same(&known.caches, &pool.caches)
                        && known.recycle == pool.recycle
                        && known.prewarm == pool.prewarm
                        && known.runtime_policy == pool.runtime_policy
                        && known.egress == pool.egress
                        && (pool.override_inputs.is_empty()
                            || known.override_inputs == pool.override_inputs)
                        && known.kernel == pool.kernel;
                    return match same {
                        true => Ok(()),
                        false => Err(exists(format!("pool {reference}"), "mvm pool update")),
                    };
                }
                admit_pool(tenant, &owner.quotas, &world.usage(tenant))?;
                if !has_part_of_quotas(world, tenant) {
                    let caches = disk_mib(&pool.caches);
                    admit_machine(tenant, &owner.quotas, &pool.resources, caches)?;
                }
                changes.put_pool(pool);
                Ok(())
            })
            .await
    }

    /// Changes a pool. Instances that are leased keep their shape, idle ones are replaced.
    pub async fn update_pool(&self, reference: &PoolRef, patch: UpdatePool) -> Result<()> {
        if let Some(flake) = &patch.flake_ref {
            settled(flake, "$.flake_ref")?;
        }
        let walls = patch.egress.is_some();
        self.records
            .change(|world, changes| {
                let before = world.pool(reference)?;
                let mut pool = before.clone();
                pool.override_inputs = patch.override_inputs.unwrap_or(pool.override_inputs);
                pool.flake_ref = patch.flake_ref.unwrap_or(pool.flake_ref);
                pool.profile = patch.profile.unwrap_or(pool.profile);
                source(&pool.flake_ref, &pool.profile, "$")?;
                pool.recycle = patch.recycle.unwrap_or(pool.recycle);
                let same = pool.flake_ref == before.flake_ref
                    && pool.profile == before.profile
                    && pool.override_inputs == before.override_inputs;
                pool.stale |= !same && pool.current.is_some();
                if let Some(command) = patch.prewarm {
                    pool.prewarm = Some(command).filter(|command| !command.is_empty());
                }
                pool.runtime_policy = patch.runtime_policy.apply(pool.runtime_policy);
                pool.runtime_policy.validate()?;
                pool.egress = patch.egress.unwrap_or(pool.egress);
                pool.egress.validate()?;
                let shape = &mut pool.resources;
                shape.vcpus = patch.vcpus.unwrap_or(shape.vcpus);
                shape.mem_mib = patch.mem_mib.unwrap_or(shape.mem_mib);
                shape.data_disk_mib = patch.data_disk_mib.unwrap_or(shape.data_disk_mib);
                shape.scratch_disk_mib = patch.scratch_disk_mib.unwrap_or(shape.scratch_disk_mib);
                shape.validate()?;
                let (shape, grown) = (*shape, *shape != before.resources);
                if grown {
                    self.admit_shape(&shape)?;
                }
                if let Some(wanted) = patch.caches {
                    pool.caches = mvm_model::cache::change(&pool.caches, wanted)?;
                }
                let tenant = world.tenant(&reference.tenant)?;
                if (grown || pool.caches != before.caches)
                    && !has_part_of_quotas(world, &tenant.name)
                {
                    admit_machine(&tenant.name, &tenant.quotas, &shape, disk_mib(&pool.caches))?;
                }
                if let Some(counts) = &pool.desired {
                    admit_counts(
                        &tenant.name,
                        &tenant.quotas,
                        &pool.resources,
                        &pool.caches,
                        counts,
                    )?;
                }
                changes.put_pool(pool);
                Ok(())
            })
            .await?;
        if walls {
            // Running machines are bound by it at once.
            self.links.refresh_rules().await?;
        }
        self.caches.sweep().await
    }

    /// Sets what the pool keeps ready.
    pub async fn scale_pool(&self, reference: &PoolRef, scale: ScalePool) -> Result<()> {
        self.records
            .change(|world, changes| {
                let mut pool = world.pool(reference)?.clone();
                if pool.current_revision().is_none() {
                    return Err(not_built(reference));
                }
                let before = pool.desired.unwrap_or_default();
                let counts = Counts {
                    running: scale.running.unwrap_or(before.running),
                    warm: scale.warm.unwrap_or(before.warm),
                    sleeping: scale.sleeping.unwrap_or(before.sleeping),
                };
                let tenant = world.tenant(&reference.tenant)?;
                admit_counts(&tenant.name, &tenant.quotas, &pool.resources, &pool.caches, &counts)?;
                pool.desired = Some(counts);
                changes.put_pool(pool);
                Ok(())
            })
            .await?;
        self.health.succeeded(reference);
        self.wake.notify();
        Ok(())
    }

    /// Builds the pool's image and makes it current.
    pub async fn build_pool(
        self: &Arc<Self>,
        reference: &PoolRef,
        wanted: BuildPool,
        progress: &UnboundedSender<Progress>,
    ) -> Result<BuildResult> {
        let pool = self.records.read(|world| world.pool(reference).cloned())?;
        let overrides = match wanted.override_inputs.is_empty() {
            true => pool.override_inputs,
            false => wanted.override_inputs,
        };
        let began = std::time::Instant::now();
        let request = BuildRequest {
            flake: pool.flake_ref,
            profile: pool.profile,
            override_inputs: overrides.clone(),
            kernel: pool.kernel,
        };
        let building = self.builds.begin(reference, wall());
        // Dropped, it ends the programs that it runs and leaves nothing behind.
        let image = tokio::select! {
            built = self.parts.images.build(&request, progress) => built.or_problem()?,
            () = building.canceled() => {
                return Err(Problem::new(409, "interrupted", "somebody has canceled the build")
                    .hint(format!("build it again: mvm pool build {reference}")));
            }
        };
        let revision = self.make_current(reference, &image.digest, Some(overrides)).await?;
        let detail = "boots once, is cloned from then on".to_owned();
        let _ = progress.send(Progress::Stage { name: "template", detail });
        // The image is built whatever comes of it: the reconciler tries again.
        let template = self.template_maker.ensure_of(reference).await;
        self.wake.notify();
        let took_ms = began.elapsed().as_millis() as u64;
        let template_failure = template.err().map(|problem| problem.to_string());
        Ok(BuildResult { revision, size_bytes: image.size_bytes, took_ms, template_failure })
    }

    /// Ends the builds of a pool's image that are under way.
    pub async fn cancel_build(&self, reference: &PoolRef) -> Result<()> {
        self.records.read(|world| world.pool(reference).map(drop))?;
        match self.builds.cancel(reference) {
            true => Ok(()),
            false => {
                let hint = format!("see what it is at: mvm pool info {reference}");
                Err(not_found(format!("build of pool {reference} under way"), &hint))
            }
        }
    }

    /// Makes an image current that another node has built; it is received from there if it is not
    /// here yet.
    pub(crate) async fn use_image(
        self: &Arc<Self>,
        reference: &PoolRef,
        digest: &str,
        source: Option<&ImageSource>,
    ) -> Result<()> {
        if let Some(ImageSource { content, nodes }) = source {
            let (digest, content) = (digest.to_owned(), Some(content.clone()));
            let wanted = FetchImage { digest, content, sources: nodes.clone() };
            // Nobody watches.
            self.fetch_image(wanted, &unbounded_channel().0).await?;
        }
        let image = self.parts.images.get(digest).or_problem()?;
        self.make_current(reference, &image.digest, None).await?;
        self.wake.notify();
        Ok(())
    }

    /// Records what a pool was built to, and from which inputs.
    async fn make_current(
        &self,
        reference: &PoolRef,
        digest: &str,
        overrides: Option<BTreeMap<String, String>>,
    ) -> Result<RevisionEntry> {
        self.look_for_images();
        let entry = self
            .records
            .change(|world, changes| {
                let mut pool = world.pool(reference)?.clone();
                pool.override_inputs = overrides.unwrap_or(pool.override_inputs);
                let entry = pool.record_build(digest, wall());
                changes.put_pool(pool);
                Ok(entry)
            })
            .await?;
        self.health.succeeded(reference);
        Ok(entry)
    }

    /// Makes an earlier revision current.
    pub async fn rollback_pool(&self, pool: &PoolRef, to: Option<u32>) -> Result<RevisionEntry> {
        let entry = self
            .records
            .change(|world, changes| {
                let mut record = world.pool(pool)?.clone();
                let entry = record.rollback(to)?;
                self.parts.images.get(&entry.digest).map_err(|error| {
                    error.problem().hint("its image was collected: build it anew with `pool build`")
                })?;
                changes.put_pool(record);
                Ok(entry)
            })
            .await?;
        self.wake.notify();
        Ok(entry)
    }

    /// Destroys a pool with all its instances.
    pub async fn destroy_pool(self: &Arc<Self>, reference: &PoolRef) -> Result<()> {
        // On the heap, as all that is large and rare: the futures of callers hold it otherwise.
        Box::pin(self.unexpose(reference, None)).await?;
        // First nothing new is made, then what there is goes, then the record.
        self.records
            .change(|world, changes| {
                let mut pool = world.pool(reference)?.clone();
                pool.desired = None;
                changes.put_pool(pool);
                Ok(())
            })
            .await?;
        self.cancel_jobs_of(reference).await?;
        loop {
            let ids: Vec<_> =
                self.records.read(|world| world.of_pool(reference).map(|i| i.id).collect());
            if ids.is_empty() {
                break;
            }
            for id in ids {
                self.instances.bring(id, State::Destroyed, &Mover::Force).await.or_else(
                    |problem| match problem.code == "not_found" {
                        true => Ok(State::Destroyed),
                        false => Err(problem),
                    },
                )?;
            }
        }
        let jobs = self
            .records
            .change(|world, changes| {
                if world.of_pool(reference).next().is_some() {
                    return Err(Problem::new(
                        409,
                        "in_use",
                        format!("pool {reference} got a new instance while it was being destroyed"),
                    )
                    .hint("try again"));
                }
                let live = |job: &&mvm_model::Job| !job.state.has_ended();
                if let Some(job) = world.jobs_of(reference).find(live) {
                    let what =
                        format!("pool {reference} got job {} while it was destroyed", job.id);
                    return Err(Problem::new(409, "in_use", what).hint("try again"));
                }
                if let Some(front) = world.exposes.values().find(|e| e.pool == *reference) {
                    let at = front.listen;
                    let what =
                        format!("pool {reference} got a front on {at} while it was destroyed");
                    return Err(Problem::new(409, "in_use", what).hint("try again"));
                }
                let jobs: Vec<_> = world.jobs_of(reference).map(|job| job.id).collect();
                jobs.iter().for_each(|id| changes.remove_job(*id));
                changes.remove_pool(reference.clone());
                Ok(jobs)
            })
            .await?;
        self.clear_away(&jobs)?;
        self.caches.sweep().await
    }
}

/// Something of the host has a tenant's subnet, or another state directory.
fn subnet_taken(subnet: Ipv4Net, conflict: Conflict) -> Problem {
    let (what, hint) = match conflict {
        Conflict::Host(what) => (what, "choose a subnet that this host does not use".to_owned()),
        Conflict::Root { what, root: Some(root), owner } => {
            let at = root.display();
            match is_root(&root, &owner) {
                true => (
                    format!("{what}, which another mvm root on this host holds: {at}"),
                    format!("choose another subnet, or look there: mvm --root {at} tenant list"),
                ),
                false => (
                    format!("{what}, an orphan: its state directory {at} is gone"),
                    "see what else is left of it, and remove it: mvm net clean".to_owned(),
                ),
            }
        }
        Conflict::Root { what, root: None, .. } => (
            format!("{what}, which another mvm root on this host holds (it does not say which)"),
            "choose another subnet; a newer mvm agent there would say where it is".to_owned(),
        ),
    };
    Problem::new(409, "subnet_taken", format!("{subnet} overlaps with {what}")).hint(hint)
}

/// Whether the tenant is a fleet's: its quotas here are this node's part, which may be less than a machine takes.
fn has_part_of_quotas(world: &World, tenant: &Name) -> bool {
    let fleet = world.desired.as_ref().and_then(|in_force| in_force.fleet.as_ref());
    fleet.is_some_and(|fleet| fleet.tenants.contains(tenant))
}

fn exists(what: String, verb: &str) -> Problem {
    Problem::new(409, "exists", format!("{what} exists already, and differs"))
        .hint(format!("change it with `{verb}`, or destroy it first"))
}
