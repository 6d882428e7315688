//! Machines that their hypervisor has paused by itself: shown, told, and let go on when they can.
//!
//! A task a machine follows its condition, and carries out what [`mvm_model::halt`] decides. What is
//! shown is in memory, since on a full disk nothing can be recorded; the record and its event follow
//! as soon as there is room.

#[cfg(test)]
mod tests;

use crate::Result;
use crate::boot::last_lines;
use crate::labels::{Labels, of_pool};
use crate::locks::locked;
use crate::node::Node;
use crate::now;
use crate::records::World;
use mvm_api::Problem;
use mvm_hypervisor::{Condition, Halt, Machine, ProcessIdentity};
use mvm_model::halt::{CALM, Cause, Facts, Paused, Step, step};
use mvm_model::lease::Purpose;
use mvm_model::{InstanceId, Name, State};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked whether a paused machine can go on.
#[cfg(not(test))]
const POLL: Duration = Duration::from_secs(1);
#[cfg(test)]
const POLL: Duration = Duration::from_millis(10);
/// How much faster the time between two tries passes in tests.
const HASTE: u32 = if cfg!(test) { 1000 } else { 1 };

/// How much room the disk of the machines has, in MiB, where it can be said.
pub(crate) type Room = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// How long a job's machine may be without space, and what says how much there is.
type Terms = (Duration, Room);

/// What is known of paused machines, in memory only.
pub(crate) struct Halted {
    terms: Lock<Terms>,
    shown: Lock<HashMap<InstanceId, Paused>>,
    /// Machines that were given up, and why, for as long as their instances are there.
    given_up: Lock<HashMap<InstanceId, String>>,
    followed: Lock<HashSet<ProcessIdentity>>,
    pauses: Family<Labels, Counter>,
}

impl Halted {
    pub(crate) fn new(limit: Duration, room: Room) -> Halted {
        Halted {
            terms: Lock::new((limit, room)),
            shown: Lock::default(),
            given_up: Lock::default(),
            followed: Lock::default(),
            pauses: Family::default(),
        }
    }

    /// Why the machine of this instance is paused, if it is.
    pub(crate) fn paused(&self, id: InstanceId) -> Option<Paused> {
        locked(&self.shown).get(&id).cloned()
    }

    /// Why the machine of this instance was ended, if it was because of a pause.
    pub(crate) fn given_up(&self, id: InstanceId) -> Option<String> {
        locked(&self.given_up).get(&id).cloned()
    }

    /// The instance is gone.
    pub(crate) fn forget(&self, id: InstanceId) {
        locked(&self.given_up).remove(&id);
    }

    /// Registers how often machines were paused.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Machines that their hypervisor has paused by itself, by cause";
        registry.register("pauses", what, self.pauses.clone());
    }

    /// The machines that are paused now.
    pub(crate) fn gauge(&self, world: &World, only: Option<&Name>) -> Family<Labels, Gauge> {
        let gauge: Family<Labels, Gauge> = Family::default();
        for (id, paused) in locked(&self.shown).iter() {
            let Some(instance) = world.instances.get(id) else { continue };
            if only.is_none_or(|tenant| instance.pool.tenant == *tenant) {
                let mut labels = of_pool(&instance.pool);
                labels.push(("cause", paused.cause.as_str().to_owned()));
                gauge.get_or_create(&labels).inc();
            }
        }
        gauge
    }

    /// Tests have a disk of their own, and less time.
    #[cfg(test)]
    pub(crate) fn set_terms(&self, limit: Duration, room: Room) {
        *locked(&self.terms) = (limit, room);
    }

    fn terms(&self) -> (Duration, u64) {
        let (limit, room) = locked(&self.terms).clone();
        (limit, room().unwrap_or(0))
    }
}

