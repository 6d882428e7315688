//! One run of one job in its instance.

use super::command::Printer;
use super::dispatcher::Dispatcher;
use super::harvest::Harvest;
use super::intake::Arrival;
use super::job_channel::JobSignal;
use super::limit::Limit;
use super::log::{self, Log};
use super::placing::passes;
use super::queue::Jobs;
use super::runner::Runner;
use crate::error::InternalError;
use crate::state_dir::remove_file;
use crate::{Error, Result};
use mvm_archive::Notes;
use mvm_guest::channel::Channel;
use mvm_guest::protocol::Hello;
use mvm_model::audit::OK;
use mvm_model::job::{Artifact, JobState, Outcome, ResumePoint};
use mvm_model::{Actor, Code, Fault, Instance, Job, JobId, State, Timestamp};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;

/// The pause before another try to record a job's end, if the disk was full.
const AGAIN: Duration = Duration::from_secs(1);

/// Why a run ended before its command began.
enum NotBegun {
    /// There was no quota or space. The instance is unchanged, and the job waits again.
    NoRoom,
    /// The instance could not be brought up.
    NoMachine(Error),
    /// The job itself is the cause, or has ended.
    Over(Outcome),
}

impl From<Outcome> for NotBegun {
    fn from(outcome: Outcome) -> Self {
        NotBegun::Over(outcome)
    }
}

impl From<Error> for NotBegun {
    fn from(error: Error) -> Self {
        NotBegun::NoMachine(error)
    }
}

