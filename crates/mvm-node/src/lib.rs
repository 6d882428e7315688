//! The agent of a node: carries out what the model decides.
//!
//! Lives here: the records (`records`), the instances and the operations on them (`instances`),
//! leases and claims, the reconcile loop, recovery at start, and the handlers of the API.
//!
//! Never here: ioctls, QMP, nft syntax, SQL (the crates below), decisions (mvm-model) or rendering
//! (mvm).

mod accelerator;
mod agent;
mod announce;
mod api;
mod audit;
mod blocking;
mod builds;
mod caches;
mod catalog;
#[cfg(test)]
mod crashes;
mod deadlines;
mod desired;
mod dns;
mod error;
mod expose;
mod fleet;
mod fleet_status;
mod health;
mod holders;
mod host;
mod identity;
mod idle;
mod images;
mod instance_views;
mod instances;
mod jobs;
mod labels;
mod lease_request;
mod leases;
mod links;
mod locks;
mod metrics;
mod names;
mod passes;
mod pool_builder;
mod pool_filler;
mod pool_removal;
mod pool_views;
mod pressure;
mod random;
mod reconcile;
mod records;
mod recovery;
pub mod remains;
mod serve;
mod shown;
mod simulated;
mod socket;
mod spares;
mod stages;
mod state_dir;
mod template_maker;
mod templates;
mod tenants;
mod transfer;
mod upkeep;
mod wake;

pub use desired::DesiredFile;
pub use error::{
    Error, FrontError, InternalError, JobError, LeaseError, MachineError, Missing, NodeError,
    Overlap, PoolError, Result,
};
pub use host::{Offer, found_capacity};
pub use mvm_image::Sandbox;
pub use names::servers;
pub use serve::{ApiOptions, Driver, NodeOptions, ServeOptions, kept_verdict, serve};
pub use stages::Stages;
pub use state_dir::identity_dir;