impl Node {
    /// Follows a machine's condition until it ends. One that is followed already has its follower.
    pub(crate) fn follow(self: &Arc<Self>, id: InstanceId, machine: Arc<dyn Machine>) {
        let process = machine.process();
        if !locked(&self.halted.followed).insert(process.clone()) {
            return;
        }
        let node = self.clone();
        tokio::spawn(async move {
            let mut follower =
                Follower { node: node.clone(), id, machine: machine.clone(), trial: None };
            tokio::select! {
                () = follower.run() => {}
                _ = machine.exited() => {}
            }
            if follower.trial.is_some() {
                locked(&node.halted.shown).remove(&id);
            }
            locked(&node.halted.followed).remove(&process);
        });
    }
}

impl Node {
    /// A guest that has stood still is told what time it is, as one is that was warm.
    fn set_clock(self: &Arc<Self>, id: InstanceId, machine: Arc<dyn Machine>) {
        let node = self.clone();
        tokio::spawn(async move {
            let slot = node.slot(id);
            let mut live = slot.gate.lock().await;
            let runs =
                node.records.read(|world| world.by_id(id).is_ok_and(|i| i.state == State::Running));
            let ours = live.machine.as_ref().is_some_and(|now| Arc::ptr_eq(now, &machine));
            if runs
                && ours
                && let Err(problem) = node.greet(&mut live).await
            {
                tracing::warn!(instance = %id, "its guest was not told the time: {problem}");
            }
        });
    }
}

/// What is said to whoever waits for the guest of a machine that is paused for want of space.
pub(crate) fn held_back(machine: &Arc<dyn Machine>) -> Option<Problem> {
    let condition = machine.condition().borrow().clone();
    let Condition::Halted(halt @ Halt::NoSpace { .. }) = condition else { return None };
    let what = format!("the machine is paused: {halt}; it goes on by itself when there is room");
    Some(Problem::new(507, "no_space", what).hint("free some space on the host's disk"))
}

/// Who follows one machine.
struct Follower {
    node: Arc<Node>,
    id: InstanceId,
    machine: Arc<dyn Machine>,
    trial: Option<Trial>,
}

/// A machine that is paused, or was a moment ago.
struct Trial {
    paused: Paused,
    began: Instant,
    tried: Instant,
    tries: u32,
    /// Since when it has gone on.
    well: Option<Instant>,
    /// The record has said that it is paused.
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

