//! The errors of tenants, pools, and their images.

use ipnet::Ipv4Net;
use mvm_model::{Code, JobId, Name, PoolRef};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why something was not done with a tenant, a pool, or an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Another tenant has the name.
    #[error("tenant {0} exists already, and differs")]
    TenantExists(Name),
    /// Another pool has the name.
    #[error("pool {0} exists already, and differs")]
    PoolExists(PoolRef),
    /// The subnet is not free on this host.
    #[error("{subnet} overlaps with {by}")]
    SubnetTaken {
        /// The subnet.
        subnet: Ipv4Net,
        /// What has it.
        by: Overlap,
    },
    /// The tenant cannot be destroyed before its pools.
    #[error("tenant {tenant} still has pools: {}", list(pools))]
    TenantHasPools {
        /// The tenant.
        tenant: Name,
        /// Its pools.
        pools: Vec<PoolRef>,
    },
    /// Somebody made an instance of a pool that is being destroyed.
    #[error("pool {0} got a new instance while it was being destroyed")]
    GotInstance(PoolRef),
    /// Somebody submitted a job to a pool that is being destroyed.
    #[error("pool {pool} got job {job} while it was destroyed")]
    GotJob {
        /// The pool.
        pool: PoolRef,
        /// The job.
        job: JobId,
    },
    /// Somebody put a pool that is being destroyed behind a port.
    #[error("pool {pool} got a front on {listen} while it was destroyed")]
    GotFront {
        /// The pool.
        pool: PoolRef,
        /// The front's address.
        listen: SocketAddr,
    },
    /// The pool has no image to run.
    #[error("pool {0} has no image yet")]
    NotBuilt(PoolRef),
    /// Somebody canceled the build.
    #[error("somebody has canceled the build")]
    BuildCanceled(PoolRef),
    /// The pool's command that is run before its template is made failed.
    #[error("the command that prewarms pool {pool} {why}")]
    PrewarmFailed {
        /// The pool.
        pool: PoolRef,
        /// How the command ended.
        why: String,
    },
    /// The pool's cache was replaced by one of another size.
    #[error("cache {name} of pool {pool} has another size now")]
    CacheResized {
        /// The pool.
        pool: PoolRef,
        /// The cache.
        name: Name,
    },
    /// A pool needs the kernel.
    #[error("kernel {kernel} is what pool {pool} is built with")]
    KernelInUse {
        /// The kernel's name.
        kernel: String,
        /// The pool.
        pool: PoolRef,
    },
    /// No node is named that has the image.
    #[error("no source is named")]
    NoSource,
}

/// What has a subnet that a tenant wants.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Overlap {
    /// The host.
    #[error("{0}")]
    Host(String),
    /// A tenant of another state directory on this host.
    #[error("{what}, which another mvm root on this host holds: {}", root.display())]
    Root {
        /// The tenant's network and bridge.
        what: String,
        /// The state directory.
        root: PathBuf,
    },
    /// A tenant of a state directory that was deleted under its agent.
    #[error(
        "{what}, of a state directory that is gone: {}; its agent lives (pid {pid})",
        root.display()
    )]
    Agent {
        /// The tenant's network and bridge.
        what: String,
        /// Where the state directory was.
        root: PathBuf,
        /// The agent's process.
        pid: u32,
    },
    /// A tenant of a state directory that is gone, as is its agent.
    #[error("{what}, an orphan: its state directory {} is gone", root.display())]
    Orphan {
        /// The tenant's network and bridge.
        what: String,
        /// Where the state directory was.
        root: PathBuf,
    },
    /// A tenant of a state directory on this host that does not say where that is.
    #[error("{what}, which another mvm root on this host holds (it does not say which)")]
    Unknown {
        /// The tenant's network and bridge.
        what: String,
    },
}

fn list(pools: &[PoolRef]) -> String {
    pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl PoolError {
    /// Returns the stable code of the error.
    pub fn code(&self) -> Code {
        match self {
            Self::TenantExists(_) | Self::PoolExists(_) => Code::Exists,
            Self::SubnetTaken { .. } => Code::SubnetTaken,
            Self::TenantHasPools { .. }
            | Self::GotInstance(_)
            | Self::GotJob { .. }
            | Self::GotFront { .. }
            | Self::KernelInUse { .. } => Code::InUse,
            Self::NotBuilt(_) => Code::NotBuilt,
            Self::BuildCanceled(_) => Code::Interrupted,
            Self::PrewarmFailed { .. } => Code::PrewarmFailed,
            Self::CacheResized { .. } => Code::Conflict,
            Self::NoSource => Code::InvalidValue,
        }
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::TenantExists(_) => {
                "change it with `mvm tenant update`, or destroy it first".into()
            }
            Self::PoolExists(_) => "change it with `mvm pool update`, or destroy it first".into(),
            Self::SubnetTaken { by, .. } => by.hint(),
            Self::TenantHasPools { .. } => "destroy them first: mvm pool destroy".into(),
            Self::GotInstance(_) | Self::GotJob { .. } | Self::GotFront { .. } => {
                "try again".into()
            }
            Self::NotBuilt(pool) => format!("build it: mvm pool build {pool}").into(),
            Self::BuildCanceled(pool) => format!("build it again: mvm pool build {pool}").into(),
            Self::PrewarmFailed { .. } => "change it: mvm pool update --prewarm COMMAND".into(),
            Self::CacheResized { .. } => "".into(),
            Self::KernelInUse { .. } => {
                "destroy the pool first, or import the kernel that takes its place".into()
            }
            Self::NoSource => "name nodes that have the image, as HOST:PORT".into(),
        }
    }
}

impl Overlap {
    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::Host(_) => "choose a subnet that this host does not use".into(),
            Self::Root { root, .. } => {
                let at = root.display();
                format!("choose another subnet, or look there: mvm --root {at} tenant list").into()
            }
            Self::Agent { pid, .. } => format!(
                "agent pid {pid} has its lock open: end it first (kill {pid}), then see what is left: \
                 mvm net clean"
            )
            .into(),
            Self::Orphan { .. } => {
                "see what else is left of it, and remove it: mvm net clean".into()
            }
            Self::Unknown { .. } => {
                "choose another subnet; a newer mvm agent there would say where it is".into()
            }
        }
    }
}
