//! Jobs: a command in an instance of its own, queued, run at most once unless it may be retried.

use crate::error::Fault;
use crate::id::JobId;
use crate::name::{InstanceRef, Name, PoolRef};
use crate::state::State;
use crate::text::{invalid, shown};
use crate::timestamp::Timestamp;
use crate::variable::{HINT, is_variable};
use crate::way_up::WayUp;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The longest time that a command may be given, in seconds: a week.
pub const MAX_TIMEOUT_S: u64 = 7 * 24 * 3600;
/// How many instances are tried before a job that never began is given up.
pub const START_TRIES: u32 = 3;
/// How many ended jobs of a pool are kept, with their logs and artifacts, at most.
pub const KEPT: usize = 500;
/// How long an ended job is kept: a week.
pub const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a job may wait for its inputs: a day.
pub const PREPARING: Duration = Duration::from_secs(24 * 3600);
/// The largest size of a command and its environment together, in bytes.
const MAX_COMMAND: usize = 512 * 1024;
/// The largest number of artifacts of one job.
const MAX_ARTIFACTS: usize = 64;

/// The program of a job, and how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Environment variables, added to the guest's default environment. A name has ASCII letters,
    /// digits and `_`, and does not begin with a digit.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The job is ended this many seconds after its machine is up: inputs, command and artifacts
    /// together. Absent for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// The job's machine is taken away after this many seconds. Absent: an hour over the timeout,
    /// or as long as the command runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u64>,
    /// The job's priority, -100 to 100: jobs with a higher one run first.
    #[serde(default)]
    pub priority: i8,
    /// How often the job may be run again after it failed, timed out or was lost, 0 to 10.
    #[serde(default)]
    pub retries: u8,
    /// Files and folders of the guest that are kept when the command has ended. Relative paths are
    /// below `/work`.
    #[serde(default)]
    pub artifacts: Vec<String>,
    /// The caches whose disk becomes the pool's if the job succeeds.
    #[serde(default)]
    pub cache_commit: Vec<Name>,
}

impl JobSpec {
    /// Checks every field; the path of the fault is the field's name.
    pub fn validate(&self) -> Result<(), Fault> {
        let wrong =
            |field: &str, what: String| Fault::new(Code::InvalidValue, what).at(field.to_owned());
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(wrong("argv", "no program is named".to_owned()));
        }
        let env = self.env.iter();
        let size: usize = self.argv.iter().map(String::len).sum::<usize>()
            + env.clone().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if size > MAX_COMMAND {
            let what = format!("command and environment have {size} bytes");
            return Err(wrong("argv", what).hint(format!("allowed are {MAX_COMMAND}: use a file")));
        }
        if self.argv.iter().any(|word| word.contains('\0')) {
            return Err(wrong("argv", "a word has a zero byte in it".to_owned()));
        }
        if self.artifacts.iter().any(|path| path.contains('\0')) {
            return Err(wrong("artifacts", "a path has a zero byte in it".to_owned()));
        }
        if let Some((name, _)) = env.clone().find(|(name, _)| !is_variable(name)) {
            let shown = shown(name);
            return Err(wrong("env", format!("{shown:?} is not a valid variable name")).hint(HINT));
        }
        if let Some((name, _)) = env.clone().find(|(_, value)| value.contains('\0')) {
            let what = format!("the value of variable {name} has a zero byte in it");
            return Err(wrong("env", what).hint("give the command such bytes in a file"));
        }
        let range = |field: &str, value: i128, min: i128, max: i128, unit: &str| {
            let fault = || wrong(field, format!("{field} is {value}{unit}"));
            let allowed = (min..=max).contains(&value);
            allowed
                .then_some(())
                .ok_or_else(fault)
                .map_err(|fault| fault.hint(format!("allowed are {min} to {max}{unit}")))
        };
        range("timeout_s", self.timeout_s.unwrap_or(1).into(), 1, MAX_TIMEOUT_S.into(), " s")?;
        range("lease_s", self.lease_s.unwrap_or(1).into(), 1, MAX_TIMEOUT_S.into(), " s")?;
        range("priority", self.priority.into(), -100, 100, "")?;
        range("retries", self.retries.into(), 0, 10, "")?;
        range("artifacts", self.artifacts.len() as i128, 0, MAX_ARTIFACTS as i128, " paths")?;
        match self.artifacts.iter().find(|path| path.is_empty() || path.len() > 4096) {
            Some(path) => Err(wrong("artifacts", format!("a path of {} bytes", path.len()))),
            None => Ok(()),
        }
    }
}

