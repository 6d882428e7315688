//! One run of one job in its instance.

use super::harvest::Harvest;
use super::limit::Limit;
use super::log::Log;
use super::{Desk, Word, dispatch};
use crate::claims::extend;
use crate::node::{Node, locked};
use crate::problem::OrProblem;
use crate::root::remove_file;
use crate::{Result, now};
use mvm_api::Problem;
use mvm_archive::Notes;
use mvm_guest::channel::Channel;
use mvm_guest::exec::{ExecInput, ExecOutput, Output};
use mvm_guest::frame::Frame;
use mvm_guest::protocol::ExecRequest;
use mvm_model::audit::OK;
use mvm_model::job::{JobState, Outcome};
use mvm_model::lease::DEFAULT_LEASE_S;
use mvm_model::{Instance, Job, JobId, Mover, State};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

/// Where a job works in its guest.
pub(super) const WORK: &str = "/work";
/// How long a command that is asked to end may take.
const GRACE: Duration = Duration::from_secs(2);
/// How often the lease of a job that has no end of its own is extended.
const EXTEND: Duration = Duration::from_secs(DEFAULT_LEASE_S / 3);
/// When it is tried again to record what became of a job, where the disk was full.
const AGAIN: Duration = Duration::from_secs(1);
/// A signal that asks to end (signal(7)).
const TERM: i32 = 15;

/// What runs a job.
struct Runner {
    node: Arc<Node>,
    desk: Arc<Desk>,
    id: JobId,
    instance: Instance,
    limit: Limit,
    /// The guest did not do in time what it was to, or was interrupted: nobody is to have it again.
    cut: bool,
}

/// Why a run came to nothing before its command began.
enum Unbegun {
    /// No room: the instance is as it was, the job waits on.
    NoRoom,
    /// The instance could not be brought up.
    NoMachine(Problem),
    /// The job itself is at fault, or is over.
    Over(Outcome),
}

impl From<Outcome> for Unbegun {
    fn from(outcome: Outcome) -> Self {
        Unbegun::Over(outcome)
    }
}

impl From<Problem> for Unbegun {
    fn from(problem: Problem) -> Self {
        Unbegun::NoMachine(problem)
    }
}

/// Runs a job that has got `instance` to its end, records how it came out, and gives the instance
/// back.
pub(super) async fn run(
    node: Arc<Node>,
    id: JobId,
    instance: Instance,
    words: UnboundedReceiver<Word>,
) {
    let desk = node.jobs.desk(id);
    let lease = instance.lease.as_ref().map(|lease| lease.id.clone()).unwrap_or_default();
    let machine = instance.id;
    let act = node.begin_job(id, &instance).await;
    let timeout_s = node.read(|w| w.jobs.get(&id).and_then(|job| job.spec.timeout_s)).await;
    let limit = Limit::new(words, timeout_s);
    let runner = Runner { node: node.clone(), desk, id, instance, limit, cut: false };
    // In a task of its own: whatever happens in it, the job has an end.
    let ended = tokio::spawn(runner.run()).await;
    let (cut, ended) =
        ended.unwrap_or_else(|error| (true, Err(Problem::internal(error.to_string()))));
    let untouched = matches!(ended, Ok(None));
    let recorded = match ended {
        Ok(Some(job)) => Ok(job),
        Ok(None) => {
            let back = node.untake(machine, &lease).await;
            let back_in_line = |job: &mut Job| match job.cancel_requested {
                true => job.end(Outcome::because(JobState::Canceled, "canceled"), now()),
                false => job.give_back(),
            };
            let waits = node.update_job(id, back_in_line).await;
            waits.and_then(|job| back.map(|()| job))
        }
        Err(problem) => {
            let failed = |job: &mut Job| {
                let began = job.state == JobState::Running;
                let state = if began { JobState::Lost } else { JobState::Failed };
                job.end(Outcome::because(state, problem.to_string()), now())
            };
            // On a full disk no end can be recorded: it is as soon as there is room.
            loop {
                match node.update_job(id, failed).await {
                    Err(full) if full.code == "no_space" => tokio::time::sleep(AGAIN).await,
                    outcome => break outcome,
                }
            }
        }
    };
    if let Some(act) = act {
        let outcome = match &recorded {
            Ok(job) if job.state == JobState::Succeeded => OK.to_owned(),
            Ok(job) => job.state.to_string(),
            Err(problem) => problem.code.clone(),
        };
        act.end(&outcome).await;
    }
    match recorded {
        Ok(job) if job.state.has_ended() => {
            if let Err(problem) = remove_file(&node.inputs_of(id)) {
                tracing::warn!(job = %id, "{problem}");
            }
        }
        Ok(_) => {}
        Err(problem) => tracing::error!(job = %id, "cannot record what became of it: {problem}"),
    }
    match (untouched, cut) {
        (true, _) => {}
        (false, true) => node.discard(machine, &lease).await,
        (false, false) => node.end_lease_of(machine, &lease).await,
    }
}

