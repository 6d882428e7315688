//! The errors of this crate, by what they are about.
//!
//! [`Error::code`] is stable and for programs; [`Error::detail`] and [`Error::hint`] are for people.
//! At the API's edge an error becomes a problem document (`api/problem.rs`), and nowhere else.

mod advice;
mod front;
mod internal;
mod job;
mod lease;
mod machine;
mod missing;
mod node;
mod pool;
#[cfg(test)]
mod tests;

pub use front::FrontError;
pub use internal::InternalError;
pub use job::JobError;
pub use lease::LeaseError;
pub use machine::MachineError;
pub(crate) use machine::NOTHING;
pub use missing::Missing;
pub use node::NodeError;
pub use pool::{Overlap, PoolError};

use advice::FREE_SPACE;
use mvm_api::ClientError;
use mvm_model::{AnyCode, Code, Fault};
use std::borrow::Cow;
use std::sync::Arc;

/// The result of what this crate does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the agent did not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The thing that a request names does not exist.
    #[error("there is no {0}")]
    NotFound(Missing),
    /// An operating system call failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried, on what: `read /var/lib/mvm/root-id`.
        doing: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The disk is full.
    #[error("cannot {doing}: no space left on the disk")]
    DiskFull {
        /// What was tried, on what.
        doing: String,
    },
    /// An error of a machine or its guest.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// An error of a job.
    #[error(transparent)]
    Job(#[from] JobError),
    /// An error of a tenant, a pool, or an image.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// An error of a lease or a claim.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// An error of a front.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// An error of the node itself: its files, its logs, its fleet.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A fault of mvm itself.
    #[error(transparent)]
    Internal(#[from] InternalError),
    /// The model refuses it.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] mvm_store::Error),
    /// An error of the image store.
    #[error(transparent)]
    Image(#[from] mvm_image::Error),
    /// An error of the hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] mvm_hypervisor::Error),
    /// An error of links or firewall rules.
    #[error(transparent)]
    Network(#[from] mvm_network::Error),
    /// An error of the guest's agent or its channel.
    #[error(transparent)]
    Guest(#[from] mvm_guest::Error),
    /// An error of the node's identity, its credentials, or a file.
    #[error(transparent)]
    Identity(#[from] mvm_identity::Error),
    /// An error of the server that the API runs in.
    #[error(transparent)]
    Server(#[from] mvm_server::Error),
    /// A call to another node failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// One error that several tasks get.
    #[error(transparent)]
    Shared(#[from] Arc<Error>),
    /// An error with a better hint than its own.
    #[error("{error}")]
    Hinted {
        /// The error.
        #[source]
        error: Box<Error>,
        /// What to do next.
        hint: String,
    },
    /// A step towards the desired state failed.
    #[error("{}cannot {step}: {}", prefix(error.path()), error.detail())]
    Step {
        /// The step: `create pool ci/build`.
        step: String,
        /// Why the step failed.
        #[source]
        error: Box<Error>,
    },
}

/// Returns a JSON path as it stands before a message.
fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

/// Makes the error of an operating system call. `doing` is the action and its object.
pub(crate) fn io(doing: impl std::fmt::Display, source: std::io::Error) -> Error {
    let doing = doing.to_string();
    match source.kind() {
        std::io::ErrorKind::StorageFull => Error::DiskFull { doing },
        _ => Error::Io { doing, source },
    }
}

impl Error {
    /// Returns the stable code of the error.
    pub fn code(&self) -> AnyCode {
        let code = match self {
            Self::Client(error) => return error.any_code(),
            Self::Identity(error) => return error.code(),
            Self::Server(error) => return error.code(),
            Self::Shared(error) => return error.code(),
            Self::Hinted { error, .. } | Self::Step { error, .. } => return error.code(),
            Self::NotFound(_) => Code::NotFound,
            Self::Io { .. } => Code::Io,
            Self::DiskFull { .. } => Code::NoSpace,
            Self::Machine(error) => error.code(),
            Self::Job(error) => error.code(),
            Self::Pool(error) => error.code(),
            Self::Lease(error) => error.code(),
            Self::Front(error) => error.code(),
            Self::Node(error) => error.code(),
            Self::Internal(_) => Code::Internal,
            Self::Fault(fault) => fault.code,
            Self::Store(error) => error.code(),
            Self::Image(error) => error.code(),
            Self::Hypervisor(error) => error.code(),
            Self::Network(error) => error.code(),
            Self::Guest(error) => error.code(),
        };
        code.into()
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'_, str> {
        match self {
            Self::NotFound(missing) => missing.hint(),
            Self::DiskFull { .. } => FREE_SPACE.into(),
            Self::Machine(error) => error.hint(),
            Self::Job(error) => error.hint(),
            Self::Pool(error) => error.hint(),
            Self::Lease(error) => error.hint(),
            Self::Front(error) => error.hint(),
            Self::Node(error) => error.hint(),
            Self::Fault(fault) => fault.hint.as_str().into(),
            Self::Client(error) => error.hint().into(),
            Self::Identity(error) => error.hint(),
            Self::Server(error) => error.hint(),
            Self::Hypervisor(error) => error.hint(),
            Self::Shared(error) => error.hint(),
            Self::Hinted { hint, .. } => hint.as_str().into(),
            Self::Step { error, .. } => error.hint(),
            // The messages of these say what to do.
            Self::Io { .. }
            | Self::Internal(_)
            | Self::Store(_)
            | Self::Image(_)
            | Self::Network(_)
            | Self::Guest(_) => "".into(),
        }
    }

    /// Returns the JSON path of the faulty value in the request's document, or nothing.
    pub fn path(&self) -> &str {
        match self {
            Self::Shared(error) => error.path(),
            Self::Hinted { error, .. } | Self::Step { error, .. } => error.path(),
            other => other.parts().map_or("", |(path, _)| path),
        }
    }

    /// Returns the message without the path in a document.
    pub fn detail(&self) -> String {
        match self {
            Self::Shared(error) => error.detail(),
            Self::Hinted { error, .. } => error.detail(),
            Self::Step { step, error } => format!("cannot {step}: {}", error.detail()),
            other => other.parts().map_or_else(|| other.to_string(), |(_, said)| said.to_owned()),
        }
    }

    /// Returns path and message of an error that keeps them apart.
    fn parts(&self) -> Option<(&str, &str)> {
        use mvm_identity::Error as Identity;
        use mvm_server::Error as Server;
        match self {
            Self::Fault(fault)
            | Self::Identity(Identity::Fault(fault))
            | Self::Server(Server::Fault(fault) | Server::Identity(Identity::Fault(fault))) => {
                Some((&fault.path, &fault.message))
            }
            Self::Client(ClientError::Problem(problem))
            | Self::Identity(Identity::Client(ClientError::Problem(problem))) => {
                Some((&problem.path, &problem.detail))
            }
            _ => None,
        }
    }

    /// Returns the error with another hint.
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Error {
        Error::Hinted { error: Box::new(self), hint: hint.into() }
    }
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Error {
        Error::NotFound(missing)
    }
}
