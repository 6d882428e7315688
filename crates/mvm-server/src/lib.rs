//! What every server of the API has in common: the node's agent, the coordinator and the signer.
//!
//! Lives here: who calls ([`peer`]), the guard that asks the table of routes ([`guard()`]), the id of a
//! request ([`RequestId`]), creates that happen once ([`Idempotency`]), bodies that nobody reads, what
//! handlers ask for ([`extract`]), routers that can be compared with the table ([`Routes`]), listening
//! with TLS ([`TlsListener`]), identities that are renewed while their process runs ([`renewal`]), the
//! signer ([`signer`]), state directories that are a server's alone ([`private`]), and what the service
//! manager is told ([`service`]).
//!
//! Never here: a handler of the node's or the coordinator's, wire types and routes (`mvm-api`), keys and
//! TLS itself (`mvm-identity`).

mod drain;
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
mod stored;

pub use guard::guard;
pub use idempotency::{Idempotency, key_of};
pub use listener::TlsListener;
pub use peer::{Caller, Peer};
pub use request::{REQUEST_ID, RequestId};
pub use router::Routes;
pub use signer::Signer;
pub use stored::stored;