/// A machine that is up and has the inputs, how long both took, and what it could not keep of these.
struct Ready {
    channel: Channel,
    claim: Duration,
    inputs: Duration,
    notes: Notes,
}

impl Runner {
    /// Gives the job as it is recorded then, or nothing where there was no room for it; and whether
    /// its machine is to go.
    async fn run(mut self) -> (bool, Result<Option<Job>>) {
        let ended = self.follow_to_end().await;
        (self.cut, ended)
    }

    async fn follow_to_end(&mut self) -> Result<Option<Job>> {
        let (node, id) = (self.node.clone(), self.id);
        match self.prepare().await {
            Ok(ready) => self.carry_out(ready).await.map(Some),
            Err(Unbegun::NoRoom) => Ok(None),
            Err(Unbegun::NoMachine(problem)) => {
                let machine = self.instance.reference();
                tracing::warn!(job = %id, instance = %machine, "no machine for it: {problem}");
                let failed = |job: &mut Job| match job.cancel_requested {
                    true => job.end(Outcome::because(JobState::Canceled, "canceled"), now()),
                    false => job.start_failed(problem.to_string(), now()),
                };
                node.update_job(id, failed).await.map(Some)
            }
            Err(Unbegun::Over(outcome)) => {
                node.update_job(id, |job| job.end(outcome, now())).await.map(Some)
            }
        }
    }

    /// Does something that needs the guest, as long as the job may go on.
    async fn hold<T>(
        &mut self,
        doing: &str,
        work: impl Future<Output = T>,
    ) -> std::result::Result<T, Outcome> {
        self.limit.hold(work).await.map_err(|cut| {
            self.cut = true;
            self.limit.outcome(cut, doing)
        })
    }

    /// Brings the machine up and sends the inputs.
    async fn prepare(&mut self) -> std::result::Result<Ready, Unbegun> {
        let (node, machine) = (self.node.clone(), self.instance.id);
        let began = Instant::now();
        // In a task of its own: a transition that has begun is not left half done.
        let (bringer, by) = (node.clone(), Mover::of(&self.instance));
        let brought =
            tokio::spawn(async move { bringer.bring(machine, State::Running, &by).await });
        let brought = self.hold("its machine was brought up", brought).await?;
        match brought.unwrap_or_else(|error| Err(Problem::internal(error.to_string()))) {
            Err(problem) if dispatch::passes(&problem) => return Err(Unbegun::NoRoom),
            outcome => outcome?,
        };
        let slot = node.slot(machine);
        let connect = async { node.channel(&mut *slot.gate.lock().await).await };
        let channel = self.hold("its machine was brought up", connect).await??;
        self.limit.begin(Duration::ZERO);
        let mounted = node.open_caches(machine, &channel);
        self.hold("its caches were mounted", mounted).await??;
        let claim = began.elapsed();
        let began = Instant::now();
        let notes = self.send_inputs(&channel).await?;
        Ok(Ready { channel, claim, inputs: began.elapsed(), notes })
    }

    async fn send_inputs(&mut self, channel: &Channel) -> std::result::Result<Notes, Unbegun> {
        let path = self.node.inputs_of(self.id);
        let Ok(file) = tokio::fs::File::open(&path).await else { return Ok(Notes::default()) };
        match self.hold("its inputs were unpacked", channel.put("/", file)).await? {
            Err(mvm_guest::Error::Guest { message, .. }) => {
                let reason = format!("its inputs cannot be unpacked: {message}");
                Err(Unbegun::Over(Outcome::because(JobState::Failed, reason)))
            }
            other => Ok(other.or_problem()?),
        }
    }

