//! A pool: instances of one image and one shape inside a tenant.

use crate::cache::{self, CacheDisk};
use crate::cpu_model::CpuModel;
use crate::digest::Digest;
use crate::egress::Egress;
use crate::error::Fault;
use crate::instance::Instance;
use crate::mib::Mib;
use crate::name::PoolRef;
use crate::resources::Resources;
use crate::runtime_policy::RuntimePolicy;
use crate::state::Temperature;
use crate::timestamp::Timestamp;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many **unleased** instances of each temperature the pool keeps ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// vCPUs running.
    #[serde(default)]
    pub running: u32,
    /// vCPUs paused.
    #[serde(default)]
    pub warm: u32,
    /// Snapshot on disk.
    #[serde(default)]
    pub sleeping: u32,
}

impl Counts {
    /// Returns the sum of all three.
    pub fn total(&self) -> u64 {
        u64::from(self.running) + u64::from(self.warm) + u64::from(self.sleeping)
    }

    /// Returns how many have this temperature.
    pub fn of(&self, temperature: Temperature) -> u32 {
        match temperature {
            Temperature::Running => self.running,
            Temperature::Warm => self.warm,
            Temperature::Sleeping => self.sleeping,
        }
    }

    /// Returns how many have this temperature, to be changed.
    pub fn of_mut(&mut self, temperature: Temperature) -> &mut u32 {
        match temperature {
            Temperature::Running => &mut self.running,
            Temperature::Warm => &mut self.warm,
            Temperature::Sleeping => &mut self.sleeping,
        }
    }

    /// Returns the sums of both, temperature by temperature.
    pub fn plus(self, other: Counts) -> Counts {
        Counts {
            running: self.running.saturating_add(other.running),
            warm: self.warm.saturating_add(other.warm),
            sleeping: self.sleeping.saturating_add(other.sleeping),
        }
    }
}

/// What happens to an instance when a job's lease on it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recycle {
    /// Destroy it; nothing of the job survives. The pool creates a fresh one in its place.
    #[default]
    Reset,
    /// Put it to sleep, caches included.
    Sleep,
    /// Leave it running.
    Keep,
}

/// One build of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RevisionEntry {
    /// The build's number; 1 for the first build of the pool.
    pub number: u32,
    /// The image's digest.
    pub digest: Digest,
    /// When the image was built; ms since the Unix epoch.
    pub built_at: Timestamp,
}

/// The durable record of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// `tenant/pool`.
    pub reference: PoolRef,
    /// The flake as the user named it, made absolute where it is a path.
    pub flake_ref: String,
    /// The attribute of the flake.
    pub profile: String,
    /// Flake inputs to override at every build.
    #[serde(default)]
    pub override_inputs: BTreeMap<String, String>,
    /// Whether flake, profile or inputs have changed since the current revision was built.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
    /// Digest of the kernel to boot; the default kernel where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Digest>,
    /// The shape of new instances.
    pub resources: Resources,
    /// Its caches, with the disks that jobs get copies of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<CacheDisk>,
    /// The CPU model of new instances.
    #[serde(default, skip_serializing_if = "CpuModel::is_host")]
    pub cpu_model: CpuModel,
    /// A command that the template's guest runs before it is snapshotted, by its `sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prewarm: Option<String>,
    /// What becomes of instances that nobody uses.
    #[serde(default)]
    pub runtime_policy: RuntimePolicy,
    /// What of the outside its instances may reach.
    #[serde(default)]
    pub egress: Egress,
    /// What to keep ready; `None` until the pool is scaled: then mvm leaves it alone.
    #[serde(default)]
    pub desired: Option<Counts>,
    /// What becomes of an instance after a job.
    #[serde(default)]
    pub recycle: Recycle,
    /// All builds, oldest first.
    #[serde(default)]
    pub revisions: Vec<RevisionEntry>,
    /// The number of the revision in use.
    #[serde(default)]
    pub current: Option<u32>,
    /// When the pool was made.
    pub created_at: Timestamp,
}

impl Pool {
    /// Returns the most that one instance can use on disk, in MiB: its memory file, its disks and
    /// its caches.
    pub fn disk_mib(&self) -> Mib {
        self.resources.disk_mib() + cache::disk_mib(&self.caches)
    }

    /// Returns whether an instance has the shape of new ones.
    pub fn shapes(&self, instance: &Instance) -> bool {
        instance.resources == self.resources
            && instance.cpu_model == self.cpu_model
            && cache::same(&instance.caches, &self.caches)
    }

    /// Returns the revision that new instances boot from; `None` before the first build.
    pub fn current_revision(&self) -> Option<&RevisionEntry> {
        self.revisions.iter().find(|revision| Some(revision.number) == self.current)
    }

    /// Records a build of `digest`, makes it current and returns it. A digest that is known already
    /// keeps its number.
    pub fn record_build(&mut self, digest: Digest, now: Timestamp) -> RevisionEntry {
        let known = self.revisions.iter().find(|revision| revision.digest == digest).cloned();
        let entry = known.unwrap_or_else(|| {
            let number =
                self.revisions.iter().map(|revision| revision.number).max().unwrap_or(0) + 1;
            let entry = RevisionEntry { number, digest, built_at: now };
            self.revisions.push(entry.clone());
            entry
        });
        self.current = Some(entry.number);
        self.stale = false;
        entry
    }

    /// Makes revision `to` current, or where none is named the one before the current, and returns
    /// it. Errors: `not_found`.
    pub fn rollback(&mut self, to: Option<u32>) -> Result<RevisionEntry, Fault> {
        let wanted = match to {
            Some(number) => self.revisions.iter().find(|revision| revision.number == number),
            None => self
                .revisions
                .iter()
                .filter(|revision| self.current.is_none_or(|current| revision.number < current))
                .max_by_key(|revision| revision.number),
        };
        let Some(entry) = wanted.cloned() else {
            let have: Vec<_> = self.revisions.iter().map(|r| r.number.to_string()).collect();
            let message = match to {
                Some(number) => format!("pool {} has no revision {number}", self.reference),
                None => format!("pool {} has no earlier revision", self.reference),
            };
            return Err(Fault::new(Code::NotFound, message)
                .hint(format!("revisions of this pool: {}", have.join(", "))));
        };
        self.current = Some(entry.number);
        Ok(entry)
    }
}
