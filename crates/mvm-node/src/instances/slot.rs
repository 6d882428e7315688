//! One slot per instance: only the holder of its gate may change the machine.

use super::interrupt::Waits;
use crate::deadlines;
use crate::error::MachineError;
use crate::locks::locked;
use crate::stages::stage;
use crate::{Error, Result};
use mvm_clock::Clock;
use mvm_guest::channel::Channel;
use mvm_guest::protocol::Adopt;
use mvm_hypervisor::{Exit, Machine};
use mvm_model::accelerator::Processor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Lock};
use tokio::sync::Mutex;

/// The machine behind an instance, if there is one.
#[derive(Default)]
pub struct Live {
    /// The hypervisor's process.
    pub machine: Option<Arc<dyn Machine>>,
    /// The open channel to the guest's agent; kept while the machine is warm.
    pub channel: Option<Channel>,
    /// The lingering process of a sleeping instance.
    pub lingering: Option<Arc<dyn Machine>>,
    /// The interrupts of waits for the guest.
    pub(crate) waits: Arc<Waits>,
}

impl Live {
    /// Returns the process, whether it runs a machine or lingers.
    pub fn process(&self) -> Option<&Arc<dyn Machine>> {
        self.machine.as_ref().or(self.lingering.as_ref())
    }

    /// Returns whether a sleeping instance still has its process.
    pub fn lingers(&self) -> bool {
        self.lingering.is_some()
    }

    /// Returns the processor of the machine, if there is one and its driver knows it.
    pub(crate) fn processor(&self) -> Option<Processor> {
        self.machine.as_ref()?.processor()
    }

    /// Returns the machine, or an error if the instance has none.
    pub(crate) fn machine(&self) -> Result<Arc<dyn Machine>> {
        self.machine.clone().ok_or_else(|| MachineError::NoMachine.into())
    }

    /// Returns the open channel to a running guest. Connects first where there is none, as after a
    /// restart of the agent.
    pub(crate) async fn channel(&mut self) -> Result<Channel> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| !channel.is_closed()) {
            return Ok(channel.clone());
        }
        let machine = self.machine.as_ref().ok_or(MachineError::NotRunning)?;
        let (socket, window) = (machine.channel(), machine.window());
        let until = deadlines::RESUME.begin();
        let connecting = Channel::connect(&socket, window.as_deref(), until.left());
        let connecting = self.waits.guest(until, connecting);
        let channel = tokio::select! {
            channel = connecting => channel?,
            exit = machine.exited() => return Err(died(exit)),
        };
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// Makes one round trip to the guest after a resume, and sets the guest's clock by this one.
    pub(crate) async fn greet(&mut self, clock: &Clock) -> Result<()> {
        let until = deadlines::RESUME.begin();
        let channel = self.channel().await?;
        let adopt = Adopt { wall_clock_ns: Some(wall_clock_ns(clock)), ..Adopt::default() };
        stage!("adopt", self.waits.guest(until, channel.adopt(&adopt))).await
    }

    /// Ends the machine and the lingering process. Idempotent. A process that cannot be ended
    /// remains in its slot.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.channel = None;
        for slot in [&mut self.machine, &mut self.lingering] {
            let Some(machine) = slot.take() else { continue };
            if let Err(error) = machine.kill().await {
                *slot = Some(machine);
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// The agent's memory of one instance.
pub struct Slot {
    /// Held for the whole of a transition.
    pub gate: Arc<Mutex<Live>>,
    /// The interrupts of the operation that holds the gate; the same as in [`Live`].
    pub(crate) waits: Arc<Waits>,
    sessions: AtomicUsize,
    /// Why the agent itself has ended the machine.
    end: Lock<Option<Arc<Error>>>,
    /// Why the machine was ended, if it was paused and could not go on.
    failure_reason: Lock<Option<String>>,
}

impl Default for Slot {
    fn default() -> Self {
        let live = Live::default();
        let waits = live.waits.clone();
        let (end, failure_reason) = (Lock::default(), Lock::default());
        let gate = Arc::new(Mutex::new(live));
        Slot { gate, waits, sessions: AtomicUsize::new(0), end, failure_reason }
    }
}

impl Slot {
    /// Notes the reason for which the agent is about to end the machine. The machine's users are
    /// told it.
    pub(crate) fn note_end(&self, why: Arc<Error>) {
        *locked(&self.end) = Some(why);
    }

    /// Returns why the agent has ended the machine, if it has.
    pub(crate) fn why_ended(&self) -> Option<Arc<Error>> {
        locked(&self.end).clone()
    }

    /// Notes that the machine is about to be ended because it was paused and cannot go on.
    pub(crate) fn note_failure_reason(&self, why: String) {
        *locked(&self.failure_reason) = Some(why);
    }

    /// Returns why the machine was ended, if it was paused and could not go on.
    pub(crate) fn failure_reason(&self) -> Option<String> {
        locked(&self.failure_reason).clone()
    }

    /// Returns the number of open streams (exec, SSH and copies).
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Counts a session until the guard is dropped.
    pub fn session(self: &Arc<Self>) -> Session {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Session(self.clone())
    }
}

/// An open session on an instance.
pub struct Session(Arc<Slot>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the error of a machine that ended by itself, with the last lines of its console.
pub(super) fn died(exit: Exit) -> Error {
    MachineError::Died(Box::new(exit)).into()
}

/// Returns the time that is sent to a guest, in ns since the Unix epoch.
pub(super) fn wall_clock_ns(clock: &Clock) -> u64 {
    clock.since_epoch().as_nanos() as u64
}
