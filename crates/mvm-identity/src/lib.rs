//! Identities: certificates of a private authority, how a machine gets one, and the mutual TLS that
//! proves them.
//!
//! Every connection over the network is mutual TLS. No route is without a certificate, not even the
//! one for joining: the join token carries a short-lived certificate.
//!
//! Lives here: the authority and what it signs ([`authority`], [`journal`], [`Seal`]), the parsers
//! of certificates and revocation lists ([`certificate`]), identities on disk and in force
//! ([`directory`], [`tls::Credentials`]), join tokens and joining ([`token`], [`enrolment`]), the
//! revocation list in force ([`revocations`]), and TLS for the API's client ([`client`]).
//!
//! Never here: a clock (what depends on the time takes the wall clock's as an argument), a store or a
//! server. A signer's records, and who may ask it, are `mvm-server`'s.

pub mod authority;
pub mod certificate;
pub mod directory;
pub mod enrolment;
pub mod error;
pub mod expiry;
pub mod files;
pub mod journal;
pub mod revocations;
pub mod rotate;
pub mod seal;
pub mod tls;
pub mod token;

pub use authority::Authority;
pub use certificate::Revoked;
pub use directory::{Credential, IdentityDir};
pub use error::{Error, Result};
pub use seal::Seal;
pub use tls::client;
pub use token::JoinToken;
