//! Who is who: certificates of a private authority, how a machine gets one, and the mutual TLS that shows
//! them.
//!
//! Every connection over the network is mutual TLS; there is no route without a certificate, that
//! of joining included: the join token carries a short-lived one.
//!
//! Lives here: the authority and what it signs ([`authority`], [`journal`], [`Seal`]), reading certificates
//! and revocation lists ([`certificate`]), identities on disk and in force ([`directory`], [`tls::Credentials`]),
//! join tokens and joining ([`token`], [`enrolment`]), what is revoked as of now ([`revocations`]), and TLS
//! as the API's client takes it ([`client`]).
//!
//! Never here: a store or a server. What a signer remembers, and who may ask it, is `mvm-server`'s.

pub mod authority;
pub mod certificate;
pub mod directory;
pub mod enrolment;
pub mod files;
pub mod journal;
pub mod revocations;
pub mod rotate;
pub mod seal;
pub mod standing;
pub mod tls;
pub mod token;

pub use authority::Authority;
pub use certificate::Revoked;
pub use directory::{Credential, IdentityDir};
pub use seal::Seal;
pub use tls::client;
pub use token::JoinToken;

use mvm_api::Problem;
use mvm_model::Millis;

/// What the functions of identities give.
pub type Result<T> = std::result::Result<T, Problem>;

/// The wall clock, which certificates are about: milliseconds since the Unix epoch.
pub fn now() -> Millis {
    mvm_clock::wall()
}
