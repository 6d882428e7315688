//! Templates: the golden snapshot of a pool's revision, booted once and then cloned.
//!
//! A template is a directory below `templates/`, published and withdrawn atomically by a rename and
//! never changed: memory, device state and disks of a machine that is ready and has no identity. Its
//! name is the digest of everything that it depends on, so that any change makes another template.

use super::metrics::{NOTE, Renewals};
use crate::Result;
use crate::accelerator::AcceleratorChoice;
use crate::blocking::{blocking, paths_in};
use crate::error::io;
use crate::locks::locked;
use crate::records::Records;
use crate::state_dir::{Files, StateDir, make_dir, remove_dir, remove_file, write_atomically};
use crate::wake::Wake;
use mvm_hypervisor::{Description, Hypervisor};
use mvm_model::accelerator::Standing;
use mvm_model::lease::Purpose;
use mvm_model::{
    CacheDisk, Digest, Instance, InstanceId, Mib, Pool, PoolRef, Resources, Timestamp,
};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as Lock};
use std::time::SystemTime;

/// The file of a template that holds the time when the template was made.
const MADE: &str = "template.json";
/// The suffix of an unfinished template's name.
const UNFINISHED: &str = ".new";
/// The suffix of the name of a template that is being removed.
const WITHDRAWN: &str = ".gone";

/// A template that exists.
#[derive(Clone, Debug)]
pub struct Template {
    /// The template's name.
    pub key: String,
    /// The memory, snapshot and disks, named as an instance's are.
    pub files: Files,
    /// When the template was made, in ms since the Unix epoch: identifies it among templates of the
    /// same name.
    pub made_at: Timestamp,
}

/// The content of a template's own file.
#[derive(Serialize, Deserialize)]
struct Made {
    made_at: Timestamp,
    /// What it has in common with the templates of other hypervisors and CPUs, see
    /// [`Templates::kind_of`]; absent in templates of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
}

/// What decides which templates are needed and which are there. While it stays the same, a pass over
/// them would find what the last one found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    /// The number of commits of records so far.
    generation: u64,
    hypervisor: Description,
    /// When an entry of the directory was last made, renamed or removed; absent if there is none.
    changed_at: Option<SystemTime>,
}

impl Mark {
    /// Returns the present mark. It is taken before the templates are looked at, so that what changes
    /// meanwhile is found by the next pass.
    fn of(templates: &Templates) -> Mark {
        let dir = fs::metadata(templates.state_dir.templates());
        Mark {
            generation: templates.records.generation(),
            hypervisor: templates.hypervisor.description(),
            changed_at: dir.and_then(|dir| dir.modified()).ok(),
        }
    }
}

/// What the last passes found.
#[derive(Default)]
struct Passes {
    /// What was in force when nothing was left to collect.
    collected: Option<Mark>,
    superseded: Option<(Mark, BTreeSet<PoolRef>)>,
}

/// Everything that a template depends on.
#[derive(Serialize)]
struct Origin<'a> {
    pool: &'a PoolRef,
    revision: Digest,
    resources: Resources,
    /// The sizes of the cache disks, which is all that the guest sees of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cache_mib: Vec<Mib>,
    prewarm: Option<&'a str>,
    /// The named CPU model; absent where machines see the host's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_model: Option<&'a str>,
    hypervisor: String,
}

impl<'a> Origin<'a> {
    /// Returns the origin of a template of the pool's present shape, without its hypervisor.
    fn of(pool: &'a Pool, revision: Digest) -> Origin<'a> {
        Origin {
            pool: &pool.reference,
            revision,
            resources: pool.resources,
            cache_mib: sizes(&pool.caches),
            prewarm: pool.prewarm.as_deref(),
            cpu_model: pool.cpu_model.named(),
            hypervisor: String::new(),
        }
    }

    /// Returns the origin of the template that an instance of the pool is cloned from: the pool may
    /// have another shape by now.
    fn of_instance(pool: &'a Pool, instance: &'a Instance) -> Origin<'a> {
        Origin {
            resources: instance.resources,
            cache_mib: sizes(&instance.caches),
            cpu_model: instance.cpu_model.named(),
            ..Origin::of(pool, instance.revision)
        }
    }

