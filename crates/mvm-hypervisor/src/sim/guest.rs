//! The side of a simulated machine that its guest is on.

use std::sync::{Arc, Weak};

use tokio::net::UnixStream;
use tokio::sync::watch;

use super::life::Life;

/// What a simulated guest answers on its channel. Called once a connection, on a task of
/// its own, which ends with the machine.
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
    /// Whether the vCPUs run: a guest that is true to life answers only while they do.
    pub running: watch::Receiver<bool>,
    /// The guest's end.
    pub stream: UnixStream,
    /// The machine itself.
    pub machine: GuestMachine,
}

/// What a machine's guest may have done by the host.
pub(super) trait GuestHost: Send + Sync + std::fmt::Debug {
    /// Writes a machine down as it is now.
    fn keep(&self, life: &Life);

    /// Ends a machine; nothing happens if it has ended.
    fn end(&self, life: &Life, reason: &str);
}

/// What a guest has of the machine that it runs on.
#[derive(Clone, Debug)]
pub struct GuestMachine {
    pub(super) host: Weak<dyn GuestHost>,
    pub(super) life: Arc<Life>,
}

impl GuestMachine {
    /// Looks at what the guest holds in memory, and changes it: bytes that only the guest
    /// understands, empty when it was booted. They live as long as the machine, through its
    /// sleeps, and its clones begin with them. `change` says whether it has changed anything.
    pub fn with_memory<T>(&self, change: impl FnOnce(&mut Vec<u8>) -> (T, bool)) -> T {
        let (value, changed) = change(&mut self.life.memory_bytes());
        if changed {
            self.host.upgrade().inspect(|host| host.keep(&self.life));
        }
        value
    }

    /// A number that no other machine of this world has, before or after it.
    pub fn number(&self) -> u64 {
        self.life.identity.start_time
    }

    /// For how long its vCPUs have run, in ms.
    pub fn uptime_ms(&self) -> u64 {
        self.life.guest_ms()
    }

    /// Its memory in MiB.
    pub fn mem_mib(&self) -> u64 {
        self.life.spec.mem_mib
    }

    /// Ends the machine, as a guest does that has shut down.
    pub fn power_off(&self) {
        self.host.upgrade().inspect(|host| host.end(&self.life, "exit status 0"));
    }
}
