//! The errors of calls to a guest, each with a stable code.

use mvm_code::Code;
use std::path::PathBuf;
use std::time::Duration;

/// A failed call to a guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The channel's socket could not be opened.
    #[error("cannot open the guest channel {}: {cause}", socket.display())]
    Unreachable {
        /// Path of the socket.
        socket: PathBuf,
        /// The operating system's error.
        cause: std::io::Error,
    },
    /// No agent answered on the channel in time.
    #[error("the guest's agent did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The channel broke.
    #[error("the guest channel broke: {0}")]
    Broken(String),
    /// The host's end of an archive failed.
    #[error("cannot {doing} the archive on this side: {cause}")]
    Archive {
        /// `read`, `write`, `pack` or `unpack`.
        doing: &'static str,
        /// The operating system's error.
        cause: std::io::Error,
    },
    /// The guest's agent refused the call or failed.
    #[error("in the guest: {message}")]
    Guest {
        /// What kind of fault it is.
        code: Code,
        /// The agent's message, for people.
        message: String,
    },
}

/// No byte came from the other side within a limit.
#[derive(Debug, thiserror::Error)]
#[error("no byte went either way for {} s", .0.as_secs())]
pub(crate) struct Stalled(pub Duration);

impl Error {
    /// Returns the stable code of the failure.
    pub fn code(&self) -> Code {
        match self {
            Error::Unreachable { .. } => Code::GuestUnreachable,
            Error::Silent(_) => Code::GuestSilent,
            Error::Broken(_) => Code::GuestChannelBroken,
            Error::Archive { .. } => Code::ArchiveIo,
            Error::Guest { code, .. } => *code,
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let stalled = error.get_ref().and_then(|inner| inner.downcast_ref::<Stalled>());
        match stalled {
            Some(Stalled(limit)) => Error::Silent(*limit),
            None => Error::Broken(error.to_string()),
        }
    }
}
