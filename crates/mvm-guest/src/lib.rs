//! The guest protocol, and the agent that answers it.
//!
//! Lives here: what goes over the channel between a node and a guest ([`protocol`], [`frame`]),
//! the link that survives a host that comes and goes ([`link`]), the host's end of it
//! ([`channel`], and over any byte stream [`exec`] and [`transfer`]), and the guest's agent ([`agent`]) that `mvm-guest`, PID 1 of every guest, runs.
//!
//! Never here: anything of the host but the client's end of the channel.

pub mod agent;
pub mod channel;
mod error;
pub mod exec;
pub mod frame;
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

/// What this crate gives.
pub type Result<T> = std::result::Result<T, Error>;

/// Where files of `/etc` are that each machine has of its own.
pub const RUN_ETC: &str = "/run/mvm/etc";

/// The name of the virtio-serial port of the channel.
pub const PORT: &str = "mvm.agent.0";