/// The state of a job.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Recorded; its inputs have not arrived yet.
    Preparing,
    /// Waits for its turn and a machine.
    Queued,
    /// Has a machine, which is being brought up; the command has not begun.
    Starting,
    /// The command runs, or may have run.
    Running,
    /// Ended with status 0.
    Succeeded,
    /// Ended with another status, or could not be run; the job has the reason.
    Failed,
    /// Ended by its timeout.
    TimedOut,
    /// Ended by a caller.
    Canceled,
    /// Its machine was lost while the command ran. It is not known how far the command came.
    Lost,
}

use JobState::*;

/// Every allowed transition. A job that has ended stays so. Two lead back into the queue: from
/// `running` for a job that may be retried, and from `starting` for one whose command never began.
pub const TRANSITIONS: &[(JobState, JobState)] = &[
    (Preparing, Queued),
    (Preparing, Canceled),
    (Queued, Starting),
    (Queued, Failed),
    (Queued, Canceled),
    (Starting, Queued),
    (Starting, Running),
    (Starting, Failed),
    (Starting, TimedOut),
    (Starting, Canceled),
    (Running, Queued),
    (Running, Succeeded),
    (Running, Failed),
    (Running, TimedOut),
    (Running, Canceled),
    (Running, Lost),
];

impl JobState {
    /// All states, in the order of a job's life.
    pub const ALL: [JobState; 9] =
        [Preparing, Queued, Starting, Running, Succeeded, Failed, TimedOut, Canceled, Lost];

    /// Returns whether a job in this state may go to `to`.
    pub fn allows(self, to: JobState) -> bool {
        TRANSITIONS.contains(&(self, to))
    }

    /// Returns whether a job in this state is over: no transition leads out of it.
    pub fn has_ended(self) -> bool {
        matches!(self, Succeeded | Failed | TimedOut | Canceled | Lost)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Preparing => "preparing",
            Queued => "queued",
            Starting => "starting",
            Running => "running",
            Succeeded => "succeeded",
            Failed => "failed",
            TimedOut => "timed_out",
            Canceled => "canceled",
            Lost => "lost",
        })
    }
}

impl FromStr for JobState {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        Self::ALL.into_iter().find(|state| state.to_string() == text).ok_or_else(|| {
            let all = Self::ALL.map(|state| state.to_string()).join(", ");
            invalid(text, "job state").hint(format!("the states are {all}"))
        })
    }
}

/// How a job, or one attempt at it, came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// One of the states that have ended.
    pub state: JobState,
    /// The command's status, as a shell says it.
    pub exit_status: Option<i32>,
    /// Why, where the status does not say it.
    pub reason: Option<String>,
}

impl Outcome {
    /// Returns an outcome that has a reason and no exit status.
    pub fn because(state: JobState, reason: impl Into<String>) -> Outcome {
        Outcome { state, exit_status: None, reason: Some(reason.into()) }
    }

    /// Adds a reason to those that are known already.
    pub fn add_reason(&mut self, why: String) {
        self.reason = Some(match self.reason.take() {
            Some(known) => format!("{known}; {why}"),
            None => why,
        });
    }
}

/// One run of a job's command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attempt {
    /// The instance that the command ran on.
    pub instance: InstanceRef,
    /// The state that the instance was taken from.
    pub from: State,
    /// How the instance started to run; absent where it ran already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_up: Option<WayUp>,
    /// When the instance was taken; ms since the Unix epoch.
    pub since: Timestamp,
    /// When the command began; absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_at: Option<Timestamp>,
    /// When the run ended; absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The run's outcome; absent until it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// The command's exit status; absent until the command has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    /// Why the run ended as it did, where its status does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long the instance took to be ready, in µs.
    #[serde(default)]
    pub claim_us: u64,
    /// How long the inputs took, in µs.
    #[serde(default)]
    pub inputs_us: u64,
    /// How long the command took, in µs.
    #[serde(default)]
    pub command_us: u64,
}

/// What is needed to attach again to a command that its guest keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumePoint {
    /// The life of the guest's agent: another one knows nothing of the command.
    pub life: String,
    /// Where the command's output begins in the log, in bytes.
    pub log_from: u64,
}

/// A file or folder that a job has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Artifact {
    /// The artifact's path in the guest.
    pub path: String,
    /// Size of the artifact's archive in bytes; absent where the artifact does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long fetching the artifact took, in µs.
    #[serde(default)]
    pub took_us: u64,
}

/// What an agent that starts finds of a job's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The machine runs, and is still leased for jobs.
    Runs,
    /// The machine does not run, or is not leased for jobs any more.
    Gone,
}