    fn digest(&self) -> String {
        // A plain struct of strings and numbers, which can always be serialised.
        let text = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(&text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Returns the sizes of cache disks.
fn sizes(caches: &[CacheDisk]) -> Vec<Mib> {
    caches.iter().map(|disk| disk.cache.size_mib).collect()
}

/// Returns whether the instance is booted to become a template.
pub(crate) fn is_template_builder(instance: &Instance) -> bool {
    instance.lease.as_ref().is_some_and(|lease| lease.purpose == Purpose::Template)
}

/// Finds templates, and removes those that nothing needs.
/// [`TemplateMaker`](crate::template_maker::TemplateMaker) makes them.
pub(crate) struct Templates {
    pub(super) state_dir: StateDir,
    hypervisor: Arc<dyn Hypervisor>,
    accelerator: Arc<AcceleratorChoice>,
    pub(super) records: Arc<Records>,
    pub(super) renewals: Renewals,
    passes: Lock<Passes>,
    pub(super) wake: Wake,
}

impl Templates {
    /// Makes the service for templates in this state directory and of this driver.
    pub(crate) fn new(
        state_dir: StateDir,
        hypervisor: Arc<dyn Hypervisor>,
        accelerator: Arc<AcceleratorChoice>,
        records: Arc<Records>,
        wake: Wake,
    ) -> Templates {
        let (renewals, passes) = (Renewals::default(), Lock::default());
        Templates { state_dir, hypervisor, accelerator, records, renewals, passes, wake }
    }

    /// Registers the metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.renewals.register(registry);
    }

    /// Returns the files of the template `key`.
    pub(crate) fn files(&self, key: &str) -> Files {
        Files { dir: self.state_dir.templates().join(key) }
    }

    /// Returns the name of the template that an instance of this pool is cloned from.
    pub(crate) fn key_of_instance(&self, pool: &Pool, instance: &Instance) -> String {
        self.key(Origin::of_instance(pool, instance))
    }

    fn key(&self, origin: Origin<'_>) -> String {
        let driver = self.hypervisor.description();
        // Machines with a named model are the same on every CPU that can offer it.
        let cpu = if origin.cpu_model.is_none() { driver.cpu } else { String::new() };
        let hypervisor = [driver.name, driver.version, driver.accelerator, cpu].join(" ");
        // Where no guest sees the CPU, the name is as it was before the CPU counted.
        Origin { hypervisor: hypervisor.trim_end().to_owned(), ..origin }.digest()
    }

    /// Returns what the templates of a pool's present revision and shape have in common, whatever
    /// hypervisor and CPU they were made with.
    pub(crate) fn kind_of(&self, pool: &Pool) -> Option<String> {
        let revision = pool.current_revision()?.digest;
        Some(Origin::of(pool, revision).digest())
    }

    /// Returns the template `key`, if it exists.
    pub(crate) fn find(&self, key: String) -> Option<Template> {
        let files = self.files(&key);
        let made_at = made_at(&files);
        files.dir.is_dir().then_some(Template { key, files, made_at })
    }

    /// Returns the name of the template of the pool's present revision and shape.
    pub(crate) fn key_of_pool(&self, pool: &Pool) -> Option<String> {
        let revision = pool.current_revision()?;
        Some(self.key(Origin::of(pool, revision.digest)))
    }

    /// Returns the template of the pool's present revision and shape, if it exists.
    pub(crate) fn of_pool(&self, pool: &Pool) -> Option<Template> {
        self.find(self.key_of_pool(pool)?)
    }

    /// Waits until it is settled which accelerator new machines get: templates differ by it.
    pub(crate) async fn settled(&self) {
        self.accelerator.settled().await;
    }

    /// Returns the template that an instance would be cloned from, if it exists and the instance
    /// has nothing of its own yet. Waits until it is settled which templates fit.
    pub(crate) async fn for_instance(&self, id: InstanceId) -> Result<Option<Template>> {
        self.settled().await;
        self.records.read(|records| {
            let instance = records.by_id(id)?;
            if !instance.is_blank() || is_template_builder(instance) {
                return Ok(None);
            }
            let pool = records.pool(&instance.pool)?;
            Ok(self.find(self.key_of_instance(pool, instance)))
        })
    }

    /// Returns the pools that lack a template, by the kind that they need.
    fn awaited(&self) -> BTreeMap<String, PoolRef> {
        self.records.read(|records| {
            let lacking = records.pools.values().filter(|pool| self.of_pool(pool).is_none());
            lacking.filter_map(|pool| Some((self.kind_of(pool)?, pool.reference.clone()))).collect()
        })
    }

    /// Returns the pools whose template is to be made anew because hypervisor, accelerator or CPU have
    /// changed: there is one of the same kind, and none that fits.
    pub(crate) async fn superseded(&self) -> BTreeSet<PoolRef> {
        let mark = Mark::of(self);
        if let Some((of, found)) = &locked(&self.passes).superseded
            && *of == mark
        {
            return found.clone();
        }
        let awaited = self.awaited();
        let found: BTreeSet<PoolRef> = match awaited.is_empty() {
            true => BTreeSet::new(),
            false => {
                let names = self.names().await.into_iter().filter(|name| is_published(name));
                let kinds = names.filter_map(|name| made(&self.files(&name))?.kind);
                kinds.filter_map(|kind| awaited.get(&kind).cloned()).collect()
            }
        };
        locked(&self.passes).superseded = Some((mark, found.clone()));
        found
    }

    /// Removes the templates that no pool and no instance needs. One that is superseded is needed
    /// until its successor exists. Returns false if nothing has changed since nothing was left to
    /// collect, and so nothing was looked for.
    pub(crate) async fn collect(&self) -> bool {
        if self.accelerator.verdict().standing == Standing::Trying {
            // Not known yet which templates fit.
            return false;
        }
        let mark = Mark::of(self);
        if locked(&self.passes).collected.as_ref() == Some(&mark) {
            return false;
        }
        // Waits for a change that is under way, so that no template is removed that the change
        // needs.
        let needed: BTreeSet<String> = self
            .records
            .alone(|records| {
                let instances = records.instances.values().filter_map(|i| i.template.clone());
                let blank = records.instances.values().filter(|i| i.dormant);
                let blank = blank.filter_map(|i| {
                    let pool = records.pools.get(&i.pool)?;
                    Some(self.key_of_instance(pool, i))
                });
                let pools = records.pools.values().filter_map(|pool| self.key_of_pool(pool));
                instances.chain(blank).chain(pools).collect()
            })
            .await;
        let awaited = self.awaited();
        let names = self.names().await;
        self.sweep_notes(&names, &needed);
        let mut is_done = true;
        for name in names {
            if needed.contains(&name) || !is_published(&name) {
                continue;
            }
            let kind = made(&self.files(&name)).and_then(|made| made.kind);
            if kind.is_some_and(|kind| awaited.contains_key(&kind)) {
                continue;
            }
            tracing::info!(template = name, "removing a template that nothing needs");
            let dir = self.files(&name).dir;
            if let Err(error) = blocking(move || remove_dir(&withdraw(&dir)?)).await {
                tracing::warn!("{error}");
                is_done = false;
            }
        }
        locked(&self.passes).collected = is_done.then_some(mark);
        true
    }

    /// Removes at start the templates and notes that a killed agent had not finished, and the
    /// templates that it had not wholly removed.
    pub(crate) async fn sweep(&self) -> Result<()> {
        let parts = |name: &&String| !is_published(name) && !name.ends_with(NOTE);
        for name in self.names().await.iter().filter(parts) {
            let path = self.files(name).dir;
            blocking(move || if path.is_dir() { remove_dir(&path) } else { remove_file(&path) })
                .await?;
        }
        Ok(())
    }

    /// Returns the names in the directory of templates.
    async fn names(&self) -> Vec<String> {
        let dir = self.state_dir.templates();
        let paths = blocking(move || Ok(paths_in(&dir))).await.unwrap_or_default();
        let names = paths.iter().filter_map(|path| path.file_name()?.to_str());
        names.map(str::to_owned).collect()
    }
}

/// Returns whether a name in the directory of templates is a template's, and not that of a part, a
/// note or a temporary file.
fn is_published(name: &str) -> bool {
    !name.contains('.')
}

fn made(files: &Files) -> Option<Made> {
    serde_json::from_slice(&fs::read(files.dir.join(MADE)).ok()?).ok()
}

/// Returns when the template in this directory was made, in ms since the Unix epoch; 0 if it does not
/// say.
pub(super) fn made_at(files: &Files) -> Timestamp {
    made(files).map_or(Timestamp::EPOCH, |made| made.made_at)
}

/// Takes a template away from those who look for one, in one step, and returns the directory that is
/// left to be removed. Without this step a template that is half removed would count as one.
pub(super) fn withdraw(dir: &Path) -> Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // A former template of this name may still be on its way out.
    let withdrawn = format!("{name}.{}{WITHDRAWN}", crate::random::hex_digits(4)?);
    let to = dir.with_file_name(withdrawn);
    match fs::rename(dir, &to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("withdraw {}", dir.display()), e))
        }
        _ => Ok(to),
    }
}

