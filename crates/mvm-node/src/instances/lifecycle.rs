//! The operations on an instance: start, warm, sleep, wake, stop and destroy.
//!
//! Each operation holds the instance's gate. Its intent is durable before the first side effect,
//! and its outcome after the last. The two exceptions are resume and pause of a warm machine, which
//! are idempotent: there the record is written once (before the resume, after the pause), and
//! recovery repeats the call.

use super::lingering::Lingering;
use super::machines::Machines;
use super::recovery::Recovery;
use super::slot::{Live, Slot};
use super::slots::Slots;
use super::snapshot::discard_memory;
use super::transitions::{Transitions, admit};
use crate::deadlines;
use crate::records::Records;
use crate::stages::operation;
use crate::state_dir::{Files, remove_file};
use crate::templates::{Template, Templates};
use crate::{Error, Result};
use mvm_hypervisor::OwnMemory;
use mvm_model::route::{Facts, Step, route};
use mvm_model::{Actor, Instance, InstanceId, State, WayUp};
use std::sync::Arc;

/// The instances of the node: moves them between states, and destroys them.
pub(crate) struct Instances {
    pub(super) records: Arc<Records>,
    pub(super) slots: Arc<Slots>,
    pub(super) transitions: Arc<Transitions>,
    pub(super) machines: Arc<Machines>,
    templates: Arc<Templates>,
    pub(super) lingering: Arc<Lingering>,
    pub(super) recovery: Arc<Recovery>,
}

impl Instances {
    /// Makes the service for the instances of these records.
    pub(crate) fn new(
        records: Arc<Records>,
        slots: Arc<Slots>,
        transitions: Arc<Transitions>,
        machines: Arc<Machines>,
        templates: Arc<Templates>,
        lingering: Arc<Lingering>,
        recovery: Arc<Recovery>,
    ) -> Instances {
        Instances { records, slots, transitions, machines, templates, lingering, recovery }
    }

    /// Returns the slot of an instance.
    pub(crate) fn slot(&self, id: InstanceId) -> Arc<Slot> {
        self.slots.of(id)
    }

    /// Returns the files of an instance.
    pub(crate) fn files(&self, id: InstanceId) -> Files {
        self.machines.files(id)
    }

    /// Returns the service that records transitions.
    pub(crate) fn transitions(&self) -> &Transitions {
        &self.transitions
    }

    /// Returns an error if the disk is too full for a machine to be leased.
    pub(crate) fn check_space(&self) -> Result<()> {
        self.machines.check_space()
    }

    /// Brings an instance to the state `to` from any state, through `running` where necessary, on
    /// behalf of `by`. At every step, an action that the lease forbids is refused before it has an
    /// effect. Returns the state that the instance came from.
    pub async fn transition_to(&self, id: InstanceId, to: State, by: &Actor) -> Result<State> {
        if to == State::Destroyed {
            let from = self.records.read(|records| records.by_id(id).map(|i| i.state))?;
            return self.destroy(id, by).await.map(|()| from);
        }
        let slot = self.slots.of(id);
        let mut live = slot.gate.lock().await;
        if let Some(why) = slot.waits.interrupted() {
            return Err(why);
        }
        self.recovery.check_if_marked(id, &mut live).await?;
        let outcome = self.perform(&mut live, id, to, by).await;
        self.recovery.note_failure(id, &outcome);
        // Once an interrupt is raised, the operation's error is only a consequence of it: report
        // the interrupt.
        outcome.map_err(|error| slot.waits.interrupted().unwrap_or(error))
    }

    async fn perform(
        &self,
        live: &mut Live,
        id: InstanceId,
        to: State,
        by: &Actor,
    ) -> Result<State> {
        let began = std::time::Instant::now();
        let (from, dormant) =
            self.records.read(|records| records.by_id(id).map(|i| (i.state, i.dormant)))?;
        let template = matches!((from, to), (State::Created, State::Sleeping))
            && self.templates.for_instance(id).await?.is_some();
        let way = route(from, to, Facts { dormant, template })?;
        let comes_up = |from, to| {
            matches!((from, to), (State::Warm | State::Sleeping, State::Running | State::Warm))
        };
        if from != to && comes_up(from, to) {
            // On a full disk the machine could not go on, so the instance stays in its state.
            self.machines.check_space()?;
        }
        if matches!(to, State::Running | State::Warm) {
            self.machines.links().ensure_rules().await?;
        }
        for step in way {
            self.perform_step(step, live, id, by).await?;
        }
        if from != to {
            self.records.events().moved(from, to, began.elapsed());
        }
        Ok(from)
    }

