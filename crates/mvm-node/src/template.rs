//! Templates: the golden snapshot of a pool's revision, booted once and cloned from then on.
//!
//! A template is a directory below `templates/`, published whole by a rename and never changed:
//! memory, device state and disks of a machine that is ready and has no identity. Its name is the
//! digest of everything that it depends on, so that what changes makes another one.

use crate::Result;
use crate::blocking::blocking;
use crate::claims::Wish;
use crate::clock::wall;
use crate::deadlines::PREWARM;
use crate::node::Node;
use crate::problem::{OrProblem, io};
use crate::renewal::NOTE;
use crate::state_dir::{Files, make_dir, remove_dir, write_atomically};
use mvm_api::Problem;
use mvm_guest::protocol::ExecRequest;
use mvm_model::lease::Purpose;
use mvm_model::{CacheDisk, Instance, InstanceId, Millis, Mover, Pool, PoolRef, Resources, State};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// How long a template may be in the making before its lease ends it, in seconds.
const MAKING_S: u64 = 3600;
/// The file of a template that says when it was made.
const MADE: &str = "template.json";
/// What ends the name of a template that is not whole yet.
const UNFINISHED: &str = ".new";

/// A template that is there.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its name.
    pub key: String,
    /// Memory, snapshot and disks, named as an instance's are.
    pub files: Files,
    /// When it was made: tells it from the one before of the same name.
    pub made_at: Millis,
}

/// What a template says of itself.
#[derive(Serialize, Deserialize)]
struct Made {
    made_at: Millis,
}

/// All that a template depends on.
#[derive(Serialize)]
struct Origin<'a> {
    pool: &'a PoolRef,
    revision: &'a str,
    resources: Resources,
    /// Sizes of the disks of its caches: what the guest sees of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cache_mib: Vec<u64>,
    prewarm: Option<&'a str>,
    hypervisor: String,
}

/// Whether the instance is booted to become a template.
pub(crate) fn is_mould(instance: &Instance) -> bool {
    instance.lease.as_ref().is_some_and(|lease| lease.purpose == Purpose::Template)
}

impl Node {
    /// The files of the template of this name.
    pub(crate) fn template_files(&self, key: &str) -> Files {
        Files { dir: self.parts.root.templates().join(key) }
    }

