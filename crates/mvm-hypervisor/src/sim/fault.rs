//! The faults that a simulation injects, and at which calls.

use std::collections::BTreeMap;
use std::time::Duration;

/// A call that a fault can be injected at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// [`crate::Hypervisor::boot`]
    Boot,
    /// [`crate::Hypervisor::restore`]
    Restore,
    /// [`crate::Hypervisor::adopt`]
    Adopt,
    /// [`crate::Hypervisor::kill_stray`]
    KillStray,
    /// [`crate::Machine::pause`]
    Pause,
    /// [`crate::Machine::resume`]
    Resume,
    /// [`crate::Machine::snapshot`]
    Snapshot,
    /// [`crate::Machine::kill`]
    Kill,
    /// [`crate::Machine::stats`]
    Stats,
}

impl Call {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Restore => "restore",
            Self::Adopt => "adopt",
            Self::KillStray => "kill_stray",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Snapshot => "snapshot",
            Self::Kill => "kill",
            Self::Stats => "stats",
        }
    }
}

/// What happens at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The call fails with `injected` and changes nothing.
    Fail,
    /// The call takes this much longer.
    Delay(Duration),
    /// The machine's process ends during the call.
    Die,
    /// The caller is killed: the call never returns, nor does any later call of the same holder, as
    /// after [`super::SimHypervisor::halt`].
    Halt(Moment),
}

/// The moment of a call at which its caller is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of the call is done.
    Before,
    /// Half of the call is done: a machine has a process but does not run yet, a snapshot is half
    /// written. Calls that have no half are complete by then.
    During,
    /// All of the call is done.
    After,
}

/// Faults by the number of the call, counted from 1: over all calls, or over those of one kind.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    any: BTreeMap<u64, Effect>,
    kinds: BTreeMap<(Call, u64), Effect>,
    every: BTreeMap<Call, Effect>,
}

impl FaultPlan {
    /// Makes a plan without faults.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a fault at the `number`th call of any kind.
    #[must_use]
    pub fn at(mut self, number: u64, effect: Effect) -> Self {
        self.any.insert(number, effect);
        self
    }

    /// Adds a fault at the `number`th call of this kind.
    #[must_use]
    pub fn on(mut self, call: Call, number: u64, effect: Effect) -> Self {
        self.kinds.insert((call, number), effect);
        self
    }

    /// Adds a fault at every call of this kind.
    #[must_use]
    pub fn always(mut self, call: Call, effect: Effect) -> Self {
        self.every.insert(call, effect);
        self
    }

    pub(super) fn effect(&self, call: Call, of_all: u64, of_kind: u64) -> Option<Effect> {
        let kind = self.kinds.get(&(call, of_kind));
        self.any.get(&of_all).or(kind).or_else(|| self.every.get(&call)).copied()
    }
}
