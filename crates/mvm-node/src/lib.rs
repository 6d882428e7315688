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
mod caches;
mod catalog;
mod claims;
#[cfg(test)]
mod crashes;
mod desired;
mod disk;
mod events;
mod expose;
mod firewall;
mod fleet;
mod identity;
mod idle;
mod jobs;
mod linger;
mod node;
mod operations;
mod problem;
mod reconcile;
mod recovery;
mod root;
mod serve;
mod simulated;
mod slot;
mod stages;
mod template;
mod transfer;
mod view;
mod world;

pub use desired::DesiredFile;
pub use fleet::Offer;
pub use node::Node;
pub use root::identity_dir;
pub use serve::{Driver, ServeOptions, serve};
pub use stages::Stages;

/// What the agent's own functions give: the error is what the API will answer.
pub type Result<T> = std::result::Result<T, mvm_api::Problem>;

/// Milliseconds since the Unix epoch, now.
pub(crate) fn now() -> mvm_model::Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = since.map_or(0, |d| d.as_millis() as u64);
    #[cfg(test)]
    let now = now + clock::ahead();
    now
}

/// Tests do not wait: they put the clock forward.
#[cfg(test)]
pub(crate) mod clock {
    use mvm_model::Millis;
    use std::cell::Cell;

    thread_local! {
        static AHEAD: Cell<Millis> = const { Cell::new(0) };
    }

    /// How far this thread's clock is ahead.
    pub(crate) fn ahead() -> Millis {
        AHEAD.get()
    }

    /// Puts this thread's clock forward.
    pub(crate) fn advance(by: Millis) {
        AHEAD.set(AHEAD.get() + by);
    }
}
