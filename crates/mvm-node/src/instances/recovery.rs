//! Brings the record and the machine of an instance in line: at start, after the last agent's end,
//! and whenever an operation has failed halfway.

use super::machines::Machines;
use super::slot::Live;
use super::slots::Slots;
use super::snapshot::{discard_memory, unmark};
use super::transitions::Transitions;
use crate::audit::Auditor;
use crate::error::MachineError;
use crate::records::Records;
use crate::stages::{operation, stage};
use crate::state_dir::{remove_file, remove_tree};
use crate::wake::Wake;
use crate::{Error, Result};
use mvm_hypervisor::{Machine, ProcessIdentity};
use mvm_model::accelerator::Processor;
use mvm_model::recovery::{Verdict, recover};
use mvm_model::{Actor, Instance, InstanceId, State};
use std::sync::Arc;

/// Completes or undoes operations that were left unfinished.
pub(crate) struct Recovery {
    records: Arc<Records>,
    slots: Arc<Slots>,
    transitions: Arc<Transitions>,
    machines: Arc<Machines>,
    auditor: Arc<Auditor>,
    wake: Wake,
}

impl Recovery {
    /// Makes the service for these records and machines.
    pub(crate) fn new(
        records: Arc<Records>,
        slots: Arc<Slots>,
        transitions: Arc<Transitions>,
        machines: Arc<Machines>,
        auditor: Arc<Auditor>,
        wake: Wake,
    ) -> Recovery {
        Recovery { records, slots, transitions, machines, auditor, wake }
    }

    /// Returns whether machines run that an earlier agent has started.
    pub(crate) fn has_machines(&self) -> Result<bool> {
        Ok(!self.machines.processes()?.is_empty())
    }

    /// Runs at start: completes or undoes what the last agent left unfinished, and adopts its
    /// machines. Returns the instances that there were before.
    pub(crate) async fn recover(&self) -> Result<Vec<Instance>> {
        let mut processes = self.machines.processes()?;
        let instances: Vec<Instance> =
            self.records.read(|records| records.instances.values().cloned().collect());
        for instance in &instances {
            let process = processes.remove(&instance.id);
            let slot = self.slots.of(instance.id);
            let mut live = slot.gate.lock().await;
            if let Err(error) = self.bring_in_line(instance, process, &mut live).await {
                tracing::error!(instance = %instance.reference(), "cannot recover: {error}");
                self.transitions.set_failed(instance.id, &error.to_string()).await?;
            }
        }
        for (id, process) in processes {
            tracing::info!(instance = %id, pid = process.pid, "ending a machine that has no record");
            self.machines.end_process(&process).await?;
        }
        Ok(instances)
    }

    /// Checks the instances whose last operation has failed: for example, the disk may have been
    /// full for a moment, or a process may not have ended.
    pub(crate) async fn check_marked(&self) {
        for id in self.slots.to_check() {
            let slot = self.slots.of(id);
            // If the gate is held, the operation or a later pass does the check.
            let Ok(mut live) = slot.gate.try_lock() else { continue };
            if let Err(error) = self.check_if_marked(id, &mut live).await {
                tracing::warn!(instance = %id, "cannot settle: {error}");
            }
        }
    }

    /// Compares an instance's record with its machine if its last operation has failed, and brings
    /// them in line.
    pub(super) async fn check_if_marked(&self, id: InstanceId, live: &mut Live) -> Result<()> {
        if !self.slots.needs_check(id) {
            return Ok(());
        }
        if let Ok(instance) = self.records.read(|records| records.by_id(id).cloned()) {
            let whole = live.machine.is_some() == instance.state.has_process();
            if !whole || instance.is_busy() {
                let process = self.machines.processes()?.remove(&id);
                self.bring_in_line(&instance, process, live).await?;
            }
        }
        self.slots.checked(id);
        Ok(())
    }

    /// Marks the instance for a check if `outcome` is an error, and wakes the reconcile loop, which
    /// checks it.
    pub(super) fn note_failure<T>(&self, id: InstanceId, outcome: &Result<T>) {
        if outcome.is_err() {
            self.slots.need_check(id);
            self.wake.notify();
        }
    }

    /// Destroys an instance whose gate the caller holds, on behalf of `by`.
    pub(super) async fn destroy_live(
        &self,
        live: &mut Live,
        id: InstanceId,
        by: &Actor,
    ) -> Result<()> {
        let destroyed = async {
            let (_, instance) = self.transitions.begin(id, State::Destroyed, by).await?;
            live.kill().await?;
            stage!("network", self.machines.links().disconnect_instance(&instance)).await?;
            stage!("disks", remove_tree(self.machines.files(id).dir)).await?;
            self.records
                .change(|_, changes| {
                    changes.remove_instance(id);
                    Ok(())
                })
                .await
        };
        operation("destroy", id, destroyed).await?;
        self.slots.forget(id);
        self.wake.notify();
        Ok(())
    }

