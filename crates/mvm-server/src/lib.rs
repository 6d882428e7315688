//! The parts that every server of the API shares: the node's agent, the coordinator and the signer.
//!
//! Lives here: the caller's identity ([`peer`]), the guard that checks the table of routes
//! ([`guard()`]), the id of a request ([`RequestId`]), requests that create something only once
//! ([`Idempotency`]), the reading of unread bodies, extractors for handlers ([`extract`]), routers
//! that can be compared with the table ([`Routes`]), listening with TLS ([`TlsListener`]), the
//! renewal of a running process's identity ([`renewal`]), the signer ([`signer`]), state
//! directories that only their server can read ([`private`]), and notices to the service manager
//! ([`service`]).
//!
//! Never here: handlers of the node or the coordinator, wire types and routes (`mvm-api`), keys and
//! TLS itself (`mvm-identity`).

mod drain;
mod error;
pub mod extract;
mod guard;
mod idempotency;
mod listener;
pub mod openapi;
pub mod peer;
pub mod private;
pub mod renewal;
mod request;
mod router;
pub mod service;
pub mod signer;

pub use error::{Error, Result};
pub use guard::guard;
pub use idempotency::{Idempotency, key_of};
pub use listener::TlsListener;
pub use peer::{Caller, Peer};
pub use request::{REQUEST_ID, RequestId};
pub use router::Routes;
pub use signer::Signer;
