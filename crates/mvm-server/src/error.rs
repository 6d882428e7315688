//! The errors of what a server is made of: its directory, its listener, its signer.

use axum::response::{IntoResponse, Response};
use mvm_api::Problem;
use mvm_model::{AnyCode, Code, Fault, Name};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call of this crate. [`Error::code`] is stable and for programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory is open to others, and may be anything.
    #[error(
        "{} is open to others (mode {mode:04o}), and holds files that are not mvm's",
        path.display()
    )]
    RootOpen {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The server cannot listen at the address.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },

    // The signer.
    /// The caller has presented no certificate itself.
    #[error("this is for those who show a certificate")]
    NoCertificate,
    /// The caller's certificate is not one of a join token.
    #[error("{holder} has no join token")]
    NoToken {
        /// The caller.
        holder: String,
    },
    /// The join token was used already, with another key.
    #[error("the token for node {0} was used already")]
    TokenUsed(Name),
    /// A join token cannot be valid for that long.
    #[error("a join token cannot be good for {seconds} s")]
    TokenLifetime {
        /// The lifetime that was asked for, in seconds.
        seconds: u64,
        /// The longest lifetime, in seconds.
        longest: u64,
    },
    /// A join token without an address is of no use.
    #[error("a join token names the address at which the node finds the signer")]
    TokenWithoutAddress,
    /// The node has a valid certificate.
    #[error("there is a node {0} already")]
    NodeExists(String),
    /// The certificate was revoked.
    #[error("the certificate of {holder} was revoked")]
    Revoked {
        /// Whose certificate it is.
        holder: String,
    },
    /// The identity has no certificates.
    #[error("{holder} has no certificates")]
    NoCertificates {
        /// The identity.
        holder: String,
    },
    /// A record cannot be read.
    #[error("the record {key} cannot be read: {cause}")]
    RecordDamaged {
        /// The record's key.
        key: String,
        /// What is wrong with the record.
        #[source]
        cause: serde_json::Error,
    },
    /// Other processes were faster, again and again.
    #[error("others keep changing the same records")]
    Contended,

    /// The store has failed or refused.
    #[error(transparent)]
    Store(#[from] mvm_store::Error),
    /// The authority, or an identity, has failed or refused.
    #[error(transparent)]
    Identity(#[from] mvm_identity::Error),
    /// A name or value is not valid.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Error {
    /// Returns the error's code.
    pub fn code(&self) -> AnyCode {
        let code = match self {
            Error::RootOpen { .. } => Code::RootOpen,
            Error::Listen { .. } => Code::Socket,
            Error::NoCertificate | Error::NoToken { .. } => Code::Forbidden,
            Error::TokenUsed(_) => Code::TokenUsed,
            Error::TokenLifetime { .. } | Error::TokenWithoutAddress => Code::InvalidValue,
            Error::NodeExists(_) => Code::Exists,
            Error::Revoked { .. } => Code::CertificateRevoked,
            Error::NoCertificates { .. } => Code::NotFound,
            Error::RecordDamaged { .. } => Code::RecordDamaged,
            Error::Contended => Code::StoreConflict,
            Error::Store(cause) => cause.code(),
            Error::Identity(cause) => return cause.code(),
            Error::Fault(fault) => fault.code,
        };
        code.into()
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'_, str> {
        match self {
            Error::RootOpen { path, mode } => {
                // The hint does not suggest to close a directory that all users need, such as
                // `/etc` or `/tmp`.
                let for_all = mode & 0o1000 != 0 || path.components().count() <= 2;
                let or_close = match for_all {
                    true => String::new(),
                    false => format!(
                        "; or, if all that is in it may be closed to others: chmod 0700 {}",
                        path.display()
                    ),
                };
                format!("name a directory of its own with --root{or_close}").into()
            }
            Error::Listen { .. } => {
                "choose an address of this machine and a port that is free".into()
            }
            Error::TokenUsed(name) => format!(
                "if that was not you, remove the node (mvm node remove {name}); then ask for a new \
                 token: mvm node invite {name}"
            )
            .into(),
            Error::TokenLifetime { longest, .. } => format!("allowed are 3 to {longest} s").into(),
            Error::TokenWithoutAddress => "give --address HOST:4433".into(),
            Error::NodeExists(name) => {
                format!("choose another name, or remove it first: mvm node remove {name}").into()
            }
            Error::NoCertificates { .. } => {
                "see who has some with `mvm node list` or `mvm ca list`".into()
            }
            Error::Contended => "try again".into(),
            Error::Identity(cause) => cause.hint(),
            Error::Fault(fault) => (&fault.hint).into(),
            Error::NoCertificate
            | Error::NoToken { .. }
            | Error::Revoked { .. }
            | Error::RecordDamaged { .. }
            | Error::Store(_) => "".into(),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        match error {
            Error::Identity(error) => error.into(),
            Error::Fault(fault) => fault.into(),
            error => Problem::new(error.code(), error.to_string()).hint(error.hint()),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}
