//! The agent of a node: it carries out what the model decides.
//!
//! Lives here: one slot an instance that serialises what happens to it ([`slot`]), the operations
//! on instances ([`operations`]), leases and claims, the reconcile loop, recovery at start, and
//! the handlers of the API.
//!
//! Never here: ioctls, QMP, nft syntax, SQL (the crates below), decisions (mvm-model) or
//! rendering (mvm).

mod announce;
mod api;
mod audit;
mod boot;
mod builds;
mod caches;
mod catalog;
mod claims;
mod clock;
#[cfg(test)]
mod crashes;
mod deadlines;
mod desired;
mod disk;
mod dns;
mod events;
mod expose;
mod firewall;
mod fleet;
mod halted;
mod holders;
mod identity;
mod idle;
mod interrupt;
mod jobs;
mod linger;
mod liveness;
mod names;
mod node;
mod operations;
mod problem;
mod reconcile;
mod recovery;
pub mod remains;
mod renewal;
mod root;
mod seize;
mod serve;
mod shortfalls;
mod simulated;
mod slot;
mod socket;
mod stages;
mod template;
mod transfer;
mod view;
mod walls;
mod world;

pub use desired::DesiredFile;
pub use fleet::{Offer, found_capacity};
pub use mvm_image::Sandbox;
pub use names::servers;
pub use node::Node;
pub use root::identity_dir;
pub use serve::{Driver, ServeOptions, serve};
pub use stages::Stages;

/// What the agent's own functions give: the error is what the API will answer.
pub type Result<T> = std::result::Result<T, mvm_api::Problem>;

pub(crate) use clock::now;
