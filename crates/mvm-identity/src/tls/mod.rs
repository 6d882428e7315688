//! Mutual TLS, 1.3 only: who serves and who calls show certificates of one authority.
//!
//! No session is resumed: a resumed handshake would not look at the certificate again, and one that
//! has run out or was revoked would get in.

mod client;
mod connect;
mod connection;
mod credentials;
mod fault;
mod socket;

pub use client::client;
pub use connect::{Expect, connect};
pub use connection::Connection;
pub use credentials::Credentials;
pub use socket::prepare;
