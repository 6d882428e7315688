//! The HTTP API of mvm: what goes over the wire, and the client that speaks it.
//!
//! Lives here: the paths ([`paths`]), the types of requests and replies ([`types`]), problem
//! documents after RFC 9457 ([`problem`]), and the [`Client`] over the agent's Unix socket.
//!
//! Never here: business rules. The handlers live in `mvm-node`; decisions in `mvm-model`.

pub mod audit;
pub mod client;
pub mod expose;
pub mod paths;
pub mod problem;
pub mod types;

pub use client::{Client, ClientError};
pub use problem::Problem;
