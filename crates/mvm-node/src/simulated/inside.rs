//! What a simulated machine has inside.

use super::silence::Silence;
use mvm_guest::Error;
use mvm_hypervisor::sim::GuestMachine;
use mvm_model::Code;
use tokio::sync::{Notify, watch};

/// The inside of one machine.
#[derive(Debug)]
pub struct Inside {
    pub running: watch::Receiver<bool>,
    pub machine: GuestMachine,
    pub silence: Silence,
    /// Kept programs were told something.
    pub told: Notify,
}

/// What a guest says that does not do something.
pub fn refusal(code: Code, message: String) -> Error {
    Error::Guest { code, message }
}
