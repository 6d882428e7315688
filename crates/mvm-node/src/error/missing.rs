//! What a request names and the node does not have.

use mvm_model::{InstanceId, InstanceRef, JobId, Name, PoolRef};
use std::borrow::Cow;
use std::net::SocketAddr;

/// A thing that does not exist, in the words that follow "there is no".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    /// A tenant.
    #[error("tenant {0}")]
    Tenant(Name),
    /// A tenant that was removed as soon as it was made.
    #[error("tenant {0} any more")]
    NewTenant(Name),
    /// A pool.
    #[error("pool {0}")]
    Pool(PoolRef),
    /// A cache of a pool.
    #[error("cache {name} of pool {pool}")]
    Cache {
        /// The pool.
        pool: PoolRef,
        /// The cache's name.
        name: Name,
    },
    /// A build of a pool's image.
    #[error("build of pool {0} under way")]
    Build(PoolRef),
    /// An instance.
    #[error("instance {0}")]
    Instance(InstanceRef),
    /// An instance that was destroyed meanwhile.
    #[error("instance {0} any more")]
    InstanceId(InstanceId),
    /// A lease.
    #[error("lease {0}")]
    Lease(String),
    /// A job.
    #[error("job {0}")]
    Job(JobId),
    /// A file that a job has left.
    #[error("artifact {index} of job {job}")]
    Artifact {
        /// The job.
        job: JobId,
        /// The artifact's number among those of the job.
        index: usize,
    },
    /// A front of a pool.
    #[error("front of {pool} on {listen}")]
    Front {
        /// The pool.
        pool: PoolRef,
        /// The address that was named.
        listen: SocketAddr,
    },
    /// A front that was removed while a connection waited.
    #[error("front on {0} any more")]
    FrontAt(SocketAddr),
    /// A front that was removed as soon as it was made.
    #[error("such front any more")]
    NewFront,
    /// A file of an image.
    #[error("part {part:?} of image {digest}")]
    Part {
        /// The image's digest.
        digest: String,
        /// The file's name.
        part: String,
    },
    /// An audit log.
    #[error("audit log {0}")]
    AuditLog(String),
}

impl Missing {
    /// Returns how to see what there is, or nothing.
    pub fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::Tenant(_) => "see the tenants with `mvm tenant list`".into(),
            Self::NewTenant(_) => "".into(),
            Self::Pool(_) => "see the pools with `mvm pool list`".into(),
            Self::Cache { .. } => "see its caches with `mvm pool info`".into(),
            Self::Build(pool) => format!("see what it is at: mvm pool info {pool}").into(),
            Self::Instance(_) => "see the instances with `mvm instance list`".into(),
            Self::InstanceId(_) => "it was destroyed in the meantime".into(),
            Self::Lease(_) => "see the leases with `mvm lease list`".into(),
            Self::Job(_) => "see the jobs with `mvm job list`".into(),
            Self::Artifact { job, .. } => format!("see what it left: mvm job info {job}").into(),
            Self::Front { .. } => "see them with `mvm pool expose --list`".into(),
            Self::FrontAt(_) => "see `mvm pool expose --list`".into(),
            Self::NewFront => "try again".into(),
            Self::Part { .. } => "see its manifest for its parts".into(),
            Self::AuditLog(_) => "see them with `mvm audit verify`".into(),
        }
    }
}
