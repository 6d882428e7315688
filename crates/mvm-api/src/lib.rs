//! The HTTP API of mvm: what goes over the wire, and the client that speaks it.
//!
//! Lives here: the paths ([`paths`]), the table of all routes and who may call them ([`routes`]),
//! the types of requests and replies ([`types`]), the description of the API made of
//! both ([`openapi`]), lists in pages ([`page`]), problem documents after RFC 9457 ([`problem`]),
//! directories of servers that are theirs alone ([`private`]),
//! identities and mutual TLS ([`identity`], [`tls`]), and the [`Client`] over a Unix socket or TLS.
//!
//! Never here: business rules. The handlers live in `mvm-node`; decisions in `mvm-model`.

pub mod audit;
pub mod body;
pub mod client;
pub mod expose;
pub mod files;
pub mod fleet;
pub mod identity;
pub mod jobs;
pub mod openapi;
pub mod page;
pub mod paths;
pub mod peer;
pub mod position;
pub mod private;
pub mod problem;
pub mod query;
pub mod routes;
pub mod service;
pub mod status;
pub mod tls;
pub mod types;

pub use client::{Client, ClientError};
pub use peer::{Caller, Peer};
pub use problem::Problem;