/// Runs a job that was given `instance` to its end, records the outcome, and returns the instance.
/// With `again`, an earlier agent has begun the command.
pub(super) async fn run(
    dispatcher: Arc<Dispatcher>,
    id: JobId,
    instance: Instance,
    signals: UnboundedReceiver<JobSignal>,
    again: bool,
) {
    let (channel, clock) = (dispatcher.jobs.channel_of(id), dispatcher.records.clock());
    let lease = instance.lease.as_ref().map(|lease| lease.id);
    let machine = instance.id;
    let act = dispatcher.auditor.begin_job(id, &instance);
    let timeout_s = dispatcher.records.read(|w| w.jobs.get(&id).and_then(|job| job.spec.timeout_s));
    let limit = Limit::new(signals, timeout_s);
    let runner =
        Runner { dispatcher: dispatcher.clone(), channel, id, instance, limit, cut: false, again };
    // A task of its own, so that the job ends even if the run panics.
    let ended = tokio::spawn(runner.run()).await;
    let (cut, ended) = ended.unwrap_or_else(|error| (true, Err(InternalError::Task(error).into())));
    let untouched = matches!(ended, Ok(None));
    let recorded = match ended {
        Ok(Some(job)) => Ok(job),
        Ok(None) => {
            let back = match lease {
                Some(lease) => dispatcher.leases.cancel_lease(machine, lease).await,
                None => Ok(()),
            };
            let back_in_line = |job: &mut Job| match job.cancel_requested {
                true => job.end(Outcome::because(JobState::Canceled, "canceled"), clock.now()),
                false => job.give_back(),
            };
            let waits = record_end(&dispatcher.jobs, id, back_in_line).await;
            waits.and_then(|job| back.map(|()| job))
        }
        Err(error) => {
            let failed = |job: &mut Job| {
                let began = job.state == JobState::Running;
                let state = if began { JobState::Lost } else { JobState::Failed };
                job.end(Outcome::because(state, error.to_string()), clock.now())
            };
            record_end(&dispatcher.jobs, id, failed).await
        }
    };
    if let Some(act) = act {
        let outcome = match &recorded {
            Ok(job) if job.state == JobState::Succeeded => OK.to_owned(),
            Ok(job) => job.state.to_string(),
            Err(error) => error.code().to_string(),
        };
        act.end(&outcome).await;
    }
    match recorded {
        Ok(job) if job.state.has_ended() => {
            if let Err(error) = remove_file(&dispatcher.jobs.files.inputs(id)) {
                tracing::warn!(job = %id, "{error}");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::error!(job = %id, "cannot record what became of it: {error}"),
    }
    match (lease, cut) {
        (Some(lease), true) if !untouched => dispatcher.leases.discard(machine, lease).await,
        (Some(lease), false) if !untouched => dispatcher.leases.end_of(machine, lease).await,
        _ => {}
    }
}

/// Records how a run ended. On a full disk this waits until there is space.
async fn record_end(
    jobs: &Jobs,
    id: JobId,
    change: impl Fn(&mut Job) -> std::result::Result<(), Fault>,
) -> Result<Job> {
    let mut told = false;
    loop {
        match jobs.record(id, &change).await {
            Err(full) if full.code() == Code::NoSpace => {
                if !told {
                    tracing::warn!(job = %id, "its end waits to be recorded: {full}");
                    told = true;
                }
                tokio::time::sleep(AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// A machine that is up and has the inputs. Says how long both took, and which inputs could not be
/// unpacked as they were.
struct Ready {
    channel: Channel,
    hello: Hello,
    claim: Duration,
    inputs: Duration,
    notes: Notes,
}

impl Runner {
    /// Runs the job. Returns whether its machine must be discarded, and the recorded job; `None`
    /// where there was no quota or space to run it.
    async fn run(mut self) -> (bool, Result<Option<Job>>) {
        let ended = match self.again {
            true => self.resume_command().await.map(Some),
            false => self.begin().await,
        };
        (self.cut, ended)
    }

    async fn begin(&mut self) -> Result<Option<Job>> {
        let (dispatcher, id) = (self.dispatcher.clone(), self.id);
        match self.prepare().await {
            Ok(ready) => self.run_command(ready).await.map(Some),
            Err(NotBegun::NoRoom) => Ok(None),
            Err(NotBegun::NoMachine(error)) => {
                let (machine, clock) = (self.instance.reference(), dispatcher.records.clock());
                tracing::warn!(job = %id, instance = %machine, "no machine for it: {error}");
                let failed = |job: &mut Job| match job.cancel_requested {
                    true => job.end(Outcome::because(JobState::Canceled, "canceled"), clock.now()),
                    false => job.start_failed(error.to_string(), clock.now()),
                };
                record_end(&dispatcher.jobs, id, failed).await.map(Some)
            }
            Err(NotBegun::Over(outcome)) => {
                self.record_end(|job| job.end(outcome.clone(), self.now())).await.map(Some)
            }
        }
    }

    /// Returns the time on the node's timeline.
    fn now(&self) -> Timestamp {
        self.dispatcher.records.clock().now()
    }

    /// Brings the machine up and sends the inputs.
    async fn prepare(&mut self) -> std::result::Result<Ready, NotBegun> {
        let (dispatcher, machine) = (self.dispatcher.clone(), self.instance.id);
        let began = Instant::now();
        // A task of its own, so that a transition is completed even if the job is cut off.
        let (bringer, by) = (dispatcher.clone(), Actor::of(&self.instance));
        let brought = tokio::spawn(async move {
            bringer.instances.transition_to(machine, State::Running, &by).await
        });
        let brought = self.hold("its machine was brought up", brought).await?;
        match brought.unwrap_or_else(|error| Err(InternalError::Task(error).into())) {
            Err(error) if passes(&error) => return Err(NotBegun::NoRoom),
            outcome => outcome?,
        };
        let slot = dispatcher.instances.slot(machine);
        let connect = async { slot.gate.lock().await.channel().await };
        let channel = self.hold("its machine was brought up", connect).await??;
        self.limit.begin(Duration::ZERO);
        let hello =
            self.hold("its guest was greeted", channel.hello()).await?.map_err(Error::from)?;
        let mounted = dispatcher.caches.open(machine, &channel);
        self.hold("its caches were mounted", mounted).await??;
        let claim = began.elapsed();
        let began = Instant::now();
        let notes = self.send_inputs(&channel).await?;
        Ok(Ready { channel, hello, claim, inputs: began.elapsed(), notes })
    }

    async fn send_inputs(&mut self, channel: &Channel) -> std::result::Result<Notes, NotBegun> {
        let path = self.dispatcher.jobs.files.inputs(self.id);
        let Ok(file) = tokio::fs::File::open(&path).await else { return Ok(Notes::default()) };
        match self.hold("its inputs were unpacked", channel.put("/", file)).await? {
            Err(mvm_guest::Error::Guest { message, .. }) => {
                let reason = format!("its inputs cannot be unpacked: {message}");
                Err(NotBegun::Over(Outcome::because(JobState::Failed, reason)))
            }
            other => Ok(other.map_err(Error::from)?),
        }
    }

    /// Begins the command, follows it to its end, and records the outcome.
    async fn run_command(&mut self, ready: Ready) -> Result<Job> {
        let Ready { channel, hello, claim, inputs, notes } = ready;
        let log = Log::open(&self.dispatcher.jobs.files.log(self.id)).await?;
        let canceled =
            |job: &mut Job| job.end(Outcome::because(JobState::Canceled, "canceled"), self.now());
        let first = |job: &Job| first_line(job).into_iter().chain(notes.lines());
        let begun = log.length();
        let machine = self.instance.id;
        let way_up =
            self.dispatcher.records.read(|records| records.instances.get(&machine)?.way_up);
        let job = self.dispatcher.records.read(|records| records.job(self.id).cloned())?;
        let values = self.dispatcher.jobs.files.values_of(&job).await?;
        let mut job = self
            .record(|job| {
                if job.cancel_requested {
                    return canceled(job);
                }
                // The output follows the lines that this run begins with.
                let words: u64 = first(job).map(|words| log::line_length(&words)).sum();
                let kept = hello.life.map(|life| ResumePoint { life, log_from: begun + words });
                job.begin(kept, self.now())?;
                if let Some(attempt) = job.attempts.last_mut() {
                    attempt.claim_us = claim.as_micros() as u64;
                    attempt.way_up = way_up.filter(|_| attempt.from != State::Running);
                    attempt.inputs_us = inputs.as_micros() as u64;
                }
                Ok(())
            })
            .await?;
        if job.state != JobState::Running {
            return Ok(job);
        }
        let mut printer =
            Printer::new(log, self.channel.clone(), 0, self.dispatcher.jobs.stopping());
        for line in first(&job) {
            printer.print_line(&line).await;
        }
        job.spec.env = values;
        self.follow(channel, job, printer).await
    }

    /// Resumes a command that an earlier agent has begun or was about to begin.
    async fn resume_command(&mut self) -> Result<Job> {
        let mut job = self.dispatcher.records.read(|records| records.job(self.id).cloned())?;
        let attempt = job.attempts.last();
        let began_at = attempt.and_then(|attempt| attempt.began_at).unwrap_or_else(|| self.now());
        let inputs = Duration::from_micros(attempt.map_or(0, |attempt| attempt.inputs_us));
        let ran = self.now().since(began_at);
        self.limit.begin_again(ran + inputs);
        let log = Log::open(&self.dispatcher.jobs.files.log(self.id)).await?;
        let from = job.kept.as_ref().map_or(0, |kept| kept.log_from);
        let said = log.length() >= from;
        let offset = if said { log.output_since(from).await? } else { 0 };
        let length = log.length();
        let mut printer =
            Printer::new(log, self.channel.clone(), offset, self.dispatcher.jobs.stopping());
        if !said {
            // The last agent was killed before it had printed the lines that this run begins with.
            let line = first_line(&job);
            let from = length + line.as_ref().map_or(0, |line| log::line_length(line));
            job = self
                .record(|job| {
                    job.kept.iter_mut().for_each(|kept| kept.log_from = from);
                    Ok(())
                })
                .await?;
            if let Some(line) = line {
                printer.print_line(&line).await;
            }
        }
        job.spec.env = self.dispatcher.jobs.files.values_of(&job).await?;
        let outcome = match self.find_guest().await {
            Ok(Ok(channel)) => return self.follow(channel, job, printer).await,
            Ok(Err(gone)) => self.lost(&gone),
            Err(outcome) => outcome,
        };
        self.record_end(|job| job.end(outcome.clone(), self.now())).await
    }

    /// Follows the command to its end, takes its results, and records the outcome. The job's
    /// variables must have their values.
    async fn follow(
        &mut self,
        mut channel: Channel,
        job: Job,
        mut printer: Printer,
    ) -> Result<Job> {
        let slot = self.dispatcher.instances.slot(self.instance.id);
        let _session = slot.session();
        let mut outcome = self.command(&mut channel, &job, &mut printer).await;
        let began_at = job.attempts.last().and_then(|attempt| attempt.began_at);
        let took = began_at.map_or(Duration::ZERO, |began| self.now().since(began));
        let (artifacts, _arrived) = self.harvest(&channel, &job, &mut outcome, &mut printer).await;
        printer.cut().into_iter().for_each(|cut| outcome.add_reason(cut));
        let ended = self
            .record_end(|job| {
                if let Some(attempt) = job.attempts.last_mut() {
                    attempt.command_us = took.as_micros() as u64;
                }
                job.artifacts = artifacts.clone();
                let mut outcome = outcome.clone();
                if job.cancel_requested && outcome.state == JobState::Lost {
                    outcome.state = JobState::Canceled;
                }
                job.end(outcome, self.now())
            })
            .await?;
        tracing::info!(job = %self.id, state = %ended.state, "job");
        Ok(ended)
    }

    async fn record(
        &self,
        change: impl FnOnce(&mut Job) -> std::result::Result<(), Fault>,
    ) -> Result<Job> {
        self.dispatcher.jobs.record(self.id, change).await
    }

    async fn record_end(
        &self,
        change: impl Fn(&mut Job) -> std::result::Result<(), Fault>,
    ) -> Result<Job> {
        record_end(&self.dispatcher.jobs, self.id, change).await
    }

    /// Takes the job's results from its guest. The results count as arriving until the arrivals are
    /// dropped.
    async fn harvest(
        &mut self,
        channel: &Channel,
        job: &Job,
        outcome: &mut Outcome,
        printer: &mut Printer,
    ) -> (Vec<Artifact>, Vec<Arrival>) {
        if outcome.state == JobState::Lost || self.cut {
            return (Vec::new(), Vec::new());
        }
        if self.limit.canceled || outcome.state == JobState::TimedOut {
            self.limit.last_moment();
        }
        let (dispatcher, limit, instance) = (&*self.dispatcher, &mut self.limit, self.instance.id);
        let (notes, arrived) = (Notes::default(), Vec::new());
        let mut harvest =
            Harvest { dispatcher, instance, channel, limit, cut: false, notes, arrived };
        let artifacts = harvest.take(job, outcome).await;
        self.cut |= harvest.cut;
        printer.print_notes(&harvest.notes).await;
        (artifacts, harvest.arrived)
    }
}

/// Returns the line that the log of a second or later run begins with.
fn first_line(job: &Job) -> Option<String> {
    let (number, most) = (job.attempts.len(), usize::from(job.spec.retries) + 1);
    (number > 1).then(|| format!("attempt {number} of {most}"))
}
