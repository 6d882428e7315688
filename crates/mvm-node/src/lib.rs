//! The agent of a node: it carries out what the model decides.
//!
//! Lives here: one slot an instance that serialises what happens to it ([`slot`]), the operations
//! on instances ([`operations`]), leases and claims, the reconcile loop, recovery at start, and
//! the handlers of the API.
//!
//! Never here: ioctls, QMP, nft syntax, SQL (the crates below), decisions (mvm-model) or
//! rendering (mvm).

mod api;
mod boot;
mod catalog;
mod claims;
mod desired;
mod disk;
mod events;
mod firewall;
mod identity;
mod idle;
mod node;
mod operations;
mod problem;
mod reconcile;
mod recovery;
mod root;
mod serve;
mod slot;
mod template;
mod transfer;
mod view;
mod world;

pub use desired::DesiredFile;
pub use node::Node;
pub use serve::{ServeOptions, serve};

/// What the agent's own functions give: the error is what the API will answer.
pub type Result<T> = std::result::Result<T, mvm_api::Problem>;

/// Milliseconds since the Unix epoch, now.
pub(crate) fn now() -> mvm_model::Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}
