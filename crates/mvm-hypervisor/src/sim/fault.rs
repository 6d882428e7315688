//! Which calls go wrong, and how.

use std::collections::BTreeMap;
use std::time::Duration;

/// A call that a fault can happen at.
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
    /// It fails with `injected` and changes nothing.
    Fail,
    /// It takes this much longer.
    Delay(Duration),
    /// The machine's process ends during it.
    Die,
    /// Its caller is killed: it never returns, and neither does any later call of the same
    /// holder, as [`super::SimHypervisor::halt`] says.
    Halt(Moment),
}

/// When in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of it is done.
    Before,
    /// Half of it is done: a machine has a process and does not run yet, a snapshot is half
    /// written. Calls without a half are whole by then.
    During,
    /// All of it is done.
    After,
}

/// Faults by the number of the call, counted from 1: of all calls, or of those of a kind.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    any: BTreeMap<u64, Effect>,
    kinds: BTreeMap<(Call, u64), Effect>,
    every: BTreeMap<Call, Effect>,
}

impl FaultPlan {
    /// Nothing goes wrong.
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
