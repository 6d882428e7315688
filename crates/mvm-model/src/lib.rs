//! The model: what mvm's resources are, which of them are valid, and every decision about them.
//!
//! Lives here: names, tenants, pools, instances, leases, quotas, the table of state transitions,
//! the desired-state document with its validation and JSON Schema, and the pure functions
//! `plan(desired, observed, now) -> Vec<Action>`, admission and choice of an instance.
//!
//! Never here: I/O, async, clocks, randomness. Time comes in as an argument ([`Timestamp`]), so that
//! property tests can drive every decision through any history.

pub mod accelerator;
pub mod action;
pub mod actor;
pub mod admission;
pub mod any_code;
pub mod audit;
pub mod cache;
pub mod certificate;
pub mod choose;
pub mod cpu;
pub mod cpu_model;
pub mod desired;
pub mod digest;
pub mod egress;
pub mod error;
pub mod event;
pub mod expose;
pub mod fleet;
pub mod footprint;
pub mod halt;
pub mod hex;
pub mod host;
pub mod id;
pub mod instance;
pub mod intake;
pub mod job;
pub mod job_queue;
pub mod lease;
pub mod liveness;
pub mod mac;
pub mod mib;
pub mod name;
pub mod network;
pub mod plan;
pub mod policy;
pub mod pool;
pub mod pool_patch;
pub mod reconcile;
pub mod recovery;
pub mod recycling;
pub mod remains;
pub mod resources;
pub mod retry;
pub mod route;
pub mod runtime_policy;
pub mod state;
pub mod template;
pub mod tenant;
mod text;
pub mod timeline;
pub mod timestamp;
pub mod variable;
pub mod way_up;

pub use accelerator::Accelerator;
pub use actor::Actor;
pub use admission::{Quotas, Usage};
pub use any_code::AnyCode;
pub use cache::{Cache, CacheDisk};
pub use cpu_model::CpuModel;
pub use desired::DesiredState;
pub use digest::Digest;
pub use egress::{Egress, EgressMode};
pub use error::Fault;
pub use fleet::FleetState;
pub use id::{InstanceId, JobId, LeaseId};
pub use instance::Instance;
pub use job::{Job, JobSpec, JobState};
pub use lease::Lease;
pub use mac::Mac;
pub use mib::Mib;
pub use mvm_code::Code;
pub use name::{InstanceRef, Name, PoolRef};
pub use pool::{Counts, Pool, Recycle};
pub use resources::Resources;
pub use state::{Intent, State, Temperature};
pub use tenant::Tenant;
pub use timestamp::Timestamp;
pub use way_up::WayUp;
