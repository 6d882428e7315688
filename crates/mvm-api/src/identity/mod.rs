//! Who is who: certificates of a private authority, the roles in them, and how a machine gets one.
//!
//! Every connection over the network is mutual TLS; there is no route without a certificate, that
//! of joining included: the join token carries a short-lived one.

pub mod authority;
pub mod certificate;
pub mod directory;
pub mod journal;
pub mod keep;
pub mod role;
pub mod rotate;
pub mod seal;
pub mod service;
pub mod signer;
pub mod standing;
pub mod token;
pub mod wire;

pub use authority::Authority;
pub use certificate::{Facts, Serial, Validity};
pub use directory::{Credential, IdentityDir};
pub use role::{Identity, Role};
pub use seal::Seal;
pub use signer::Signer;
pub use token::JoinToken;

use crate::Problem;
use mvm_model::Millis;

/// What the functions of identities give.
pub type Result<T> = std::result::Result<T, Problem>;

/// The name that the certificates of all that serve have besides their identity: clients that know
/// no identities (curl) can check this one.
pub const SERVER_NAME: &str = "mvm.internal";

/// The wall clock, which certificates are about: milliseconds since the Unix epoch.
pub fn now() -> Millis {
    mvm_clock::wall()
}
