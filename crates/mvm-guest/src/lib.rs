//! The guest protocol, and the agent that answers it.
//!
//! What lives here: what goes over the channel between a node and a guest ([`protocol`],
//! [`frame`]), the link that survives a host that comes and goes ([`link`]), the host's end of it
//! ([`channel`], and over any byte stream [`exec`] and [`transfer`]), and the guest's agent
//! ([`agent`]) that `mvm-guest`, PID 1 of every guest, runs.
//!
//! What never may: anything of the host but the client's end of the channel.

pub mod agent;
pub mod channel;
mod error;
pub mod exec;
pub mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod link;
mod packet;
pub mod patience;
pub mod protocol;
pub mod pulse;
mod pump;
pub mod serve;
pub mod transfer;
pub mod window;
pub mod words;

pub use error::Error;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Folder for those files of `/etc` that differ between machines.
pub const RUN_ETC: &str = "/run/mvm/etc";

/// The name of the channel's virtio-serial port.
pub const PORT: &str = "mvm.agent.0";
