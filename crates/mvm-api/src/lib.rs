//! The HTTP API of mvm: what goes over the wire, and the client that speaks it.
//!
//! Lives here: the paths ([`paths`]), the table of all routes and who may call them ([`routes`]),
//! the types of requests and replies ([`types`]), the names of those who call ([`identity`]), the
//! description of the API made of these ([`openapi`]), lists in pages ([`page`]), problem documents after
//! RFC 9457 ([`problem`]), and the [`Client`], over a Unix socket or what it is handed ([`client::Connect`]).
//!
//! Never here: keys, certificates and TLS (`mvm-identity`), what a server does with a request
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
