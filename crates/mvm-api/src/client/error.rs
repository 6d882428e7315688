//! The errors of a client's call.

use crate::problem::Problem;
use mvm_model::{AnyCode, Code};

/// The error of a call.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server answers.
    #[error("nobody answers at {at}: {cause}")]
    Unreachable {
        /// The socket, or `HOST:PORT`.
        at: String,
        /// The operating system's error.
        cause: std::io::Error,
    },
    /// The connection broke, or the other side does not speak HTTP.
    #[error("the connection to the agent broke while {doing}: {cause}")]
    Broken {
        /// Method and path.
        doing: String,
        /// The cause.
        cause: String,
    },
    /// A server accepts connections and answers no request.
    #[error("{at} has not answered for {} s, not even whether it is there", waited.as_secs())]
    Silent {
        /// The socket, or `HOST:PORT`.
        at: String,
        /// How long the client has waited.
        waited: std::time::Duration,
    },
    /// The agent refused or failed.
    #[error("{0}")]
    Problem(Box<Problem>),
}

impl ClientError {
    /// Returns the code of this error's problem document; `None` where only a later version knows
    /// it.
    pub fn code(&self) -> Option<Code> {
        self.any_code().known()
    }

    /// Returns the code of this error's problem document, also one that only a later version knows.
    pub fn any_code(&self) -> AnyCode {
        match self {
            ClientError::Unreachable { .. } => Code::AgentUnreachable.into(),
            ClientError::Broken { .. } => Code::ConnectionBroken.into(),
            ClientError::Silent { .. } => Code::AgentSilent.into(),
            ClientError::Problem(problem) => problem.code.clone(),
        }
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> &str {
        match self {
            ClientError::Unreachable { at, .. } if at.starts_with('/') => {
                "see `mvm agent status`, or start it with `mvm agent serve`"
            }
            ClientError::Unreachable { .. } => {
                "check the address, and that an agent or a coordinator serves there: \
                 mvm agent serve --listen ADDRESS:PORT"
            }
            ClientError::Silent { .. } => {
                "its process was stopped or hangs, or its host does: see its state with ps(1), and end it \
                 with kill(1) if need be; what was asked may still be carried out, see then \
                 `mvm job list` and `mvm instance list`"
            }
            ClientError::Broken { .. } => {
                "the agent's log says more: see `mvm agent status` for its root"
            }
            ClientError::Problem(problem) => &problem.hint,
        }
    }

    /// Turns this error into a problem document.
    pub fn into_problem(self) -> Problem {
        match self {
            ClientError::Problem(problem) => *problem,
            error => Problem::new(error.any_code(), error.to_string()).hint(error.hint()),
        }
    }
}

/// Returns the innermost source of an error. hyper's own messages say little.
pub(super) fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match deepest.downcast_ref::<std::io::Error>() {
        // rustls describes an end without a TLS close_notify at length, with a link; three words
        // do.
        Some(end) if end.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the connection was cut".to_owned()
        }
        _ => deepest.to_string(),
    }
}

/// Makes the error of a connection that broke while `doing` something.
pub(super) fn broken(doing: &str, cause: impl ToString) -> ClientError {
    ClientError::Broken { doing: doing.to_owned(), cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::deepest;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_connection_that_ends_without_good_bye_is_told_in_few_words() {
        let end = Error::new(ErrorKind::UnexpectedEof, "peer closed connection without …");
        assert_eq!(deepest(&end), "the connection was cut");
        assert_eq!(deepest(&Error::other("a fault")), "a fault");
    }
}
