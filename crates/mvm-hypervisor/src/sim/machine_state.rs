//! One simulated machine from its start to its end.

use crate::{Condition, Error, Halt, ProcessIdentity, RestoreMemory, Result, VmSpec};
use mvm_model::accelerator::Processor;
use parking_lot::{Mutex, MutexGuard};
use std::path::PathBuf;
use tokio::sync::watch;
use tokio::time::Instant;

/// One machine from its start to its end.
#[derive(Debug)]
pub(super) struct MachineState {
    pub(super) identity: ProcessIdentity,
    pub(super) spec: VmSpec,
    pub(super) memory: RestoreMemory,
    ended: watch::Sender<Option<String>>,
    condition: watch::Sender<Condition>,
    /// Why the machine halts whenever it should run; `None` if it runs freely.
    obstacle: Mutex<Option<Halt>>,
    vcpus: Vcpus,
    bytes: Mutex<Vec<u8>>,
}

/// A machine's vCPUs: what they are, whether they run, and for how long they have.
#[derive(Debug)]
struct Vcpus {
    processor: Option<Processor>,
    running: watch::Sender<bool>,
    clock: Mutex<GuestClock>,
}

#[derive(Debug)]
struct GuestClock {
    before_ms: u64,
    since: Option<Instant>,
}

impl GuestClock {
    fn ms(&self) -> u64 {
        let now = self.since.map_or(0, |since| since.elapsed().as_millis());
        self.before_ms + u64::try_from(now).unwrap_or(u64::MAX)
    }
}

impl MachineState {
    /// Makes a paused machine whose vCPUs have run for `before_ms`.
    pub(super) fn new(
        identity: ProcessIdentity,
        spec: &VmSpec,
        memory: RestoreMemory,
        processor: Option<Processor>,
        before_ms: u64,
    ) -> Self {
        Self {
            identity,
            spec: spec.clone(),
            memory,
            ended: watch::Sender::new(None),
            condition: watch::Sender::default(),
            obstacle: Mutex::default(),
            vcpus: Vcpus {
                processor,
                running: watch::Sender::new(false),
                clock: Mutex::new(GuestClock { before_ms, since: None }),
            },
            bytes: Mutex::default(),
        }
    }

    pub(super) fn set_running(&self, running: bool) {
        let mut clock = locked(&self.vcpus.clock);
        clock.before_ms = clock.ms();
        clock.since = running.then(Instant::now);
        self.vcpus.running.send_replace(running);
    }

    /// Returns the processor that the machine was started with.
    pub(super) fn processor(&self) -> Option<&Processor> {
        self.vcpus.processor.as_ref()
    }

    pub(super) fn is_running(&self) -> bool {
        *self.vcpus.running.borrow()
    }

    /// Follows whether the vCPUs run.
    pub(super) fn running(&self) -> watch::Receiver<bool> {
        self.vcpus.running.subscribe()
    }

    pub(super) fn guest_ms(&self) -> u64 {
        locked(&self.vcpus.clock).ms()
    }

    /// Locks what the guest holds in memory.
    pub(super) fn memory_bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        locked(&self.bytes)
    }

    pub(super) fn ended(&self) -> watch::Receiver<Option<String>> {
        self.ended.subscribe()
    }

    /// Records why the machine has ended.
    pub(super) fn end(&self, reason: &str) {
        self.ended.send_replace(Some(reason.to_owned()));
    }

    pub(super) fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    pub(super) fn set_obstacle(&self, obstacle: Option<Halt>) {
        *locked(&self.obstacle) = obstacle;
    }

    /// Makes the machine run or pause; with an obstacle it halts instead of running.
    pub(super) fn request_running(&self, run: bool) {
        let halt = locked(&self.obstacle).clone().filter(|_| run);
        self.set_running(run && halt.is_none());
        let condition = halt.map_or(Condition::Fine, Condition::Halted);
        self.condition.send_if_modified(|known| {
            let changed = *known != condition;
            *known = condition;
            changed
        });
    }

    pub(super) fn channel(&self) -> PathBuf {
        self.spec.dir.join("channel.sock")
    }

    /// Returns `gone` if the machine has ended.
    pub(super) fn alive(&self) -> Result<()> {
        match &*self.ended.borrow() {
            None => Ok(()),
            Some(reason) => Err(Error::Gone { id: self.spec.id.clone(), reason: reason.clone() }),
        }
    }
}

/// Locks a mutex even if an earlier holder panicked: what it guards is whole, since each holder
/// makes one change.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
