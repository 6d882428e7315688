//! Mutual TLS, 1.3 only: server and client present certificates of one authority.
//!
//! No session is resumed. A resumed handshake would not check the certificate again, so an expired
//! or revoked one would get in.

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