/// Moves memory, snapshot and disks of a sleeping machine into a template of this kind that is made
/// at this wall-clock time, atomically.
pub(crate) fn publish(
    from: &Files,
    to: &Files,
    made_at: Timestamp,
    kind: Option<String>,
) -> Result<()> {
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
        // The template's clones map these files, so that none may write to them.
        std::os::unix::fs::chown(to, Some(0), Some(0))
            .map_err(|e| io(format!("take over {}", to.display()), e))?;
    }
    let made = serde_json::to_vec(&Made { made_at, kind }).unwrap_or_default();
    write_atomically(&work.dir.join(MADE), &made, 0o600)?;
    let sync = |path: &Path| fs::File::open(path).and_then(|dir| dir.sync_all());
    let parent = to.dir.parent().unwrap_or(Path::new("/"));
    sync(&work.dir)
        .and_then(|()| fs::rename(&work.dir, &to.dir))
        .and_then(|()| sync(parent))
        .map_err(|e| io(format!("publish {}", to.dir.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_template_with_the_hosts_cpu_is_what_it_always_was() {
        let pool = "ci/small".parse().expect("a pool");
        let origin = |cpu_model| Origin {
            pool: &pool,
            revision: Digest::of("r1"),
            resources: Resources::default(),
            cache_mib: Vec::new(),
            prewarm: None,
            cpu_model,
            hypervisor: "qemu 7.2 kvm abc".to_owned(),
        };
        let text = serde_json::to_string(&origin(None)).expect("JSON");
        assert!(text.ends_with(r#","prewarm":null,"hypervisor":"qemu 7.2 kvm abc"}"#), "{text}");
        assert_eq!(origin(None).digest(), "a634cf8b55738c341a35232378bf168d");
        assert_ne!(origin(Some("EPYC")).digest(), origin(None).digest());
        assert_ne!(origin(Some("EPYC")).digest(), origin(Some("Nehalem")).digest());
    }
}