    /// Begins the command, follows it to its end, and records how it came out.
    async fn carry_out(&mut self, ready: Ready) -> Result<Job> {
        let Ready { channel, claim, inputs, notes } = ready;
        let mut log = Log::open(&self.node.log_of(self.id)).await?;
        let canceled =
            |job: &mut Job| job.end(Outcome::because(JobState::Canceled, "canceled"), now());
        let job = self
            .node
            .update_job(self.id, |job| {
                if job.cancel_requested {
                    return canceled(job);
                }
                job.begin(now())?;
                if let Some(attempt) = job.attempts.last_mut() {
                    attempt.claim_us = claim.as_micros() as u64;
                    attempt.inputs_us = inputs.as_micros() as u64;
                }
                Ok(())
            })
            .await?;
        if job.state != JobState::Running {
            return Ok(job);
        }
        if job.attempts.len() > 1 {
            let (number, most) = (job.attempts.len(), usize::from(job.spec.retries) + 1);
            log.say(&format!("attempt {number} of {most}")).await?;
        }
        self.tell(&mut log, &notes).await?;
        let slot = self.node.slot(self.instance.id);
        let _session = slot.session();
        let began = Instant::now();
        let mut outcome = self.command(&channel, &job, log).await;
        let took = began.elapsed();
        let artifacts = self.harvest(&channel, &job, &mut outcome).await;
        let ended = self
            .node
            .update_job(self.id, |job| {
                if let Some(attempt) = job.attempts.last_mut() {
                    attempt.command_us = took.as_micros() as u64;
                }
                job.artifacts = artifacts;
                if job.cancel_requested && outcome.state == JobState::Lost {
                    outcome.state = JobState::Canceled;
                }
                job.end(outcome, now())
            })
            .await?;
        tracing::info!(job = %self.id, state = %ended.state, "job");
        Ok(ended)
    }

    /// Runs the command. A machine that goes away under it makes it lost.
    async fn command(&mut self, channel: &Channel, job: &Job, log: Log) -> Outcome {
        let request = ExecRequest {
            argv: job.spec.argv.clone(),
            env: job.spec.env.clone(),
            cwd: Some(WORK.to_owned()),
            ..ExecRequest::default()
        };
        let started = match self.hold("its command was started", channel.exec(request)).await {
            Ok(started) => started,
            Err(outcome) => return outcome,
        };
        let mut program = match started {
            Ok(program) => program,
            Err(mvm_guest::Error::Guest { code, message }) => {
                let exit_status = match &*code {
                    "command_not_found" => Some(127),
                    "command_not_executable" => Some(126),
                    _ => None,
                };
                return Outcome { state: JobState::Failed, exit_status, reason: Some(message) };
            }
            Err(error) => return self.lost(&error.to_string()),
        };
        let mut output = tokio::spawn(pass_on(program.output, log, self.desk.clone()));
        let outcome = self.watch(&mut output, &mut program.input, job.spec.timeout_s).await;
        // Where it has not ended by itself, this ends it: its stream is closed.
        if !output.is_finished() {
            output.abort();
            let _ = output.await;
        }
        outcome
    }

    /// Waits for the command's end, or brings it about.
    async fn watch(
        &mut self,
        output: &mut JoinHandle<Result<Printed>>,
        input: &mut ExecInput,
        timeout_s: Option<u64>,
    ) -> Outcome {
        let passed = self.limit.passed();
        tokio::pin!(passed);
        let mut ending = Box::pin(after(None));
        let mut asked = false;
        let mut extend_lease = tokio::time::interval(EXTEND);
        loop {
            tokio::select! {
                biased;
                ended = &mut *output => return match ended {
                    Ok(Ok(Printed { status, cut })) => {
                        Outcome { reason: cut, ..ended_by_itself(status, asked) }
                    }
                    Ok(Err(problem)) => self.lost(&problem.to_string()),
                    Err(error) => self.lost(&error.to_string()),
                },
                () = &mut passed => return self.limit.timed_out(),
                () = &mut ending => return Outcome::because(JobState::Canceled, "canceled"),
                word = self.limit.word() => {
                    let signal = match word {
                        Word::Signal(signal) => signal,
                        Word::Cancel => {
                            ending = Box::pin(after(Some(GRACE)));
                            TERM
                        }
                    };
                    asked = true;
                    // A guest that does not listen is not waited for.
                    let _ = tokio::time::timeout(GRACE, input.signal(signal)).await;
                }
                _ = extend_lease.tick() => self.extend(timeout_s).await,
            }
        }
    }

