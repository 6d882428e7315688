//! The document of desired state: puts it in force, and carries it out step by step.
//!
//! The document is durable before its first step, so a new agent continues after a crash. A
//! document that was applied once is done when no steps are left. A document from a file that the
//! agent watches stays in force.

use crate::audit::Auditor;
use crate::catalog::{Catalog, has_model};
use crate::error::{NodeError, io};
use crate::host::Host;
use crate::locks::locked;
use crate::pool_builder::PoolBuilder;
use crate::pool_removal::PoolRemoval;
use crate::records::RecordSet;
use crate::records::{InForce, Records};
use crate::tenants::Tenants;
use crate::wake::Wake;
use crate::{Error, Result};
use mvm_api::types::{BuildPool, CreatePool, CreateTenant, DesiredStatus, UpdatePool};
use mvm_model::desired::{DesiredState, Step, diff};
use mvm_model::plan::Failures;
use mvm_model::{Code, CpuModel, Fault, Name, PoolRef, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;

/// How often the file and the node are checked when nothing happens.
const PERIOD: Duration = Duration::from_secs(2);

/// A file whose document is kept in force.
#[derive(Clone, Debug)]
pub struct DesiredFile {
    /// The file's absolute path.
    pub path: PathBuf,
    /// Whether to remove what the document does not name.
    pub prune: bool,
    /// Inputs that are overridden in every flake, besides the document's own.
    pub override_inputs: BTreeMap<String, String>,
}

/// The document in force, and the progress towards it.
pub(crate) struct Desired {
    records: Arc<Records>,
    tenants: Arc<Tenants>,
    catalog: Arc<Catalog>,
    builder: Arc<PoolBuilder>,
    removal: Arc<PoolRemoval>,
    host: Arc<Host>,
    auditor: Arc<Auditor>,
    convergence: Convergence,
}

/// The progress towards the document, in memory only.
#[derive(Default)]
struct Convergence {
    /// Wakes the loop that carries out the document.
    wake: Wake,
    progress: Lock<Progress>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    file: Option<String>,
    refused: Option<String>,
    failures: Failures,
    last_failure: Option<Arc<Error>>,
}

/// Keeps the document in force until the task is aborted.
pub async fn run(desired: Arc<Desired>, file: Option<DesiredFile>) {
    let mut seen = None;
    if let Some(file) = &file {
        desired.progress(|p| p.file = Some(file.path.display().to_string()));
    }
    loop {
        if let Some(file) = &file {
            observe(&desired, file, &mut seen).await;
        }
        pass(&desired).await;
        tokio::select! {
            () = desired.convergence.wake.notified() => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Tells versions of a file apart.
type Version = Option<(u64, i64, i64, u64)>;

/// Puts a new version of the file in force. A faulty one is reported, and the previous document
/// stays.
async fn observe(desired: &Arc<Desired>, file: &DesiredFile, seen: &mut Option<Version>) {
    let meta = std::fs::metadata(&file.path).ok();
    let version = meta.map(|m| (m.ino(), m.mtime(), m.mtime_nsec(), m.len()));
    if *seen == Some(version) {
        return;
    }
    *seen = Some(version);
    let outcome = async {
        let document = read(file)?;
        desired.apply(document, file.prune, true).await
    };
    let refused = outcome.await.err().map(|error| error.to_string());
    if let Some(why) = &refused {
        tracing::error!(file = %file.path.display(), "the desired state is not taken: {why}");
    }
    desired.progress(|p| p.refused = refused);
}

fn read(file: &DesiredFile) -> Result<DesiredState> {
    let text =
        std::fs::read(&file.path).map_err(|e| io(format!("read {}", file.path.display()), e))?;
    let folder = file.path.parent().map(Path::to_string_lossy).unwrap_or_default();
    Ok(DesiredState::parse_in(&text, &folder, &file.override_inputs)?)
}

/// Carries out the remaining steps once. Failures are tried again at growing intervals.
async fn pass(desired: &Arc<Desired>) {
    let Some(in_force) = desired.records.read(|records| records.desired.clone()) else { return };
    let clock = desired.records.clock();
    if clock.now() < desired.progress(|p| p.failures.retry_at()) {
        return;
    }
    if let Err(error) = perform_all(desired, &in_force).await {
        tracing::warn!("desired state: {error}");
        desired.progress(|p| {
            p.failures = Failures { count: p.failures.count + 1, last: clock.now() };
            p.last_failure = Some(Arc::new(error));
        });
        return;
    }
    desired.progress(|p| (p.failures, p.last_failure) = (Failures::default(), None));
    if let Err(error) = desired.conclude(&in_force).await {
        tracing::error!("desired state: {error}");
    }
}

/// Carries out every step that it can. A failed step does not stop the steps of other tenants and
/// pools. Returns the last failure.
async fn perform_all(desired: &Arc<Desired>, in_force: &InForce) -> Result<()> {
    let mut outcome = Ok(());
    // The tenants and pools whose later steps depend on a failed one.
    let mut failed: BTreeSet<(Name, Option<PoolRef>)> = BTreeSet::new();
    for step in desired.steps_of(in_force)? {
        let (whole, own) =
            ((step.tenant().clone(), None), (step.tenant().clone(), step.pool().cloned()));
        if failed.contains(&whole) || failed.contains(&own) {
            continue;
        }
        tracing::info!("desired state: {step}");
        if let Err(error) = desired.perform(&in_force.document, &step).await {
            outcome = Err(Error::Step { step: step.to_string(), error: Box::new(error) });
            failed.insert(own);
        }
    }
    outcome
}

/// Returns the step's verb in the audit log.
fn verb(step: &Step) -> &'static str {
    match step {
        Step::CreateTenant { .. } => "tenant.create",
        Step::UpdateTenant { .. } => "tenant.update",
        Step::DestroyTenant { .. } => "tenant.destroy",
        Step::CreatePool { .. } => "pool.create",
        Step::UpdatePool { .. } => "pool.update",
        Step::DestroyPool { .. } => "pool.destroy",
        Step::Build { .. } => "pool.build",
        Step::Scale { .. } => "pool.scale",
    }
}

impl Desired {
    /// Makes the service for documents about these records.
    pub(crate) fn new(
        records: Arc<Records>,
        tenants: Arc<Tenants>,
        catalog: Arc<Catalog>,
        builder: Arc<PoolBuilder>,
        removal: Arc<PoolRemoval>,
        host: Arc<Host>,
        auditor: Arc<Auditor>,
    ) -> Desired {
        let convergence = Convergence::default();
        Desired { records, tenants, catalog, builder, removal, host, auditor, convergence }
    }

    fn progress<T>(&self, look: impl FnOnce(&mut Progress) -> T) -> T {
        look(&mut locked(&self.convergence.progress))
    }

    /// Wakes the loop.
    pub(crate) fn wake(&self) {
        self.convergence.wake.notify();
    }

    /// Tries again at once after a failure.
    #[cfg(test)]
    pub(crate) fn forget_failures(&self) {
        self.progress(|p| p.failures = Failures::default());
    }

    /// Returns the node's present state as a document.
    pub(crate) fn now(&self) -> Result<DesiredState> {
        let node_id = self.host.node_id()?;
        let document = |records: &RecordSet| {
            DesiredState::of(node_id, records.tenants.values(), &records.pools)
        };
        Ok(self.records.read(document))
    }

    /// Returns the steps that a document needs. Refuses another node's document, and one that this
    /// node cannot hold.
    pub(crate) fn steps(&self, document: &DesiredState, prune: bool) -> Result<Vec<Step>> {
        if let Some(ours) = self.host.given_name().filter(|ours| **ours != document.node_id) {
            let message = format!("the document is for node {}, this is {ours}", document.node_id);
            return Err(Fault::new(Code::Conflict, message).at("$.node_id").into());
        }
        Ok(self.records.read(|records| diff(document, &records.tenants, &records.pools, prune))?)
    }

    /// Returns the remaining steps of the document in force.
    fn steps_of(&self, in_force: &InForce) -> Result<Vec<Step>> {
        let mut steps = self.steps(&in_force.document, in_force.prune)?;
        if let Some(owned) = &in_force.fleet {
            steps.retain(|step| owned.takes(step));
        }
        Ok(steps)
    }

    /// Puts a fleet's document in force, until another replaces it.
    pub(crate) async fn apply_fleet_document(
        &self,
        document: DesiredState,
        digest: &str,
    ) -> Result<()> {
        if let Some(file) = self.progress(|p| p.file.clone()) {
            return Err(NodeError::KeepsFile { file }.into());
        }
        // The document is checked now, so that the coordinator gets the error.
        document.settled()?;
        self.host.admit_shapes(&document)?;
        self.steps(&document, true)?;
        self.records
            .change(|records, changes| {
                let mut owned =
                    records.desired.as_ref().and_then(|d| d.fleet.clone()).unwrap_or_default();
                owned.digest = digest.to_owned();
                owned.tenants.retain(|tenant| records.tenants.contains_key(tenant));
                owned.pools.retain(|pool| records.pools.contains_key(pool));
                for tenant in &document.tenants {
                    let name = &tenant.tenant_id;
                    owned.tenants.insert(name.clone());
                    let pools = tenant.pools.iter();
                    let full = |pool: &Name| PoolRef { tenant: name.clone(), pool: pool.clone() };
                    owned.pools.extend(pools.map(|pool| full(&pool.pool_id)));
                }
                let fleet = Some(owned);
                changes.put_desired(InForce { document, prune: true, hold: true, fleet });
                Ok(())
            })
            .await?;
        self.progress(|p| (p.failures, p.last_failure) = (Failures::default(), None));
        self.wake();
        Ok(())
    }

    /// Refuses a document of which some pool can have no machine here.
    pub(crate) async fn admit(&self, document: &DesiredState) -> Result<()> {
        self.host.admit_shapes(document)?;
        document.admit_machines()?;
        let has = |pool: &PoolRef, model: &CpuModel| {
            self.records.read(|records| has_model(records, pool, model))
        };
        self.host.admit_cpu_models(document, has).await
    }

    /// Puts a document in force, and returns the steps that it needs.
    pub(crate) async fn apply(
        &self,
        document: DesiredState,
        prune: bool,
        hold: bool,
    ) -> Result<Vec<Step>> {
        document.settled()?;
        self.admit(&document).await?;
        let steps = self.steps(&document, prune)?;
        self.records
            .change(|_, changes| {
                changes.put_desired(InForce { document, prune, hold, fleet: None });
                Ok(())
            })
            .await?;
        self.progress(|p| (p.failures, p.last_failure) = (Failures::default(), None));
        self.wake();
        Ok(steps)
    }

    /// Returns the progress towards the document in force.
    pub(crate) fn status(&self) -> DesiredStatus {
        let in_force = self.records.read(|records| records.desired.clone());
        let pending = match &in_force {
            Some(it) => self.steps_of(it).unwrap_or_default(),
            None => Vec::new(),
        };
        let progress = self.progress(|p| p.clone());
        let retry_at = Some(progress.failures.retry_at()).filter(|at| *at > Timestamp::EPOCH);
        DesiredStatus {
            file: progress.file,
            refused: progress.refused,
            in_force: in_force.is_some(),
            pending,
            retry_at: retry_at.map(|at| self.records.clock().wall_of(at)),
            last_failure_code: progress.last_failure.as_ref().map(|why| why.code()),
            last_failure: progress.last_failure.map(|why| why.to_string()),
        }
    }

    /// Ends a document that was applied once, when no steps are left.
    async fn conclude(&self, in_force: &InForce) -> Result<()> {
        if in_force.hold {
            return Ok(());
        }
        self.records
            .change(|records, changes| {
                let InForce { document, prune, .. } = in_force;
                let same =
                    records.desired.as_ref().is_some_and(|d| d.document == *document && !d.hold);
                if same && diff(document, &records.tenants, &records.pools, *prune)?.is_empty() {
                    changes.remove_desired();
                }
                Ok(())
            })
            .await
    }

    async fn perform(&self, document: &DesiredState, step: &Step) -> Result<()> {
        let (verb, tenant) = (verb(step), step.tenant());
        let target = step.pool().map_or_else(|| tenant.to_string(), ToString::to_string);
        // The future holds every step's work. It is boxed, since it would be on the stack several
        // times.
        let work = Box::pin(self.take_step(document, step));
        match step {
            // These steps wait over several passes, and are logged when they are carried out.
            Step::DestroyPool { .. } | Step::DestroyTenant { .. } => work.await,
            _ => self.auditor.as_agent(verb, Some(tenant), target, None, work).await,
        }
    }

    async fn take_step(&self, document: &DesiredState, step: &Step) -> Result<()> {
        match step {
            Step::DestroyPool { pool } => match self.removal.drain(pool).await? {
                true => {
                    let (tenant, work) = (Some(&pool.tenant), self.removal.destroy_pool(pool));
                    self.auditor.as_agent(verb(step), tenant, pool, None, work).await
                }
                false => Ok(()),
            },
            Step::DestroyTenant { tenant } => {
                let held = self.records.read(|w| w.pools.keys().any(|p| p.tenant == *tenant));
                // The tenant's pools drain first.
                if held {
                    return Ok(());
                }
                let work = self.tenants.destroy(tenant);
                self.auditor.as_agent(verb(step), Some(tenant), tenant, None, work).await
            }
            Step::CreateTenant { tenant } => {
                let Some(wanted) = document.tenant(tenant) else { return Ok(()) };
                let (network, quotas) = (wanted.network.clone(), wanted.quotas);
                self.tenants.create(CreateTenant { name: tenant.clone(), network, quotas }).await
            }
            Step::UpdateTenant { tenant, quotas } => {
                self.tenants.update(tenant, (*quotas).into()).await
            }
            Step::CreatePool { pool } => {
                let Some(wanted) = document.pool(pool) else { return Ok(()) };
                let body = CreatePool {
                    name: pool.pool.clone(),
                    flake_ref: wanted.flake_ref.clone(),
                    profile: wanted.profile.clone(),
                    resources: wanted.instance_resources,
                    caches: wanted.caches.clone(),
                    recycle: wanted.recycle,
                    cpu_model: wanted.cpu_model.clone(),
                    prewarm: wanted.prewarm.clone(),
                    runtime_policy: wanted.runtime_policy,
                    egress: wanted.egress.clone(),
                    override_inputs: wanted.override_inputs.clone(),
                    kernel: None,
                };
                self.catalog.create(&pool.tenant, body).await
            }
            Step::UpdatePool { pool, .. } => {
                let Some(wanted) = document.pool(pool) else { return Ok(()) };
                let shape = wanted.instance_resources;
                let patch = UpdatePool {
                    flake_ref: Some(wanted.flake_ref.clone()),
                    profile: Some(wanted.profile.clone()),
                    vcpus: Some(shape.vcpus),
                    mem_mib: Some(shape.mem_mib),
                    data_disk_mib: Some(shape.data_disk_mib),
                    scratch_disk_mib: Some(shape.scratch_disk_mib),
                    recycle: Some(wanted.recycle),
                    caches: Some(wanted.caches.clone()),
                    cpu_model: Some(wanted.cpu_model.clone()),
                    prewarm: Some(wanted.prewarm.clone().unwrap_or_default()),
                    override_inputs: Some(wanted.override_inputs.clone()),
                    runtime_policy: wanted.runtime_policy.into(),
                    egress: Some(wanted.egress.clone()),
                };
                self.catalog.update(pool, patch).await
            }
            Step::Build { pool } => {
                let wanted = document.pool(pool);
                let pinned = wanted.and_then(|w| Some((w.revision.as_ref()?, &w.revision_from)));
                if let Some((digest, source)) = pinned {
                    return self.builder.use_image(pool, digest, source.as_ref()).await;
                }
                let (progress, mut reports) = tokio::sync::mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Some(report) = reports.recv().await {
                        tracing::debug!(?report, "build");
                    }
                });
                self.builder.build(pool, BuildPool::default(), &progress).await.map(drop)
            }
            Step::Scale { pool, counts } => self.catalog.scale(pool, (*counts).into()).await,
        }
    }
}
