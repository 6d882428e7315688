//! Makes templates: boots an instance, runs the pool's command in it, puts it to sleep and takes
//! its files.

use crate::Result;
use crate::audit::Auditor;
use crate::blocking::blocking;
use crate::deadlines::PREWARM;
use crate::error::PoolError;
use crate::health::Health;
use crate::instances::Instances;
use crate::lease_request::LeaseRequest;
use crate::locks::locked;
use crate::records::Records;
use crate::templates::{Templates, publish};
use crate::wake::Wake;
use mvm_guest::protocol::ExecRequest;
use mvm_model::lease::Purpose;
use mvm_model::{Actor, Code, Instance, InstanceId, Pool, PoolRef, State};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex as Lock};
use tokio::sync::Mutex;

/// How long a template's making may take before its lease ends it, in seconds.
const MAKING_S: u64 = 3600;

/// Makes the templates of pools.
pub(crate) struct TemplateMaker {
    records: Arc<Records>,
    instances: Arc<Instances>,
    templates: Arc<Templates>,
    health: Arc<Health>,
    auditor: Arc<Auditor>,
    wake: Wake,
    /// Held while a pool's template is made.
    turns: Lock<HashMap<PoolRef, Arc<Mutex<()>>>>,
    /// The pools whose template is being renewed.
    under_way: Lock<BTreeSet<PoolRef>>,
}

impl TemplateMaker {
    /// Makes the service that makes templates of these instances.
    pub(crate) fn new(
        records: Arc<Records>,
        instances: Arc<Instances>,
        templates: Arc<Templates>,
        health: Arc<Health>,
        auditor: Arc<Auditor>,
        wake: Wake,
    ) -> TemplateMaker {
        let (turns, under_way) = (Lock::default(), Lock::default());
        TemplateMaker { records, instances, templates, health, auditor, wake, turns, under_way }
    }

    /// Returns the lock that serialises the making of a pool's template.
    pub(crate) fn lock_of(&self, pool: &PoolRef) -> Arc<Mutex<()>> {
        locked(&self.turns).entry(pool.clone()).or_default().clone()
    }