    async fn bring_in_line(
        &self,
        instance: &Instance,
        process: Option<ProcessIdentity>,
        live: &mut Live,
    ) -> Result<()> {
        let files = self.machines.files(instance.id);
        // A killed agent may have left an unfinished snapshot.
        remove_file(&files.snapshot_part())?;
        let verdict = recover(instance, process.is_some(), self.machines.snapshot_of(instance));
        tracing::debug!(instance = %instance.reference(), ?verdict, "recover");
        match verdict {
            Verdict::Adopt(state) => {
                let outcome = async {
                    let adopted = match (live.machine.take(), &process) {
                        (Some(machine), _) => Some(machine),
                        (None, Some(process)) => self.adopt(instance, process).await?,
                        (None, None) => None,
                    };
                    let machine = adopted.ok_or(MachineError::EndedAtStart)?;
                    discard_memory(instance, &files)?;
                    self.take_over(instance, machine, state, live).await
                };
                let outcome = outcome.await;
                match outcome {
                    // The guest may not have run yet. Then the instance remains asleep.
                    Err(error) if files.resuming().exists() => {
                        tracing::warn!(instance = %instance.reference(), "not resumed: {error}");
                        self.end_at_once(process, live).await?;
                        Box::pin(self.bring_in_line(instance, None, live)).await
                    }
                    Err(Error::Machine(ended @ MachineError::EndedAtStart)) => {
                        self.transitions.set_failed(instance.id, &ended.to_string()).await
                    }
                    outcome => outcome,
                }
            }
            Verdict::Settle(state) => {
                self.end(process, live).await?;
                match state {
                    State::Sleeping => unmark(&files)?,
                    _ => {
                        remove_file(&files.snapshot())?;
                        remove_file(&files.resuming())?;
                        remove_file(&files.memory())?;
                    }
                }
                self.set_recovered(instance.id, state, instance.processor.clone()).await
            }
            Verdict::Destroy => {
                self.end(process, live).await?;
                let destroyed = self.destroy_live(live, instance.id, &Actor::Force);
                self.auditor.as_agent_on("instance.destroy", instance.id, destroyed).await
            }
            Verdict::Fail(reason) => {
                self.end(process, live).await?;
                remove_file(&files.resuming())?;
                self.records.update(instance.id, |instance| instance.goal = None).await?;
                self.transitions.set_failed(instance.id, &reason).await
            }
        }
    }

    async fn adopt(
        &self,
        instance: &Instance,
        process: &ProcessIdentity,
    ) -> Result<Option<Arc<dyn Machine>>> {
        let tenant = self.records.read(|records| records.tenant(&instance.pool.tenant).cloned())?;
        let spec = self.machines.spec(&tenant, instance)?;
        self.machines.hypervisor().adopt(&spec, process).await.map_err(Error::from)
    }

    /// Puts an adopted machine into its slot, with its vCPUs running or paused as the record says.
    async fn take_over(
        &self,
        instance: &Instance,
        machine: Arc<dyn Machine>,
        state: State,
        live: &mut Live,
    ) -> Result<()> {
        match state {
            State::Running => machine.resume().await?,
            _ => machine.pause().await?,
        }
        live.machine = Some(machine.clone());
        self.machines.watch(instance.id, machine);
        remove_file(&self.machines.files(instance.id).resuming())?;
        // An earlier version may have recorded none.
        let processor = live.processor().or_else(|| instance.processor.clone());
        self.set_recovered(instance.id, state, processor).await?;
        if state == State::Running {
            // The last agent may have been killed after the resume and before the guest's clock was
            // set.
            let (slot, id) = (self.slots.of(instance.id), instance.id);
            let clock = self.records.clock().clone();
            tokio::spawn(async move {
                let mut live = slot.gate.lock().await;
                if live.machine.is_some()
                    && let Err(error) = live.greet(&clock).await
                {
                    tracing::warn!(instance = %id, "the guest of an adopted machine: {error}");
                }
            });
        }
        Ok(())
    }

    /// Kills a process that could not be adopted, before it carries out commands that it has
    /// received already.
    async fn end_at_once(&self, process: Option<ProcessIdentity>, live: &mut Live) -> Result<()> {
        let process = live.process().map(|machine| machine.process()).or(process);
        if let Some(process) = process {
            self.machines.end_process(&process).await?;
        }
        live.kill().await
    }

    async fn end(&self, process: Option<ProcessIdentity>, live: &mut Live) -> Result<()> {
        match process {
            _ if live.process().is_some() => live.kill().await,
            Some(process) => self.machines.end_process(&process).await,
            None => Ok(()),
        }
    }

    async fn set_recovered(
        &self,
        id: InstanceId,
        state: State,
        processor: Option<Processor>,
    ) -> Result<()> {
        self.records
            .update(id, |instance| {
                (instance.goal, instance.processor) = (None, processor);
                let (since, reason, paused) = match instance.state == state {
                    true => (instance.state_since, instance.reason.take(), instance.paused.take()),
                    false => (self.records.clock().now(), None, None),
                };
                instance.reach(state, since);
                // A pause may still last: the machine's follower finds out.
                (instance.reason, instance.paused) = (reason, paused);
            })
            .await
    }
}
