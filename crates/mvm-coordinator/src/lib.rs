//! The coordinator: one front door for many nodes. Several coordinators share one store; one of them
//! leads, all of them serve.
//!
//! From the top: `serve` (listeners and signals), `coordinator` (its tasks), the handlers (`api`)
//! and what they call (`calls`); the tasks: the leader's (`leader`, `planner`, `renewal`), the
//! registry of nodes and the link to each (`registry`, `link`), claims sent to nodes
//! (`claim_dispatch`, `asking`), which nodes are in reach (`presence`), which certificates are
//! revoked (`revocations`). Below them is the state that they share (`state`) and its parts:
//! `view`, `claim_queue`, `leadership`, `reachability`, `readiness`, `locations`, `shutdown`. Nothing
//! below the tasks starts or knows one.
//!
//! Never here: hypervisors, taps, decisions (mvm-model).

mod api;
mod asking;
mod calls;
mod claim_dispatch;
mod claim_queue;
mod coordinator;
mod error;
mod held_claims;
mod leader;
mod leadership;
mod link;
mod locations;
mod node_client;
mod planner;
mod presence;
mod reachability;
mod readiness;
mod records;
mod registry;
mod renewal;
mod revocations;
mod serve;
mod shutdown;
mod state;
mod turns;
mod view;
mod writer;

pub use coordinator::run;
pub use error::{Error, Result, Thing};
pub use node_client::{Connector, Network, NodeClient, NodeReport, Refused};
pub use serve::{ApiOptions, ServeOptions, StoreOptions, serve};
pub use state::{ClusterState, Options};