    /// A job without timeout and length of its own keeps its lease as long as it runs.
    async fn extend(&self, timeout_s: Option<u64>) {
        let own =
            self.node.read(|w| w.jobs.get(&self.id).is_some_and(|j| j.spec.lease_s.is_some()));
        if timeout_s.is_some() || own.await {
            return;
        }
        let until = now() + DEFAULT_LEASE_S * 1000;
        if let Err(problem) = self.node.update(self.instance.id, |i| extend(i, until)).await {
            tracing::warn!(job = %self.id, "cannot extend its lease: {problem}");
        }
    }

    fn lost(&self, why: &str) -> Outcome {
        // Its end is the reason, not what broke by it.
        let ended = self.node.slot(self.instance.id).why_ended().map(|ended| ended.detail);
        let given_up = ended.or_else(|| self.node.halted.given_up(self.instance.id));
        let why = given_up.as_deref().unwrap_or(why);
        let reason = format!("its machine {} went away: {why}", self.instance.reference());
        Outcome::because(JobState::Lost, reason)
    }

    /// Takes what the job leaves from its guest.
    async fn harvest(
        &mut self,
        channel: &Channel,
        job: &Job,
        outcome: &mut Outcome,
    ) -> Vec<mvm_model::job::Artifact> {
        if outcome.state == JobState::Lost || self.cut {
            return Vec::new();
        }
        if self.limit.canceled || outcome.state == JobState::TimedOut {
            self.limit.last_moment();
        }
        let (node, limit, instance) = (&*self.node, &mut self.limit, self.instance.id);
        let notes = Notes::default();
        let mut harvest = Harvest { node, instance, channel, limit, cut: false, notes };
        let artifacts = harvest.take(job, outcome).await;
        let notes = harvest.notes;
        self.cut = harvest.cut;
        if !notes.is_empty() {
            let told = async {
                let mut log = Log::open(&self.node.log_of(self.id)).await?;
                self.tell(&mut log, &notes).await
            };
            if let Err(problem) = told.await {
                outcome.add_reason(format!("its log is cut short: {}", problem.detail));
            }
        }
        artifacts
    }

    /// Says in the log, and to the client that is attached, what could not be copied as it was.
    async fn tell(&self, log: &mut Log, notes: &Notes) -> Result<()> {
        for line in notes.lines() {
            let piece = Frame::Stderr(format!("mvm: {line}\n").into_bytes());
            log.write(&piece).await?;
            let client = locked(&self.desk.client).clone();
            if let Some(client) = client {
                // One that is gone ends the job by itself.
                let _ = client.send(piece).await;
            }
        }
        self.desk.bump();
        Ok(())
    }
}

/// A status of the command's own. One that was asked to end, and did not end well, was canceled.
fn ended_by_itself(status: i32, asked: bool) -> Outcome {
    let state = match status {
        0 => JobState::Succeeded,
        _ if asked => JobState::Canceled,
        _ => JobState::Failed,
    };
    Outcome { state, exit_status: Some(status), reason: None }
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// What came of a program's output.
struct Printed {
    /// The program's status.
    status: i32,
    /// Why not all of its output is in the log.
    cut: Option<String>,
}

/// Writes a program's output to the log, and passes it on to the client that is attached.
async fn pass_on(mut output: ExecOutput, log: Log, desk: Arc<Desk>) -> Result<Printed> {
    let (mut log, mut cut) = (Some(log), None);
    loop {
        let piece = match output.next().await.or_problem()? {
            Output::Stdout(bytes) => Frame::Stdout(bytes),
            Output::Stderr(bytes) => Frame::Stderr(bytes),
            Output::Taken(_) => continue,
            Output::Exit(exit) => return Ok(Printed { status: exit.shell_status(), cut }),
        };
        if let Some(to) = &mut log
            && let Err(problem) = to.write(&piece).await
        {
            // The command goes on.
            tracing::warn!("a job's log ends here: {problem}");
            (log, cut) = (None, Some(format!("its log is cut short: {}", problem.detail)));
        }
        desk.bump();
        let client = locked(&desk.client).clone();
        if let Some(client) = client
            && client.send(piece).await.is_err()
        {
            *locked(&desk.client) = None;
        }
    }
}