    /// Carries out one step of the route.
    async fn perform_step(
        &self,
        step: Step,
        live: &mut Live,
        id: InstanceId,
        by: &Actor,
    ) -> Result<()> {
        match step {
            Step::Stay(state) => self.transitions.stay(id, state, by).await,
            Step::Resume => operation("resume", id, self.resume(live, id, by)).await,
            Step::Pause => operation("pause", id, self.pause(live, id, by)).await,
            Step::Sleep => operation("sleep", id, self.sleep(live, id, by)).await,
            Step::Clone(to) => {
                operation("clone", id, self.clone_from_template(live, id, to, by)).await
            }
            Step::Wake(to) => operation("wake", id, self.wake(live, id, to, by)).await,
            Step::Stop => operation("stop", id, self.stop(live, id, by)).await,
            Step::Boot => self.boot(live, id, by).await,
            Step::Park => self.park_as_clone(id, by).await,
        }
    }

    /// Destroys an instance on behalf of `by`: process, tap, disks and record. Idempotent. Other
    /// operations on the instance are interrupted rather than waited for, if `by` may destroy it.
    pub async fn destroy(&self, id: InstanceId, by: &Actor) -> Result<()> {
        let slot = self.slots.of(id);
        let (mut live, _interrupt) = self.seize(&slot, id, by).await;
        if self.records.read(|records| !records.instances.contains_key(&id)) {
            self.slots.forget(id);
            return Ok(());
        }
        let outcome = self.recovery.destroy_live(&mut live, id, by).await;
        self.recovery.note_failure(id, &outcome);
        outcome
    }

    /// Clones the pool's template, if there is one and the instance has no disks of its own yet;
    /// otherwise boots the machine.
    async fn boot(&self, live: &mut Live, id: InstanceId, by: &Actor) -> Result<()> {
        let template = self.templates.for_instance(id).await?;
        let kind = if template.is_some() { "clone" } else { "boot" };
        let start = async {
            let outcome = self.clone_or_boot(live, id, State::Running, template, by).await;
            self.transitions.conclude(id, live.processor(), outcome).await
        };
        operation(kind, id, start).await
    }

    async fn clone_or_boot(
        &self,
        live: &mut Live,
        id: InstanceId,
        to: State,
        template: Option<Template>,
        by: &Actor,
    ) -> Result<()> {
        let key = template.as_ref().map(|template| template.key.clone());
        let way = if key.is_some() { WayUp::Cloned } else { WayUp::Booted };
        let note = |i: &mut Instance| (i.template, i.way_up) = (key, Some(way));
        let (tenant, instance) = self.transitions.begin_with(id, to, by, note).await?;
        match template {
            Some(template) => {
                let outcome = self.machines.clone_of(live, &tenant, &instance, &template).await;
                self.templates.note_clone_end(&instance.pool, &template, &outcome).await;
                outcome
            }
            None => {
                let pool = self.records.read(|records| records.pools.get(&instance.pool).cloned());
                pool.iter()
                    .filter(|_| instance.is_blank())
                    .for_each(|pool| self.templates.count_boot(pool));
                self.machines.boot(live, &tenant, &instance).await
            }
        }
    }

    /// Makes a new instance a sleeper that has nothing of its own: a wake clones it from the
    /// template.
    async fn park_as_clone(&self, id: InstanceId, by: &Actor) -> Result<()> {
        self.transitions
            .record_transition(id, State::Sleeping, by, |instance| instance.dormant = true)
            .await
    }

    /// Brings a sleeper that has never run to running or warm. On an error, the instance remains
    /// asleep.
    async fn clone_from_template(
        &self,
        live: &mut Live,
        id: InstanceId,
        to: State,
        by: &Actor,
    ) -> Result<()> {
        let template = self.templates.for_instance(id).await?;
        let outcome = async {
            self.clone_or_boot(live, id, to, template, by).await?;
            if to == State::Warm {
                live.machine()?.pause().await?;
            }
            Ok(())
        };
        match outcome.await {
            Ok(()) => {
                let processor = live.processor();
                let up = |instance: &mut Instance| instance.processor = processor;
                self.transitions.arrive_up(id, to, by, up).await
            }
            Err(error) => {
                live.kill().await?;
                self.transitions.abandon(id).await?;
                Err(error)
            }
        }
    }

