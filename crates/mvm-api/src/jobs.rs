//! Requests and replies about jobs, and the paths to them.

use mvm_model::job::{Artifact, Attempt, JobSpec};
use mvm_model::{Job, JobId, JobState, Millis, Name, PoolRef};
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

/// `POST …/pools/{pool}/jobs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitJob {
    /// What is to be run.
    pub spec: JobSpec,
    /// Only record it: its inputs follow, then `submit` or `attach`.
    #[serde(default)]
    pub hold: bool,
}

/// `GET /v1/jobs`: which of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobFilter {
    /// Only those of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
    /// Only those of this pool, `tenant/pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolRef>,
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
}

/// A job as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobView {
    /// Its id.
    pub job_id: JobId,
    /// Its tenant.
    pub tenant_id: Name,
    /// Its pool.
    pub pool_id: Name,
    /// Where it is in its life.
    pub state: JobState,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The names of the variables that it sets: their values may be secret.
    pub env: Vec<String>,
    /// The job is ended after so many seconds from when its machine is up.
    pub timeout_s: Option<u64>,
    /// Before all with a lower one.
    pub priority: i8,
    /// How often it may be run again.
    pub retries: u8,
    /// Caches whose disk becomes the pool's if it succeeds.
    pub cache_commit: Vec<Name>,
    /// Who submitted it.
    pub holder: String,
    /// Somebody wants it to end.
    pub cancel_requested: bool,
    /// Its place in the queue, 1 for the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// What the next one waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Runs so far, the present one included.
    pub attempts: Vec<Attempt>,
    /// The command's status, as a shell says it.
    pub exit_status: Option<i32>,
    /// The status that `mvm run` and `mvm job wait` end with; absent until it has ended.
    pub shell_status: Option<u8>,
    /// Why it came out so, where the status does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it left.
    pub artifacts: Vec<Artifact>,
    /// When it was recorded.
    pub created_at: Millis,
    /// When it was queued.
    pub queued_at: Option<Millis>,
    /// When it was over.
    pub ended_at: Option<Millis>,
    /// The node that it is on, where a coordinator lists it.
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
