//! The guest's side of a simulated machine.

use super::machine_state::MachineState;
use mvm_model::Mib;
use std::sync::{Arc, Weak};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// What a simulated guest answers on its channel. It is called once per connection, on a task of
/// its own that ends with the machine.
#[async_trait::async_trait]
pub trait Guest: Send + Sync + std::fmt::Debug {
    /// Serves one connection until it is closed.
    async fn serve(&self, channel: GuestChannel);
}

/// One connection to a machine's channel.
#[derive(Debug)]
pub struct GuestChannel {
    /// The machine's marker.
    pub marker: String,
    /// Whether the vCPUs run: a realistic guest answers only while they do.
    pub running: watch::Receiver<bool>,
    /// The guest's end of the connection.
    pub stream: UnixStream,
    /// The machine itself.
    pub machine: GuestMachine,
}

/// What a guest can make its simulated host do.
pub(super) trait GuestHost: Send + Sync + std::fmt::Debug {
    /// Saves the machine's present state.
    fn save(&self, state: &MachineState);

    /// Ends a machine; does nothing if it has ended.
    fn end(&self, state: &MachineState, reason: &str);
}

/// The guest's handle on the machine that it runs on.
#[derive(Clone, Debug)]
pub struct GuestMachine {
    pub(super) host: Weak<dyn GuestHost>,
    pub(super) state: Arc<MachineState>,
}

impl GuestMachine {
    /// Reads and changes what the guest holds in memory: bytes that only the guest understands,
    /// empty after a boot. They live as long as the machine, survive its sleeps, and are copied to
    /// its clones. `change` returns whether it has changed anything.
    pub fn with_memory<T>(&self, change: impl FnOnce(&mut Vec<u8>) -> (T, bool)) -> T {
        let (value, changed) = change(&mut self.state.memory_bytes());
        if changed {
            self.host.upgrade().inspect(|host| host.save(&self.state));
        }
        value
    }

    /// Returns a number that no other machine of this simulation ever has.
    pub fn number(&self) -> u64 {
        self.state.identity.start_time
    }

    /// Returns for how long the vCPUs have run, in ms.
    pub fn uptime_ms(&self) -> u64 {
        self.state.guest_ms()
    }

    /// Returns the size of the machine's memory.
    pub fn mem_mib(&self) -> Mib {
        self.state.spec.mem_mib
    }

    /// Ends the machine, as a guest does that has shut down.
    pub fn power_off(&self) {
        self.host.upgrade().inspect(|host| host.end(&self.state, "exit status 0"));
    }
}
