//! Requests and replies about jobs, and the paths to them.

use mvm_model::job::{Artifact, Attempt, JobSpec};
use mvm_model::{Job, JobId, JobState, Name, PoolRef, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Path of the jobs of all pools.
pub const JOBS: &str = "/v1/jobs";

/// Returns the path of one job.
pub fn job(id: JobId) -> String {
    format!("{JOBS}/{id}")
}

/// Returns the path of a verb or part of a job: `inputs`, `submit`, `attach`, `cancel`, `wait`,
/// `log`, `artifacts/N`.
pub fn job_part(id: JobId, part: &str) -> String {
    format!("{JOBS}/{id}/{part}")
}

/// Request of `POST …/pools/{pool}/jobs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitJob {
    /// The program to run, and how.
    pub spec: JobSpec,
    /// Only record the job. Its inputs follow, then `submit` or `attach`.
    #[serde(default)]
    pub hold: bool,
}

/// Query of `GET /v1/jobs`: which jobs to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobFilter {
    /// Only jobs of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
    /// Only jobs of this pool, `tenant/pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolRef>,
    /// Only jobs in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
}

/// A job as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobView {
    /// The job's id.
    pub job_id: JobId,
    /// The tenant's name.
    pub tenant_id: Name,
    /// The pool's name.
    pub pool_id: Name,
    /// The job's state.
    pub state: JobState,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The names of the job's environment variables. Their values may be secret and are not shown.
    pub env: Vec<String>,
    /// The job is ended this many seconds after its machine is up; absent for no limit.
    pub timeout_s: Option<u64>,
    /// The job's priority: jobs with a higher one run first.
    pub priority: i8,
    /// How often the job may be run again after it failed, timed out or was lost.
    pub retries: u8,
    /// The caches whose disk becomes the pool's if the job succeeds.
    pub cache_commit: Vec<Name>,
    /// The caller that submitted the job.
    pub holder: String,
    /// Whether somebody has asked to cancel the job.
    pub cancel_requested: bool,
    /// The job's place in the queue; 1 is the next to run. Absent where the job is not queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// What the first job of the queue waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// The job's runs so far, the present one included.
    pub attempts: Vec<Attempt>,
    /// The command's exit status, as a shell gives it; absent until the command has ended.
    pub exit_status: Option<i32>,
    /// The exit status of `mvm run` and `mvm job wait`; absent until the job has ended.
    pub shell_status: Option<u8>,
    /// Why the job ended as it did, where its status does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The files that the job left.
    pub artifacts: Vec<Artifact>,
    /// When the job was recorded; ms since the Unix epoch.
    pub created_at: Timestamp,
    /// When the job was queued; absent until then.
    pub queued_at: Option<Timestamp>,
    /// When the job ended; absent until then.
    pub ended_at: Option<Timestamp>,
    /// The node that the job is on, where a coordinator lists it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<Name>,
}

impl From<&Job> for JobView {
    /// Fills in what the record holds. The job's position and what it waits for depend on other
    /// jobs and the pool.
    fn from(job: &Job) -> Self {
        let spec = &job.spec;
        JobView {
            job_id: job.id,
            tenant_id: job.pool.tenant.clone(),
            pool_id: job.pool.pool.clone(),
            state: job.state,
            command: spec.argv.clone(),
            env: spec.env.keys().cloned().collect(),
            timeout_s: spec.timeout_s,
            priority: spec.priority,
            retries: spec.retries,
            cache_commit: spec.cache_commit.clone(),
            holder: job.holder.clone(),
            cancel_requested: job.cancel_requested,
            position: None,
            waits_for: None,
            attempts: job.attempts.clone(),
            exit_status: job.exit_status,
            shell_status: job.state.has_ended().then(|| job.shell_status()),
            reason: job.reason.clone(),
            artifacts: job.artifacts.clone(),
            created_at: job.created_at,
            queued_at: job.queued_at,
            ended_at: job.ended_at,
            node_id: None,
        }
    }
}
