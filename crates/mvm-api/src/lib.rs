//! The HTTP API of mvm: the types and paths on the wire, and the client.
//!
//! Lives here: the paths ([`paths`]), the table of all routes and the roles that may call them
//! ([`routes`]), the types of requests and responses ([`types`]), the identities of callers
//! ([`identity`]), the OpenAPI description that is made of these ([`openapi`]), lists in pages
//! ([`page`]), problem documents after RFC 9457 ([`problem`]), and the [`Client`], over a Unix
//! socket or over connections that the caller makes ([`client::Connect`]).
//!
//! Never here: keys, certificates and TLS (`mvm-identity`), a server's handling of requests
//! (`mvm-server`), handlers (`mvm-node`, `mvm-coordinator`), stores, decisions (`mvm-model`).

pub mod audit;
pub mod client;
pub mod expose;
pub mod fleet;
pub mod identity;
pub mod jobs;
pub mod openapi;
pub mod page;
pub mod paths;
pub mod position;
pub mod problem;
pub mod query;
#[cfg(feature = "responses")]
mod response;
pub mod routes;
pub mod status;
pub mod types;

pub use client::{Client, ClientError};
pub use problem::Problem;