    /// It does what it was told; gives when to look again.
    async fn fine(&mut self) -> Option<Duration> {
        locked(&self.node.halted.shown).remove(&self.id);
        let Some(trial) = &mut self.trial else {
            // What an earlier agent has seen.
            return self.record(None).await.err().map(|_| POLL);
        };
        if trial.well.is_none() {
            self.node.set_clock(self.id, self.machine.clone());
        }
        let well = *trial.well.get_or_insert_with(Instant::now);
        let (told, paused) = (trial.told, trial.paused.clone());
        // No pause is kept from the events because the disk was full while it lasted.
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

    /// It is paused; gives when to look again.
    async fn halted(&mut self, halt: &Halt) -> Option<Duration> {
        let cause = cause(halt);
        let facts = self.facts(cause, halt).await;
        if let Some(paused) = self.trial.as_ref().filter(|trial| !trial.told).map(|t| &t.paused) {
            let told = self.record(Some(paused.clone())).await == Ok(true);
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
            Step::Fail => self.give_up(cause, halt, facts.paused_for).await,
        }
        Some(POLL)
    }

    /// Takes note of a pause, and gives what there is to decide by.
    async fn facts(&mut self, cause: Cause, halt: &Halt) -> Facts {
        let over = |t: &Trial| t.well.is_some_and(|well| well.elapsed() >= CALM);
        let known = self.trial.take().filter(|t| !over(t) && t.paused.cause == cause);
        let fresh = known.is_none();
        let mut trial = known.unwrap_or_else(|| Trial {
            paused: Paused { cause, reason: halt.to_string(), since: now() },
            began: Instant::now(),
            tried: Instant::now(),
            tries: 0,
            well: None,
            told: false,
        });
        if fresh || trial.well.take().is_some() {
            trial.told = false;
            self.count(&trial.paused).await;
        }
        locked(&self.node.halted.shown).insert(self.id, trial.paused.clone());
        let job = |w: &World| w.instances.get(&self.id)?.lease.as_ref().map(|lease| lease.purpose);
        let job = self.node.records.read(job) == Some(Purpose::Run);
        let (limit, free_mib) = self.node.halted.terms();
        let facts = Facts {
            cause,
            tries: trial.tries,
            since_try: trial.tried.elapsed() * HASTE,
            paused_for: trial.began.elapsed(),
            free_mib,
            limit: job.then_some(limit),
        };
        self.trial = Some(trial);
        facts
    }

    async fn count(&self, paused: &Paused) {
        tracing::warn!(instance = %self.id, "its hypervisor has paused it: {}", paused.reason);
        let pool = |w: &World| w.instances.get(&self.id).map(|instance| instance.pool.clone());
        if let Some(pool) = self.node.records.read(pool) {
            let mut labels = of_pool(&pool);
            labels.push(("cause", paused.cause.as_str().to_owned()));
            self.node.halted.pauses.get_or_create(&labels).inc();
        }
    }

    /// Has the record, and so an event, say whether it is paused. False: the record does not say that
    /// it runs, or not yet.
    async fn record(&self, paused: Option<Paused>) -> Result<bool> {
        let id = self.id;
        let cause = paused.as_ref().map(|paused| paused.cause);
        let same = move |w: &World| {
            let instance = w.instances.get(&id);
            let live = instance.filter(|instance| instance.state.has_process());
            live.is_none_or(|i| i.paused.as_ref().map(|paused| paused.cause) == cause)
        };
        let runs = move |w: &World| w.instances.get(&id).is_some_and(|i| i.state.has_process());
        if !self.node.records.read(runs) {
            return Ok(false);
        }
        if self.node.records.read(same) {
            return Ok(true);
        }
        let recorded = self.node.records.change(|world, changes| {
            if !same(world) {
                let mut instance = world.by_id(id)?.clone();
                instance.paused = paused;
                changes.put_instance(instance);
            }
            Ok(())
        });
        recorded.await.map(|()| true).inspect_err(|problem| {
            tracing::debug!(instance = %id, "its pause is not recorded yet: {problem}");
        })
    }

    /// It cannot go on, or has waited for too long: it fails, and its machine is ended.
    async fn give_up(&self, cause: Cause, halt: &Halt, paused_for: Duration) {
        let reason = match cause {
            Cause::NoSpace => {
                format!("no_space: it was paused for {} s: {halt}", paused_for.as_secs())
            }
            Cause::IoError => format!("{halt}, time and again; see the host's kernel log"),
            Cause::Crashed | Cause::Outside => {
                let console = self.node.parts.root.files(self.id).console();
                format!("{halt}; last lines of its console:\n{}", last_lines(&console, 15))
            }
        };
        let (node, id) = (&self.node, self.id);
        let slot = node.slot(id);
        // Whoever waits for this guest waits in vain.
        let interrupt = slot.waits.interrupt(Problem::new(500, "machine_died", &reason));
        let mut live = slot.gate.lock().await;
        drop(interrupt);
        let ours = live.machine.as_ref().is_some_and(|now| Arc::ptr_eq(now, &self.machine));
        if !ours || *self.machine.condition().borrow() == Condition::Fine {
            return;
        }
        // Known before its end is, which ends whatever runs in it.
        locked(&node.halted.given_up).insert(id, reason.clone());
        if let Err(problem) = node.set_failed(id, &reason).await {
            tracing::error!(instance = %id, "cannot record that it failed: {problem}");
            node.unsettle(id);
        }
        if let Err(problem) = node.kill(&mut live).await {
            tracing::error!(instance = %id, "cannot end a machine: {problem}");
            node.unsettle(id);
        }
        node.wake.notify();
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