    fn template_key(
        &self,
        pool: &Pool,
        revision: &str,
        resources: Resources,
        caches: &[CacheDisk],
    ) -> String {
        let driver = self.parts.hypervisor.description();
        let origin = Origin {
            pool: &pool.reference,
            revision,
            resources,
            cache_mib: caches.iter().map(|disk| disk.cache.size_mib).collect(),
            prewarm: pool.prewarm.as_deref(),
            hypervisor: format!("{} {} {}", driver.name, driver.version, driver.accelerator),
        };
        // A plain struct of strings and numbers: it serialises.
        let text = serde_json::to_vec(&origin).unwrap_or_default();
        Sha256::digest(&text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The template of this name, if it is there.
    pub(crate) fn template(&self, key: String) -> Option<Template> {
        let files = self.template_files(&key);
        let text = fs::read(files.dir.join(MADE)).ok();
        let made = text.and_then(|text| serde_json::from_slice::<Made>(&text).ok());
        let made_at = made.map_or(0, |made| made.made_at);
        files.dir.is_dir().then_some(Template { key, files, made_at })
    }

    /// The name of the template of the pool's present revision and shape.
    pub(crate) fn key_of_pool(&self, pool: &Pool) -> Option<String> {
        let revision = pool.current_revision()?;
        Some(self.template_key(pool, &revision.digest, pool.resources, &pool.caches))
    }

    /// The template of the pool's present revision and shape, if it is there.
    pub(crate) fn template_of_pool(&self, pool: &Pool) -> Option<Template> {
        self.template(self.key_of_pool(pool)?)
    }

    /// The template that an instance would be a clone of, if that is there and the instance has
    /// nothing of its own yet.
    pub(crate) async fn template_for(&self, id: InstanceId) -> Result<Option<Template>> {
        self.records.read(|world| {
            let instance = world.by_id(id)?;
            if !instance.is_blank() || is_mould(instance) {
                return Ok(None);
            }
            let pool = world.pool(&instance.pool)?;
            Ok(self.template(self.template_key(
                pool,
                &instance.revision,
                instance.resources,
                &instance.caches,
            )))
        })
    }

    /// Before the reconciler brings up an instance that has nothing of its own: the template.
    /// Where there is no room to make one, the instance is booted.
    pub(crate) async fn ensure_template(self: &Arc<Self>, id: InstanceId) -> Result<()> {
        let pool = self.records.read(|world| {
            let instance = world.by_id(id).ok()?;
            let pool = world.pool(&instance.pool).ok()?;
            let current = pool.current_revision()?.digest == instance.revision;
            (current && instance.is_blank() && pool.shapes(instance))
                .then(|| pool.reference.clone())
        });
        let Some(pool) = pool else { return Ok(()) };
        match self.ensure_template_of(&pool).await {
            Err(problem) if matches!(&*problem.code, "quota_exceeded" | "subnet_full") => {
                tracing::info!(%pool, "no template: {problem}");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Makes the template of the pool's present revision and shape, if it is not there. Of many
    /// who want it, one makes it and the others wait.
    pub(crate) async fn ensure_template_of(self: &Arc<Self>, reference: &PoolRef) -> Result<()> {
        let mould = self.mould(reference);
        let _turn = mould.lock().await;
        let pool = self.records.read(|world| world.pool(reference).cloned())?;
        self.end_renewal(&pool)?;
        if pool.current_revision().is_none() || self.template_of_pool(&pool).is_some() {
            return Ok(());
        }
        let began = std::time::Instant::now();
        let before = self.key_of_pool(&pool).and_then(|key| self.to_be_renewed(&key));
        let instance = self.create_mould(reference, before.map(|it| it.reason)).await?;
        let key =
            self.template_key(&pool, &instance.revision, instance.resources, &instance.caches);
        let work = self.make_template(&pool, &instance, &key);
        let tenant = Some(&reference.tenant);
        let made = self.as_agent("template.create", tenant, reference, None, work).await;
        let gone = self.destroy(instance.id, &Mover::Force).await;
        made?;
        gone?;
        self.renewed(&key)?;
        let took_ms = began.elapsed().as_millis() as u64;
        tracing::info!(pool = %reference, template = key, took_ms, "made a template");
        Ok(())
    }

    /// An instance under a lease of ours: nobody else touches it, and an agent that starts ends it.
    /// Its first event says why it is made, where the template before was given up.
    async fn create_mould(&self, pool: &PoolRef, why: Option<String>) -> Result<Instance> {
        let (holder, purpose) = ("template".to_owned(), Purpose::Template);
        let lease = Wish { holder, purpose, lease_s: Some(MAKING_S) }.lease()?;
        let why = why.map(|why| format!("the template is made anew: {why}"));
        self.create_with(pool, |i| (i.lease, i.reason) = (Some(lease), why)).await
    }

    async fn make_template(
        self: &Arc<Self>,
        pool: &Pool,
        instance: &Instance,
        key: &str,
    ) -> Result<()> {
        let by = Mover::of(instance);
        self.bring(instance.id, State::Running, &by).await?;
        if let Some(command) = &pool.prewarm {
            self.prewarm(instance, command).await?;
        }
        self.bring(instance.id, State::Sleeping, &by).await?;
        let from = self.parts.root.files(instance.id);
        let to = self.template_files(key);
        blocking(move || publish(&from, &to)).await
    }

    /// Runs the pool's own command in the guest that will be the template.
    async fn prewarm(&self, instance: &Instance, command: &str) -> Result<()> {
        let slot = self.slot(instance.id);
        let channel = self.channel(&mut *slot.gate.lock().await).await?;
        let argv = ["sh", "-c", command].map(str::to_owned).to_vec();
        let run = async {
            let mut program = channel.exec(ExecRequest { argv, ..Default::default() }).await?;
            let ended = program.finish().await?;
            channel.sync().await?;
            Ok::<_, mvm_guest::Error>(ended)
        };
        let failed = |why: String| {
            let what = format!("the command that prewarms pool {} {why}", instance.pool);
            Problem::new(422, "prewarm_failed", what)
                .hint("change it: mvm pool update --prewarm COMMAND")
        };
        let Ok(ended) = tokio::time::timeout(PREWARM.limit(), run).await else {
            return Err(failed(format!("ran for over {} s", PREWARM.seconds)));
        };
        let (_, words, exit) = ended.or_problem()?;
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

    /// Removes the templates that no pool and no instance needs.
    pub(crate) async fn collect_templates(&self) {
        // What a change that is under way needs is not removed under it.
        let needed: BTreeSet<String> = self
            .records
            .alone(|world| {
                let instances = world.instances.values().filter_map(|i| i.template.clone());
                let blank = world.instances.values().filter(|i| i.dormant);
                let blank = blank.filter_map(|i| {
                    let pool = world.pools.get(&i.pool)?;
                    Some(self.template_key(pool, &i.revision, i.resources, &i.caches))
                });
                let pools = world.pools.values().filter_map(|pool| self.key_of_pool(pool));
                instances.chain(blank).chain(pools).collect()
            })
            .await;
        let names = self.template_names();
        self.sweep_notes(&names, &needed);
        for name in names {
            if needed.contains(&name) || name.ends_with(UNFINISHED) || name.ends_with(NOTE) {
                continue;
            }
            tracing::info!(template = name, "removing a template that nothing needs");
            if let Err(problem) = remove_dir(&self.parts.root.templates().join(name)) {
                tracing::warn!("{problem}");
            }
        }
    }

    /// At start: removes what an agent that was killed had not finished.
    pub(crate) fn sweep_templates(&self) -> Result<()> {
        for name in self.template_names().iter().filter(|name| name.ends_with(UNFINISHED)) {
            remove_dir(&self.parts.root.templates().join(name))?;
        }
        Ok(())
    }

    fn template_names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.parts.root.templates()) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// Moves memory, snapshot and disks of a sleeping machine into a template, whole or not at all.
fn publish(from: &Files, to: &Files) -> Result<()> {
    let name = to.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let work = Files { dir: to.dir.with_file_name(name + UNFINISHED) };
    remove_dir(&work.dir)?;
    make_dir(&work.dir, 0o700)?;
    let files = [
        (from.memory(), work.memory()),
        (from.snapshot(), work.snapshot()),
        (from.scratch(), work.scratch()),
        (from.data(), work.data()),
        (from.window(), work.window()),
    ];
    for (from, to) in files.iter().filter(|(from, _)| from.exists()) {
        fs::rename(from, to).map_err(|e| io(format!("move {}", from.display()), e))?;
        // Its clones map it; none may write to it.
        std::os::unix::fs::chown(to, Some(0), Some(0))
            .map_err(|e| io(format!("take over {}", to.display()), e))?;
    }
    let made = serde_json::to_vec(&Made { made_at: wall() }).unwrap_or_default();
    write_atomically(&work.dir.join(MADE), &made, 0o600)?;
    let sync = |path: &Path| fs::File::open(path).and_then(|dir| dir.sync_all());
    let parent = to.dir.parent().unwrap_or(Path::new("/"));
    sync(&work.dir)
        .and_then(|()| fs::rename(&work.dir, &to.dir))
        .and_then(|()| sync(parent))
        .map_err(|e| io(format!("publish {}", to.dir.display()), e))
}