    /// Brings a warm instance to running: one durable record, one hypervisor call and one guest
    /// round trip.
    async fn resume(&self, live: &mut Live, id: InstanceId, by: &Actor) -> Result<()> {
        let machine = live.machine()?;
        self.transitions
            .record_transition(id, State::Running, by, |i| i.way_up = Some(WayUp::Warm))
            .await?;
        self.perform_resume(live, id, &machine).await
    }

    /// Brings a running instance to warm.
    async fn pause(&self, live: &mut Live, id: InstanceId, by: &Actor) -> Result<()> {
        let machine = live.machine()?;
        // The channel is opened now so that it is ready when the machine is woken.
        live.channel().await?;
        self.records.read(|records| admit(records, id, State::Warm, by).map(|_| ()))?;
        machine.pause().await?;
        // No intent was recorded, so the machine may have been leased in the meantime.
        let outcome = self.transitions.record_transition(id, State::Warm, by, |_| {}).await;
        if outcome.is_err() {
            machine.resume().await?;
        }
        outcome
    }

    /// Brings a running or warm instance to sleeping. On an error, such as a full disk, the machine
    /// remains as it was.
    async fn sleep(&self, live: &mut Live, id: InstanceId, by: &Actor) -> Result<()> {
        let machine = live.machine()?;
        let spare =
            self.records.read(|records| records.by_id(id).map(Instance::is_untouched_clone))?;
        if spare {
            // An unused clone needs no snapshot: it can be cloned from the template again.
            self.transitions
                .begin_with(id, State::Sleeping, by, |instance| instance.dormant = true)
                .await?;
            live.kill().await?;
            return self.transitions.complete(id, State::Sleeping, by).await;
        }
        // A machine that could not be woken here is not put to sleep.
        machine.check_restorable()?;
        let (_, instance) = self.transitions.begin(id, State::Sleeping, by).await?;
        let was_running = instance.state == State::Running;
        let files = self.machines.files(id);
        live.channel = None;
        let own = instance.template.as_ref().map(|template| OwnMemory {
            file: files.memory(),
            template: self.templates.files(template).snapshot(),
        });
        let outcome = async {
            machine.pause().await?;
            machine.snapshot(&files.snapshot(), own.as_ref()).await.map_err(Error::from)
        };
        if let Err(error) = outcome.await {
            remove_file(&files.snapshot())?;
            discard_memory(&instance, &files)?;
            if was_running {
                machine.resume().await?;
            }
            self.transitions.abandon(id).await?;
            return Err(error);
        }
        // From here on, the snapshot is the machine's state: the end of the process loses nothing.
        self.lingering.retain_process(live, &instance).await?;
        self.transitions.complete(id, State::Sleeping, by).await
    }

    /// Brings an instance to stopped. The guest shuts itself down, so that its disks are
    /// consistent.
    async fn stop(&self, live: &mut Live, id: InstanceId, by: &Actor) -> Result<()> {
        let (state, dormant) =
            self.records.read(|records| records.by_id(id).map(|i| (i.state, i.dormant)))?;
        match state {
            State::Sleeping if dormant => {
                return self.transitions.record_transition(id, State::Stopped, by, |_| {}).await;
            }
            State::Sleeping => self.wake(live, id, State::Running, by).await?,
            State::Warm => self.resume(live, id, by).await?,
            _ => {}
        }
        self.transitions.begin(id, State::Stopped, by).await?;
        if let (Ok(channel), Some(machine)) = (live.channel().await, live.machine.clone()) {
            let polite = async {
                let _ = channel.shutdown().await;
                machine.exited().await;
                Ok(())
            };
            if let Err(error) = live.waits.guest(deadlines::SHUTDOWN, polite).await {
                tracing::warn!(instance = %id, "{error}");
            }
        }
        live.kill().await?;
        remove_file(&self.machines.files(id).memory())?;
        self.transitions.complete(id, State::Stopped, by).await
    }
}