/// The durable record of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The job's id.
    pub id: JobId,
    /// The pool whose instances it runs in.
    pub pool: PoolRef,
    /// What is to be run.
    pub spec: JobSpec,
    /// Where it is in its life.
    pub state: JobState,
    /// Who submitted it.
    pub holder: String,
    /// Whether the values of its variables are kept beside the record until it has ended; the
    /// record then has the names alone.
    #[serde(default)]
    pub values_apart: bool,
    /// Whether a client follows the job, which then ends with that client.
    #[serde(default)]
    pub attached: bool,
    /// Whether somebody has asked for its end.
    #[serde(default)]
    pub cancel_requested: bool,
    /// Its place in the order of submission on this node; 0 before it is queued.
    #[serde(default)]
    pub number: u64,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When it was queued first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Timestamp>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Runs so far, the present one included.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// How often no machine could be brought up for it.
    #[serde(default)]
    pub failed_starts: u32,
    /// The command's status, as a shell says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    /// The reason for its outcome, where the status does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The files and folders that it left.
    #[serde(default)]
    pub artifacts: Vec<Artifact>,
    /// Present while the command runs in a guest that keeps it for the next agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<ResumePoint>,
}

impl Job {
    /// Returns a job that waits for its inputs.
    pub fn new(id: JobId, pool: PoolRef, spec: JobSpec, holder: String, now: Timestamp) -> Job {
        Job {
            id,
            pool,
            spec,
            state: Preparing,
            holder,
            values_apart: false,
            attached: false,
            cancel_requested: false,
            number: 0,
            created_at: now,
            queued_at: None,
            ended_at: None,
            attempts: Vec::new(),
            failed_starts: 0,
            exit_status: None,
            reason: None,
            artifacts: Vec::new(),
            kept: None,
        }
    }

    /// Clears the values of the job's variables in the record, which keeps their names, and returns
    /// names and values: the caller stores these beside the record.
    pub fn part_values(&mut self) -> BTreeMap<String, String> {
        let values = self.spec.env.clone();
        self.spec.env.values_mut().for_each(String::clear);
        self.values_apart = !values.is_empty();
        values
    }

    fn go(&mut self, to: JobState) -> Result<(), Fault> {
        if !self.state.allows(to) {
            return Err(self.cannot_become(to));
        }
        self.state = to;
        Ok(())
    }

    /// Does as [`Job::go`], from one state only: several lead into the queue, each for a reason of
    /// its own.
    fn go_from(&mut self, from: JobState, to: JobState) -> Result<(), Fault> {
        if self.state == from { self.go(to) } else { Err(self.cannot_become(to)) }
    }

    fn cannot_become(&self, to: JobState) -> Fault {
        let what = format!("job {} is {} and cannot become {to}", self.id, self.state);
        Fault::new(Code::WrongState, what)
            .hint(format!("see what became of it: mvm job info {}", self.id))
    }

    /// Queues the job behind all that were queued before; `number` is its place in the order of
    /// submission.
    pub fn queue(&mut self, number: u64, now: Timestamp) -> Result<(), Fault> {
        self.go_from(Preparing, Queued)?;
        self.number = number;
        self.queued_at = Some(now);
        Ok(())
    }

    /// Gives the job an instance that was in state `from`, and begins an attempt.
    pub fn assign(
        &mut self,
        instance: InstanceRef,
        from: State,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.go(Starting)?;
        self.attempts.push(Attempt {
            instance,
            from,
            way_up: None,
            since: now,
            began_at: None,
            ended_at: None,
            state: None,
            exit_status: None,
            reason: None,
            claim_us: 0,
            inputs_us: 0,
            command_us: 0,
        });
        Ok(())
    }

