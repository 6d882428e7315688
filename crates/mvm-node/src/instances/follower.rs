//! Follows the condition of machines, which their hypervisor may pause by itself, and carries out
//! what [`mvm_model::halt`] decides.

use super::watch::MachineWatch;
use crate::error::MachineError;
use crate::labels::of_pool;
use crate::locks::locked;
use crate::records::RecordSet;
use crate::{Error, Result};
use mvm_hypervisor::{Condition, Halt, Machine};
use mvm_model::halt::{CALM, Cause, Facts, Paused, Step, step};
use mvm_model::lease::Purpose;
use mvm_model::{InstanceId, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The period at which a paused machine is checked.
#[cfg(not(test))]
const POLL: Duration = Duration::from_secs(1);
#[cfg(test)]
const POLL: Duration = Duration::from_millis(10);
/// The factor by which tests speed up the time between two tries.
const HASTE: u32 = if cfg!(test) { 1000 } else { 1 };

impl MachineWatch {
    /// Follows a machine's condition until the machine ends. Does nothing if the machine is
    /// followed already.
    pub(crate) fn follow(self: &Arc<Self>, id: InstanceId, machine: Arc<dyn Machine>) {
        let process = machine.process();
        if !locked(&self.halted.followed).insert(process.clone()) {
            return;
        }
        let watch = self.clone();
        tokio::spawn(async move {
            let mut follower =
                Follower { watch: watch.clone(), id, machine: machine.clone(), trial: None };
            tokio::select! {
                () = follower.run() => {}
                _ = machine.exited() => {}
            }
            if follower.trial.is_some() {
                locked(&watch.halted.shown).remove(&id);
            }
            locked(&watch.halted.followed).remove(&process);
        });
    }
}

impl MachineWatch {
    /// Tells the guest the time after a pause, as after a warm resume.
    fn set_clock(self: &Arc<Self>, id: InstanceId, machine: Arc<dyn Machine>) {
        let watch = self.clone();
        tokio::spawn(async move {
            let slot = watch.slots.of(id);
            let mut live = slot.gate.lock().await;
            let runs = watch
                .records
                .read(|records| records.by_id(id).is_ok_and(|i| i.state == State::Running));
            let ours = live.machine.as_ref().is_some_and(|now| Arc::ptr_eq(now, &machine));
            if runs
                && ours
                && let Err(error) = live.greet(watch.records.clock()).await
            {
                tracing::warn!(instance = %id, "its guest was not told the time: {error}");
            }
        });
    }
}

/// The follower of one machine.
struct Follower {
    watch: Arc<MachineWatch>,
    id: InstanceId,
    machine: Arc<dyn Machine>,
    trial: Option<Trial>,
}

/// A machine that is paused, or was resumed less than [`CALM`] ago.
struct Trial {
    paused: Paused,
    began: Instant,
    tried: Instant,
    tries: u32,
    /// Since when the machine has run again; absent while it is paused.
    well: Option<Instant>,
    /// Whether the record has said that the machine is paused.
    told: bool,
}

impl Follower {
    async fn run(&mut self) {
        let mut condition = self.machine.condition();
        loop {
            let now = condition.borrow_and_update().clone();
            let again = match now {
                Condition::Fine => self.fine().await,
                Condition::Halted(halt) => self.halted(&halt).await,
            };
            tokio::select! {
                changed = condition.changed() => if changed.is_err() { return },
                () = after(again) => {}
            }
        }
    }

    /// Handles a machine that runs. Returns when to look again.
    async fn fine(&mut self) -> Option<Duration> {
        locked(&self.watch.halted.shown).remove(&self.id);
        let Some(trial) = &mut self.trial else {
            // An earlier agent may have recorded a pause: clear the record.
            return self.record(None).await.err().map(|_| POLL);
        };
        if trial.well.is_none() {
            self.watch.set_clock(self.id, self.machine.clone());
        }
        let well = *trial.well.get_or_insert_with(Instant::now);
        let (told, paused) = (trial.told, trial.paused.clone());
        // The pause may not have been recorded because the disk was full: it still gets its event.
        if !told && self.record(Some(paused)).await.is_err() {
            return Some(POLL);
        }
        if let Some(trial) = &mut self.trial {
            trial.told = true;
        }
        if self.record(None).await.is_err() {
            return Some(POLL);
        }
        let left = CALM.saturating_sub(well.elapsed());
        if left.is_zero() {
            self.trial = None;
            return None;
        }
        Some(left)
    }

    /// Handles a machine that is paused. Returns when to look again.
    async fn halted(&mut self, halt: &Halt) -> Option<Duration> {
        let cause = cause(halt);
        let facts = self.facts(cause, halt);
        if let Some(paused) = self.trial.as_ref().filter(|trial| !trial.told).map(|t| &t.paused) {
            let told = matches!(self.record(Some(paused.clone())).await, Ok(true));
            self.trial.as_mut()?.told = told;
        }
        match step(&facts) {
            Step::Wait => {}
            Step::Resume => {
                let trial = self.trial.as_mut()?;
                (trial.tries, trial.tried) = (trial.tries + 1, Instant::now());
                tracing::info!(instance = %self.id, tries = trial.tries, "goes on: {halt}");
                if let Err(error) = self.machine.retry().await {
                    tracing::warn!(instance = %self.id, "cannot go on: {error}");
                }
            }
            Step::Fail => self.fail(cause, halt, facts.paused_for).await,
        }
        Some(POLL)
    }

    /// Notes a pause, and returns the facts for the decision.
    fn facts(&mut self, cause: Cause, halt: &Halt) -> Facts {
        let over = |t: &Trial| t.well.is_some_and(|well| well.elapsed() >= CALM);
        let known = self.trial.take().filter(|t| !over(t) && t.paused.cause == cause);
        let (fresh, since) = (known.is_none(), self.watch.records.clock().now());
        let mut trial = known.unwrap_or_else(|| Trial {
            paused: Paused { cause, reason: halt.to_string(), since },
            began: Instant::now(),
            tried: Instant::now(),
            tries: 0,
            well: None,
            told: false,
        });
        if fresh || trial.well.take().is_some() {
            trial.told = false;
            self.count(&trial.paused);
        }
        locked(&self.watch.halted.shown).insert(self.id, trial.paused.clone());
        let job =
            |w: &RecordSet| w.instances.get(&self.id)?.lease.as_ref().map(|lease| lease.purpose);
        let job = self.watch.records.read(job) == Some(Purpose::Run);
        let (limit, free) = self.watch.halted.terms();
        let facts = Facts {
            cause,
            tries: trial.tries,
            since_try: trial.tried.elapsed() * HASTE,
            paused_for: trial.began.elapsed(),
            free,
            limit: job.then_some(limit),
        };
        self.trial = Some(trial);
        facts
    }

    fn count(&self, paused: &Paused) {
        tracing::warn!(instance = %self.id, "its hypervisor has paused it: {}", paused.reason);
        let pool = |w: &RecordSet| w.instances.get(&self.id).map(|instance| instance.pool.clone());
        if let Some(pool) = self.watch.records.read(pool) {
            let mut labels = of_pool(&pool);
            labels.push(("cause", paused.cause.as_str().to_owned()));
            self.watch.halted.pauses.get_or_create(&labels).inc();
        }
    }

    /// Writes to the record whether the machine is paused, which also makes an event. Returns false
    /// where the record does not say, or does not say yet, that the machine runs.
    async fn record(&self, paused: Option<Paused>) -> Result<bool> {
        let id = self.id;
        let cause = paused.as_ref().map(|paused| paused.cause);
        let same = move |w: &RecordSet| {
            let instance = w.instances.get(&id);
            let live = instance.filter(|instance| instance.state.has_process());
            live.is_none_or(|i| i.paused.as_ref().map(|paused| paused.cause) == cause)
        };
        let runs = move |w: &RecordSet| w.instances.get(&id).is_some_and(|i| i.state.has_process());
        if !self.watch.records.read(runs) {
            return Ok(false);
        }
        if self.watch.records.read(same) {
            return Ok(true);
        }
        let recorded = self.watch.records.change(|records, changes| {
            if !same(records) {
                let mut instance = records.by_id(id)?.clone();
                instance.paused = paused;
                changes.put_instance(instance);
            }
            Ok(())
        });
        recorded.await.map(|()| true).inspect_err(|error| {
            tracing::debug!(instance = %id, "its pause is not recorded yet: {error}");
        })
    }

    /// Fails an instance that cannot go on or has waited too long, and ends its machine.
    async fn fail(&self, cause: Cause, halt: &Halt, paused_for: Duration) {
        let reason = match cause {
            Cause::NoSpace => {
                format!("no_space: it was paused for {} s: {halt}", paused_for.as_secs())
            }
            Cause::IoError => format!("{halt}, time and again; see the host's kernel log"),
            Cause::Crashed | Cause::Outside => {
                let tail = self.watch.last_lines(self.id);
                format!("{halt}; last lines of its console:\n{tail}")
            }
        };
        let (watch, id) = (&self.watch, self.id);
        let slot = watch.slots.of(id);
        // No wait for this guest can succeed any more.
        let interrupt = slot.waits.interrupt(Error::from(MachineError::CannotGoOn(reason.clone())));
        let mut live = slot.gate.lock().await;
        drop(interrupt);
        let ours = live.machine.as_ref().is_some_and(|now| Arc::ptr_eq(now, &self.machine));
        if !ours || *self.machine.condition().borrow() == Condition::Fine {
            return;
        }
        // Noted before the machine ends, since its end also ends the jobs and sessions in it, which
        // report this reason.
        slot.note_failure_reason(reason.clone());
        if let Err(error) = watch.transitions.set_failed(id, &reason).await {
            tracing::error!(instance = %id, "cannot record that it failed: {error}");
            watch.slots.need_check(id);
        }
        if let Err(error) = live.kill().await {
            tracing::error!(instance = %id, "cannot end a machine: {error}");
            watch.slots.need_check(id);
        }
        watch.wake.notify();
    }
}

fn cause(halt: &Halt) -> Cause {
    match halt {
        Halt::NoSpace { .. } => Cause::NoSpace,
        Halt::IoError { .. } => Cause::IoError,
        Halt::Panicked => Cause::Crashed,
        Halt::Other(word) if matches!(&**word, "paused" | "suspended") => Cause::Outside,
        Halt::Other(_) => Cause::Crashed,
    }
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