    /// Makes the template before the reconciler brings up an instance that has nothing of its own.
    /// If quota or subnet have no room for that, the instance is booted instead.
    pub(crate) async fn ensure(&self, id: InstanceId) -> Result<()> {
        let pool = self.records.read(|records| {
            let instance = records.by_id(id).ok()?;
            let pool = records.pool(&instance.pool).ok()?;
            let current = pool.current_revision()?.digest == instance.revision;
            (current && instance.is_blank() && pool.shapes(instance))
                .then(|| pool.reference.clone())
        });
        let Some(pool) = pool else { return Ok(()) };
        match self.ensure_of(&pool).await {
            Err(error) if error.code().is_one_of(&[Code::QuotaExceeded, Code::SubnetFull]) => {
                tracing::info!(%pool, "no template: {error}");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Makes the template of the pool's present revision and shape, if there is none. Of several
    /// callers, one makes the template and the others wait.
    pub(crate) async fn ensure_of(&self, reference: &PoolRef) -> Result<()> {
        let turn = self.lock_of(reference);
        let _turn = turn.lock().await;
        self.templates.settled().await;
        let pool = self.records.read(|records| records.pool(reference).cloned())?;
        self.templates.end_renewal(&pool).await?;
        if pool.current_revision().is_none() || self.templates.of_pool(&pool).is_some() {
            return Ok(());
        }
        let began = std::time::Instant::now();
        let before =
            self.templates.key_of_pool(&pool).and_then(|key| self.templates.to_be_renewed(&key));
        let why = match before {
            Some(renewal) => Some(renewal.reason),
            None => (self.templates.superseded().await.contains(reference))
                .then(|| "QEMU, its accelerator or the CPU of the host has changed".to_owned()),
        };
        let instance = self.create_builder(reference, why).await?;
        let key = self.templates.key_of_instance(&pool, &instance);
        let work = self.make_template(&pool, &instance, &key);
        let tenant = Some(&reference.tenant);
        let made = self.auditor.as_agent("template.create", tenant, reference, None, work).await;
        let gone = self.instances.destroy(instance.id, &Actor::Force).await;
        made?;
        gone?;
        self.templates.renewed(&key).await?;
        let took_ms = began.elapsed().as_millis() as u64;
        tracing::info!(pool = %reference, template = key, took_ms, "made a template");
        Ok(())
    }

    /// Makes an instance under a lease of the agent: no other operation touches it, and the next
    /// agent ends it. If an earlier template was given up, the instance's first event says why.
    async fn create_builder(&self, pool: &PoolRef, why: Option<String>) -> Result<Instance> {
        let (holder, purpose) = ("template".to_owned(), Purpose::Template);
        let request = LeaseRequest { holder, purpose, lease_s: Some(MAKING_S) };
        let lease = request.lease(self.records.clock().now())?;
        let why = why.map(|why| format!("the template is made anew: {why}"));
        self.instances
            .transitions()
            .create_with(pool, |i| (i.lease, i.reason) = (Some(lease), why))
            .await
    }

    async fn make_template(&self, pool: &Pool, instance: &Instance, key: &str) -> Result<()> {
        let by = Actor::of(instance);
        self.instances.transition_to(instance.id, State::Running, &by).await?;
        if let Some(command) = &pool.prewarm {
            self.prewarm(instance, command).await?;
        }
        self.instances.transition_to(instance.id, State::Sleeping, &by).await?;
        let from = self.instances.files(instance.id);
        let to = self.templates.files(key);
        let (made_at, kind) = (self.records.clock().wall(), self.templates.kind_of(pool));
        blocking(move || publish(&from, &to, made_at, kind)).await
    }

    /// Runs the pool's own command in the guest that becomes the template.
    async fn prewarm(&self, instance: &Instance, command: &str) -> Result<()> {
        let slot = self.instances.slot(instance.id);
        let channel = slot.gate.lock().await.channel().await?;
        let argv = ["sh", "-c", command].map(str::to_owned).to_vec();
        let run = async {
            let mut program = channel.exec(ExecRequest { argv, ..Default::default() }).await?;
            let ended = program.finish().await?;
            channel.sync().await?;
            Ok::<_, mvm_guest::Error>(ended)
        };
        let failed =
            |why: String| PoolError::PrewarmFailed { pool: instance.pool.clone(), why }.into();
        let Ok(ended) = tokio::time::timeout(PREWARM.limit(), run).await else {
            return Err(failed(format!("ran for over {} s", PREWARM.seconds)));
        };
        let (_, words, exit) = ended?;
        match exit.shell_status() {
            0 => Ok(()),
            status => {
                let words = String::from_utf8_lossy(&words);
                let lines: Vec<&str> = words.trim_end().lines().collect();
                let end = lines[lines.len().saturating_sub(10)..].join("\n");
                Err(failed(format!("ended with status {status}: {end}")))
            }
        }
    }

    /// Renews the templates that were given up or do not fit the hypervisor any more, if templates
    /// may be made now, and removes those that nothing needs.
    pub(crate) async fn renew_and_collect(self: &Arc<Self>, may_make: bool) {
        if may_make {
            let superseded = self.templates.superseded().await;
            self.renew(&superseded);
        }
        let _ = self.templates.collect().await;
    }

    /// Starts to renew the templates that were given up, in every pool, and those of these pools.
    fn renew(self: &Arc<Self>, superseded: &BTreeSet<PoolRef>) {
        let pools: Vec<PoolRef> = self.records.read(|records| {
            let lacks = |pool: &&Pool| {
                superseded.contains(&pool.reference)
                    || self
                        .templates
                        .key_of_pool(pool)
                        .is_some_and(|key| self.templates.to_be_renewed(&key).is_some())
            };
            records.pools.values().filter(lacks).map(|pool| pool.reference.clone()).collect()
        });
        for pool in pools {
            let due = self.records.clock().now() >= self.health.of(&pool).failures.retry_at();
            if !due || !locked(&self.under_way).insert(pool.clone()) {
                continue;
            }
            let maker = self.clone();
            tokio::spawn(async move {
                match maker.ensure_of(&pool).await {
                    Ok(()) => maker.health.succeeded(&pool),
                    Err(error) => maker.health.failed(&pool, &error),
                }
                locked(&maker.under_way).remove(&pool);
                maker.wake.notify();
            });
        }
    }
}
