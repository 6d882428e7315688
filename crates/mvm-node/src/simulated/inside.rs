//! The inside of a simulated machine.

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
    /// Notified when kept programs got a message.
    pub told: Notify,
}

/// Returns a guest's refusal of a request.
pub fn refusal(code: Code, message: String) -> Error {
    Error::Guest { code, message }
}
