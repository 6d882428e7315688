//! Quotas, and the one place where they are checked.

use crate::cache::{self, CacheDisk};
use crate::error::Fault;
use crate::instance::Instance;
use crate::mib::Mib;
use crate::name::Name;
use crate::pool::Pool;
use crate::resources::Resources;
use crate::state::State;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The limits on what a tenant uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// The most vCPUs of running and warm instances together, all of which could run.
    pub max_vcpus: u64,
    /// The most memory of running and warm instances together, in MiB.
    pub max_mem_mib: Mib,
    /// The most running instances, leased or not.
    pub max_running: u64,
    /// The most warm instances.
    pub max_warm: u64,
    /// The most pools.
    pub max_pools: u64,
    /// The most instances of one pool, in any state.
    pub max_instances_per_pool: u64,
    /// The most disk space, in GiB, that all instances may grow to (memory, scratch and data) and
    /// that jobs' artifacts take.
    pub max_disk_gib: u64,
    /// The most jobs that wait in the queue of one pool.
    pub max_queued_jobs: u64,
}

impl Default for Quotas {
    /// Returns the specification's numbers.
    fn default() -> Self {
        Quotas {
            max_vcpus: 64,
            max_mem_mib: Mib(131_072),
            max_running: 16,
            max_warm: 4,
            max_pools: 2,
            max_instances_per_pool: 32,
            max_disk_gib: 200,
            max_queued_jobs: 1000,
        }
    }
}

/// A tenant's usage, counted by the state that each instance is in or on its way to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Number of vCPUs of running and warm instances.
    pub vcpus: u64,
    /// Memory of running and warm instances, in MiB.
    pub mem_mib: Mib,
    /// Number of running instances.
    pub running: u64,
    /// Number of warm instances.
    pub warm: u64,
    /// Number of pools.
    pub pools: u64,
    /// Number of instances in any state.
    pub instances: u64,
    /// Disk space that all instances may grow to and that jobs' artifacts take, in MiB.
    pub disk_mib: Mib,
}

impl Usage {
    /// Counts `instances` of one tenant that has `pools` pools.
    pub fn count<'a>(pools: u64, instances: impl IntoIterator<Item = &'a Instance>) -> Usage {
        let mut usage = Usage { pools, ..Usage::default() };
        for instance in instances {
            usage.instances += 1;
            usage.disk_mib += instance.disk_mib();
            usage.add(instance.heading(), &instance.resources);
        }
        usage
    }

    fn add(&mut self, state: State, resources: &Resources) {
        if state.has_process() {
            self.vcpus += u64::from(resources.vcpus);
            self.mem_mib += resources.mem_mib;
        }
        match state {
            State::Running => self.running += 1,
            State::Warm => self.warm += 1,
            _ => {}
        }
    }

    fn remove(&mut self, state: State, resources: &Resources) {
        if state.has_process() {
            self.vcpus = self.vcpus.saturating_sub(u64::from(resources.vcpus));
            self.mem_mib = self.mem_mib.saturating_sub(resources.mem_mib);
        }
        match state {
            State::Running => self.running = self.running.saturating_sub(1),
            State::Warm => self.warm = self.warm.saturating_sub(1),
            _ => {}
        }
    }

    /// Returns the usage after `instance` has gone from where it heads to `to`.
    pub fn after(mut self, instance: &Instance, to: State) -> Usage {
        self.remove(instance.heading(), &instance.resources);
        self.add(to, &instance.resources);
        self
    }
}

fn within(
    tenant: &Name,
    quota: &'static str,
    limit: u64,
    in_use: u64,
    wanted: u64,
    unit: &str,
) -> Result<(), Fault> {
    // Falling below a limit that was lowered is always allowed; only growth is checked.
    if wanted <= limit || wanted <= in_use {
        return Ok(());
    }
    Err(exceeded(tenant, quota, limit, in_use, wanted - in_use, unit))
}

pub(crate) fn exceeded(
    tenant: &Name,
    quota: &str,
    limit: u64,
    in_use: u64,
    asked: u64,
    unit: &str,
) -> Fault {
    Fault::new(
        Code::QuotaExceeded,
        format!(
            "quota {quota} of tenant {tenant}: limit {limit}{unit}, in use {in_use}{unit}, asked {asked}{unit}"
        ),
    )
    .hint(format!(
        "free some of it, or raise the quota: mvm tenant update {tenant} --{}",
        quota.replace('_', "-").replace("-mib", "").replace("-gib", "")
    ))
}

