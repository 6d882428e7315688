//! Watches machines that are up: records their end, and follows their pauses (`follower.rs`).

use super::halted::Halted;
use super::slot::{Slot, died};
use super::slots::Slots;
use super::transitions::Transitions;
use crate::error::NOTHING;
use crate::records::Records;
use crate::state_dir::StateDir;
use crate::wake::Wake;
use mvm_clock::Clock;
use mvm_hypervisor::Machine;
use mvm_model::InstanceId;
use std::path::Path;
use std::sync::Arc;

/// How many of a console's last lines go into the reason of a machine's end.
const LINES: usize = 15;

/// Watches machines that are up.
pub(crate) struct MachineWatch {
    pub(super) records: Arc<Records>,
    pub(super) slots: Arc<Slots>,
    pub(super) transitions: Arc<Transitions>,
    pub(super) halted: Arc<Halted>,
    state_dir: StateDir,
    pub(super) wake: Wake,
}

impl MachineWatch {
    /// Makes the service for the machines of this state directory.
    pub(crate) fn new(
        records: Arc<Records>,
        slots: Arc<Slots>,
        transitions: Arc<Transitions>,
        halted: Arc<Halted>,
        state_dir: StateDir,
        wake: Wake,
    ) -> MachineWatch {
        MachineWatch { records, slots, transitions, halted, state_dir, wake }
    }

    /// Returns the node's clock.
    pub(super) fn clock(&self) -> &Clock {
        self.records.clock()
    }

    /// Watches a machine, and records its end if the agent did not end it.
    pub(crate) fn begin(self: &Arc<Self>, id: InstanceId, machine: Arc<dyn Machine>) {
        self.follow(id, machine.clone());
        let watch = self.clone();
        tokio::spawn(async move {
            let exit = machine.exited().await;
            let slot: Arc<Slot> = watch.slots.of(id);
            let mut live = slot.gate.lock().await;
            // An operation that ends the machine on purpose takes it out of its slot first.
            let ours = live.machine.as_ref().is_some_and(|now| Arc::ptr_eq(now, &machine));
            if !ours {
                return;
            }
            live.machine = None;
            live.channel = None;
            let outcome = match exit.clean {
                true => watch.transitions.set_ended(id, &exit.reason).await,
                false => watch.transitions.set_failed(id, &died(exit.clone()).to_string()).await,
            };
            if let Err(error) = outcome {
                tracing::error!(instance = %id, "cannot record the end of a machine: {error}");
            }
            if let Err(error) = machine.kill().await {
                tracing::error!(instance = %id, "{error}");
            }
            watch.wake.notify();
        });
    }

    /// Returns the last lines of an instance's console.
    pub(super) fn last_lines(&self, id: InstanceId) -> String {
        last_lines(&self.state_dir.files(id).console(), LINES)
    }
}

/// Returns the last lines of a log, or a text that says that it is empty.
fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.len() {
        0 => NOTHING.to_owned(),
        all => lines[all.saturating_sub(count)..].join("\n"),
    }
}
