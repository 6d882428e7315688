//! The states of an instance and the one table of transitions between them.

use crate::error::Fault;
use crate::timestamp::Timestamp;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The state of an instance.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Recorded, with an address; no process, no memory.
    Created,
    /// vCPUs run.
    Running,
    /// vCPUs are paused, memory is held.
    Warm,
    /// A snapshot on disk; no process.
    Sleeping,
    /// Memory discarded; disks and address kept.
    Stopped,
    /// An operation failed; the instance has the reason.
    Failed,
    /// Gone. This is only the target of a transition: a destroyed instance has no record.
    Destroyed,
}

use State::*;

/// Every allowed transition. `failed` is reachable from all and is left only by `start` or
/// `destroy`; `destroyed` is reachable from all.
pub const TRANSITIONS: &[(State, State)] = &[
    (Created, Running),
    // A clone of the template that has not run.
    (Created, Sleeping),
    (Running, Warm),
    (Running, Sleeping),
    (Running, Stopped),
    (Warm, Running),
    (Warm, Sleeping),
    (Warm, Stopped),
    (Sleeping, Running),
    (Sleeping, Warm),
    (Sleeping, Stopped),
    (Stopped, Running),
    (Failed, Running),
];

impl State {
    /// All states an instance record can be in.
    pub const ALL: [State; 6] = [Created, Running, Warm, Sleeping, Stopped, Failed];

    /// Returns whether an instance in this state may go to `to`.
    pub fn allows(self, to: State) -> bool {
        match to {
            Destroyed => self != Destroyed,
            Failed => self != Destroyed,
            _ => TRANSITIONS.contains(&(self, to)),
        }
    }

    /// Checks the transition; the fault names both states, and its hint what is possible instead.
    pub fn check(self, to: State) -> Result<(), Fault> {
        if self.allows(to) {
            return Ok(());
        }
        let fault =
            Fault::new(Code::WrongState, format!("an instance that is {self} cannot become {to}"));
        if self == Destroyed {
            return Err(fault.hint("it is gone for good: make another"));
        }
        let possible: Vec<_> = TRANSITIONS
            .iter()
            .filter(|(from, _)| *from == self)
            .map(|(_, to)| to.to_string())
            .chain(["destroyed".to_owned()])
            .collect();
        Err(fault.hint(format!("from {self} it can become {}", possible.join(", "))))
    }

    /// Returns whether a hypervisor process belongs to this state.
    pub fn has_process(self) -> bool {
        matches!(self, Running | Warm)
    }

    /// Returns the temperature; `None` where the state has none.
    pub fn temperature(self) -> Option<Temperature> {
        match self {
            Running => Some(Temperature::Running),
            Warm => Some(Temperature::Warm),
            Sleeping => Some(Temperature::Sleeping),
            _ => None,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Created => "created",
            Running => "running",
            Warm => "warm",
            Sleeping => "sleeping",
            Stopped => "stopped",
            Failed => "failed",
            Destroyed => "destroyed",
        })
    }
}

/// How ready an instance is, hottest first.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Temperature {
    /// Costs vCPU and memory; ready now.
    Running,
    /// Costs memory; ready in milliseconds.
    Warm,
    /// Costs disk; ready in a fraction of a second.
    Sleeping,
}

impl Temperature {
    /// All of them, hottest first.
    pub const ALL: [Temperature; 3] =
        [Temperature::Running, Temperature::Warm, Temperature::Sleeping];

    /// Returns the state of an instance of this temperature.
    pub fn state(self) -> State {
        match self {
            Temperature::Running => State::Running,
            Temperature::Warm => State::Warm,
            Temperature::Sleeping => State::Sleeping,
        }
    }
}

/// A transition under way, made durable before its first side effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The state it left.
    pub from: State,
    /// The state it is to reach.
    pub to: State,
    /// When the transition began.
    pub since: Timestamp,
}