/// Checks whether an instance of `tenant` may go to state `to`. `usage` is the tenant's before
/// that. Error: `quota_exceeded`.
pub fn admit_state(
    tenant: &Name,
    quotas: &Quotas,
    usage: &Usage,
    instance: &Instance,
    to: State,
) -> Result<(), Fault> {
    let after = usage.after(instance, to);
    within(tenant, "max_vcpus", quotas.max_vcpus, usage.vcpus, after.vcpus, "")?;
    within(tenant, "max_mem_mib", quotas.max_mem_mib.0, usage.mem_mib.0, after.mem_mib.0, " MiB")?;
    within(tenant, "max_running", quotas.max_running, usage.running, after.running, "")?;
    within(tenant, "max_warm", quotas.max_warm, usage.warm, after.warm, "")
}

/// Checks whether `pool` may get one more instance. `in_pool` counts the pool's instances before
/// that. Error: `quota_exceeded`.
pub fn admit_instance(
    tenant: &Name,
    quotas: &Quotas,
    usage: &Usage,
    pool: &Pool,
    in_pool: u64,
) -> Result<(), Fault> {
    let per_pool = quotas.max_instances_per_pool;
    within(tenant, "max_instances_per_pool", per_pool, in_pool, in_pool + 1, "")?;
    // Compared in MiB: in GiB, growth within the last one would go unnoticed.
    let (limit, asked) = (quotas.max_disk_gib, pool.disk_mib());
    if usage.disk_mib.saturating_add(asked) <= Mib::from_gib(limit) {
        return Ok(());
    }
    let (in_use, asked) = (usage.disk_mib.gib_rounded_up(), asked.gib_rounded_up());
    Err(exceeded(tenant, "max_disk_gib", limit, in_use, asked, " GiB"))
}

/// Checks whether the tenant may get one more pool. Error: `quota_exceeded`.
pub fn admit_pool(tenant: &Name, quotas: &Quotas, usage: &Usage) -> Result<(), Fault> {
    within(tenant, "max_pools", quotas.max_pools, usage.pools, usage.pools + 1, "")
}

/// Checks whether one machine of this shape can ever run within the quotas, so that no pool is made
/// whose jobs would wait for ever. `caches` is the size of its cache disks. Error:
/// `quota_exceeded`.
pub fn admit_machine(
    tenant: &Name,
    quotas: &Quotas,
    resources: &Resources,
    caches: Mib,
) -> Result<(), Fault> {
    let disk_gib = (resources.disk_mib() + caches).gib_rounded_up();
    let (vcpus, mem_mib) = (u64::from(resources.vcpus), resources.mem_mib.0);
    let checks = [
        ("max_vcpus", quotas.max_vcpus, vcpus, " vCPUs", "vcpus", "--cpus", "--max-vcpus"),
        (
            "max_mem_mib",
            quotas.max_mem_mib.0,
            mem_mib,
            " MiB of memory",
            "mem_mib",
            "--mem",
            "--max-mem",
        ),
        (
            "max_disk_gib",
            quotas.max_disk_gib,
            disk_gib,
            " GiB of disk",
            "data_disk_mib",
            "--data-disk",
            "--max-disk",
        ),
    ];
    for (quota, limit, asked, unit, path, less, more) in checks {
        if asked > limit {
            let message = format!(
                "a machine with {asked}{unit} can never run: quota {quota} of tenant {tenant} is {limit}"
            );
            let hint = format!(
                "give the pool's machines less ({less}), or raise the quota: mvm tenant update {tenant} {more}"
            );
            return Err(Fault::new(Code::QuotaExceeded, message).at(path).hint(hint));
        }
    }
    Ok(())
}

/// Checks whether the pool may be scaled to `counts`, as far as the quotas alone can tell. Refuses
/// what could never be reached, so that `pool scale` fails at once instead of waiting in silence.
/// Error: `quota_exceeded`.
pub fn admit_counts(
    tenant: &Name,
    quotas: &Quotas,
    resources: &Resources,
    caches: &[CacheDisk],
    counts: &crate::pool::Counts,
) -> Result<(), Fault> {
    let disk_mib = resources.disk_mib() + cache::disk_mib(caches);
    let (running, warm) = (u64::from(counts.running), u64::from(counts.warm));
    let hot = running + warm;
    let checks = [
        ("max_running", quotas.max_running, running, ""),
        ("max_warm", quotas.max_warm, warm, ""),
        ("max_instances_per_pool", quotas.max_instances_per_pool, counts.total(), ""),
        ("max_vcpus", quotas.max_vcpus, hot * u64::from(resources.vcpus), ""),
        ("max_mem_mib", quotas.max_mem_mib.0, (hot * resources.mem_mib).0, " MiB"),
        ("max_disk_gib", quotas.max_disk_gib, (counts.total() * disk_mib).gib_rounded_up(), " GiB"),
    ];
    checks
        .into_iter()
        .try_for_each(|(quota, limit, wanted, unit)| within(tenant, quota, limit, 0, wanted, unit))
}