    /// Notes that the command is about to begin: from now on it may have run. `kept` is present
    /// where the guest keeps the command for the next agent.
    pub fn begin(&mut self, kept: Option<ResumePoint>, now: Timestamp) -> Result<(), Fault> {
        self.go(Running)?;
        self.kept = kept;
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.began_at = Some(now);
        }
        Ok(())
    }

    /// Takes the instance away before the command has begun; the job keeps its place in the queue.
    pub fn give_back(&mut self) -> Result<(), Fault> {
        self.go_from(Starting, Queued)?;
        self.attempts.pop();
        Ok(())
    }

    /// Notes that the instance could not be brought up. The job gets another one, [`START_TRIES`]
    /// in all, and then fails.
    pub fn start_failed(&mut self, reason: String, now: Timestamp) -> Result<(), Fault> {
        if self.state != Starting {
            return Err(self.cannot_become(Queued));
        }
        self.failed_starts += 1;
        match self.failed_starts < START_TRIES {
            true => self.give_back(),
            false => self.end(Outcome::because(Failed, reason), now),
        }
    }

    /// Notes how the attempt came out. A job that may be retried goes back to its place in the
    /// queue; any other one has ended.
    pub fn end(&mut self, outcome: Outcome, now: Timestamp) -> Result<(), Fault> {
        let may_again = match self.state {
            Running => matches!(outcome.state, Failed | TimedOut | Lost),
            Starting => outcome.state == TimedOut,
            _ => false,
        };
        let again = may_again
            && !self.cancel_requested
            && self.attempts.len() <= usize::from(self.spec.retries);
        if !again || !outcome.state.has_ended() {
            self.go(outcome.state)?;
            self.ended_at = Some(now);
            self.exit_status = outcome.exit_status;
            self.reason.clone_from(&outcome.reason);
        } else {
            self.go(Queued)?;
            self.artifacts.clear();
        }
        self.kept = None;
        if let Some(attempt) = self.attempts.last_mut().filter(|a| a.ended_at.is_none()) {
            attempt.ended_at = Some(now);
            attempt.state = Some(outcome.state);
            attempt.exit_status = outcome.exit_status;
            attempt.reason = outcome.reason;
        }
        Ok(())
    }

    /// Decides what an agent that starts makes of the job, and returns whether this changed it. A
    /// command that its guest keeps goes on where its `machine` still runs. Any other that may have
    /// run is run again only if the job may be retried.
    pub fn recover(&mut self, machine: Found, now: Timestamp) -> Result<bool, Fault> {
        match (self.state, machine) {
            (Preparing | Queued | Starting, _) if self.cancel_requested => {
                self.end(Outcome::because(Canceled, "canceled"), now)?;
            }
            (Starting, _) => self.give_back()?,
            (Running, Found::Runs) if self.kept.is_some() => return Ok(false),
            (Running, _) if self.cancel_requested => {
                self.end(Outcome::because(Canceled, "canceled"), now)?;
            }
            (Running, Found::Runs) => {
                let why = "its agent ended while the command ran, and its guest, of an older mvm, \
                           keeps no programs: how far it came is unknown";
                self.end(Outcome::because(Lost, why), now)?;
            }
            (Running, Found::Gone) => {
                let why = "its machine went away while no agent ran: how far it came is unknown";
                self.end(Outcome::because(Lost, why), now)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Returns the instance that the command runs in; `None` unless the job is `running`.
    pub fn runs_in(&self) -> Option<crate::InstanceId> {
        let attempt = self.attempts.last().filter(|_| self.state == Running)?;
        Some(attempt.instance.id)
    }

    /// Returns the exit status of a client's command that stands for the job: that of the job's
    /// command; 124 after the timeout, 130 if it was canceled, 125 where mvm could not do its part.
    pub fn shell_status(&self) -> u8 {
        let own = self.exit_status.and_then(|status| u8::try_from(status).ok());
        match self.state {
            Succeeded => 0,
            TimedOut => 124,
            Canceled => own.filter(|status| *status != 0).unwrap_or(130),
            Failed => own.filter(|status| *status != 0).unwrap_or(125),
            _ => 125,
        }
    }
}

/// Checks whether `pool`, whose jobs these are, may have one more that waits. `limit` is the
/// tenant's quota. Errors: `queue_full`.
pub fn admit<'a>(
    pool: &PoolRef,
    limit: u64,
    jobs: impl IntoIterator<Item = &'a Job>,
) -> Result<(), Fault> {
    let waits = |job: &&Job| matches!(job.state, Preparing | Queued);
    let waiting = jobs.into_iter().filter(waits).count() as u64;
    if waiting < limit {
        return Ok(());
    }
    let tenant = &pool.tenant;
    let message = format!(
        "quota max_queued_jobs of tenant {tenant}: {waiting} jobs wait in pool {pool}, limit {limit}"
    );
    Err(Fault::new(Code::QueueFull, message).hint(format!(
        "wait for some to end, or raise the quota: mvm tenant update {tenant} --max-queued-jobs"
    )))
}

/// Returns those of one pool's jobs that are removed, with their logs and artifacts: ended ones
/// that are older than [`KEPT_FOR`] or beyond the newest [`KEPT`].
pub fn forgotten<'a>(jobs: impl IntoIterator<Item = &'a Job>, now: Timestamp) -> Vec<JobId> {
    let mut ended: Vec<&Job> = jobs.into_iter().filter(|job| job.state.has_ended()).collect();
    ended.sort_by_key(|job| (std::cmp::Reverse(job.ended_at), job.id));
    let too_old = |job: &Job| job.ended_at.is_some_and(|at| now >= at + KEPT_FOR);
    let over = ended.iter().enumerate();
    over.filter(|(index, job)| *index >= KEPT || too_old(job)).map(|(_, job)| job.id).collect()
}

/// Returns the jobs whose inputs did not come within [`PREPARING`].
pub fn abandoned<'a>(jobs: impl IntoIterator<Item = &'a Job>, now: Timestamp) -> Vec<JobId> {
    let stuck = |job: &&Job| job.state == Preparing && now >= job.created_at + PREPARING;
    jobs.into_iter().filter(stuck).map(|job| job.id).collect()
}
