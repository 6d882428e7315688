//! One slot an instance: whoever holds its gate is the only one to change the machine.

use crate::interrupt::Waits;
use crate::locks::locked;
use mvm_api::Problem;
use mvm_guest::channel::Channel;
use mvm_hypervisor::Machine;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Lock};
use tokio::sync::Mutex;

/// The machine behind an instance, where it has one.
#[derive(Default)]
pub struct Live {
    /// The hypervisor's process.
    pub machine: Option<Arc<dyn Machine>>,
    /// The open channel to the guest's agent; kept while the machine is warm.
    pub channel: Option<Channel>,
    /// The process that a sleeping instance still has.
    pub lingering: Option<Arc<dyn Machine>>,
    /// What ends the waits for the guest.
    pub(crate) waits: Arc<Waits>,
}

impl Live {
    /// The process, of whatever use.
    pub fn process(&self) -> Option<&Arc<dyn Machine>> {
        self.machine.as_ref().or(self.lingering.as_ref())
    }

    /// Whether a sleeping instance still has its process.
    pub fn lingers(&self) -> bool {
        self.lingering.is_some()
    }
}

/// What the agent holds in memory for one instance.
pub struct Slot {
    /// Held for the whole of a transition.
    pub gate: Mutex<Live>,
    /// What ends the waits of whoever holds the gate; the same as [`Live`] has.
    pub(crate) waits: Arc<Waits>,
    sessions: AtomicUsize,
    /// Why the agent itself has ended the machine under whoever used it.
    end: Lock<Option<Problem>>,
}

impl Default for Slot {
    fn default() -> Self {
        let live = Live::default();
        let waits = live.waits.clone();
        Slot { gate: Mutex::new(live), waits, sessions: AtomicUsize::new(0), end: Lock::default() }
    }
}

impl Slot {
    /// The machine is about to be ended for this reason: whoever used it is told.
    pub(crate) fn note_end(&self, why: Problem) {
        *locked(&self.end) = Some(why);
    }

    /// Why the agent has ended the machine, if it has.
    pub(crate) fn why_ended(&self) -> Option<Problem> {
        locked(&self.end).clone()
    }

    /// How many streams (exec, SSH, copies) are open.
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
