//! The errors of machines and their guests.

use super::advice::FREE_SPACE;
use mvm_hypervisor::{Exit, Halt};
use mvm_model::{Code, InstanceId, InstanceRef, Mib, State};
use std::borrow::Cow;
use std::path::PathBuf;

/// Stands for the lines of a console that has none.
pub(crate) const NOTHING: &str = "(it printed nothing)";

/// Why something was not done with a machine or its guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The instance should have a machine and has none.
    #[error("the instance has no machine any more")]
    NoMachine,
    /// The instance does not run.
    #[error("the instance has no running machine")]
    NotRunning,
    /// The instance cannot be woken for a stream.
    #[error("{reference} is {state}")]
    NotAwake {
        /// The instance.
        reference: InstanceRef,
        /// Its state.
        state: State,
    },
    /// The instance is not in a state that this route begins with.
    #[error("cannot {verb} {reference}: it is {state}")]
    WrongWay {
        /// `start` or `wake`.
        verb: &'static str,
        /// The instance.
        reference: InstanceRef,
        /// Its state.
        state: State,
    },
    /// The instance has no keys, since it was never started.
    #[error("{0} has never been started")]
    NeverStarted(InstanceRef),
    /// The machine ended by itself.
    #[error(
        "the machine ended by itself: {}\nlast lines of its console:\n{}",
        .0.reason,
        if .0.console.is_empty() { NOTHING } else { &.0.console }
    )]
    Died(Box<Exit>),
    /// The hypervisor paused the machine for good, so the agent ended it.
    #[error("{0}")]
    CannotGoOn(String),
    /// The machine's process ended before this agent could take it over.
    #[error("its hypervisor process ended while the agent started")]
    EndedAtStart,
    /// The machine's network link was deleted.
    #[error("its network link {link} was deleted under it: the machine cannot get it back")]
    NetworkLost {
        /// The link's name.
        link: String,
        /// The machine's instance.
        reference: InstanceRef,
    },
    /// The instance is being destroyed.
    #[error("instance {0} is being destroyed")]
    BeingDestroyed(InstanceId),
    /// The guest missed a deadline.
    #[error("the guest does not answer: {what} within {seconds} s")]
    Late {
        /// What the guest failed to do.
        what: &'static str,
        /// The deadline in seconds.
        seconds: u64,
    },
    /// The guest gave no sign of life for longer than it may.
    #[error("the guest does not answer: it has said nothing for {seconds} s")]
    Silent {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The hypervisor paused the machine, since the host's disk is full.
    #[error("the machine is paused: {0}; it goes on by itself when there is room")]
    HeldBack(Halt),
    /// The host's disk has too little room to start a machine.
    #[error(
        "{} has {free} left; the machine is started only with {wanted} or more{}",
        path.display(),
        match memory {
            Mib(0) => String::new(),
            Mib(memory) => format!(", {memory} of them for its memory"),
        }
    )]
    NoRoom {
        /// The state directory.
        path: PathBuf,
        /// How much is free.
        free: Mib,
        /// How much must be free.
        wanted: Mib,
        /// How much of that the machine's memory takes.
        memory: Mib,
    },
    /// An instance that nobody holds has failed.
    #[error("{0}")]
    SpareFailed(String),
}

impl MachineError {
    /// Returns the stable code of the error.
    pub fn code(&self) -> Code {
        match self {
            Self::NoMachine
            | Self::NotRunning
            | Self::NotAwake { .. }
            | Self::WrongWay { .. }
            | Self::NeverStarted(_) => Code::WrongState,
            Self::Died(_) | Self::CannotGoOn(_) | Self::EndedAtStart => Code::MachineDied,
            Self::NetworkLost { .. } => Code::NetworkLost,
            Self::BeingDestroyed(_) => Code::Destroyed,
            Self::Late { .. } | Self::Silent { .. } => Code::GuestSilent,
            Self::HeldBack(_) | Self::NoRoom { .. } => Code::NoSpace,
            Self::SpareFailed(_) => Code::InstanceFailed,
        }
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::NoMachine => "see why: mvm instance info".into(),
            Self::NotRunning => "start it with `mvm instance start` or `mvm instance wake`".into(),
            Self::NotAwake { reference, .. } | Self::NeverStarted(reference) => {
                format!("start it: mvm instance start {reference}").into()
            }
            Self::WrongWay { verb, reference, .. } => {
                let other = if *verb == "start" { "wake" } else { "start" };
                format!("use `mvm instance {other} {reference}`").into()
            }
            Self::NetworkLost { reference, .. } => {
                format!("start it again: mvm instance start {reference}").into()
            }
            Self::HeldBack(_) => "free some space on the host's disk".into(),
            Self::NoRoom { .. } => FREE_SPACE.into(),
            Self::Died(_)
            | Self::CannotGoOn(_)
            | Self::EndedAtStart
            | Self::BeingDestroyed(_)
            | Self::Late { .. }
            | Self::Silent { .. }
            | Self::SpareFailed(_) => "".into(),
        }
    }
}
