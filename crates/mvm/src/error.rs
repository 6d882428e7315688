//! The errors of commands.

use mvm_api::{ClientError, Problem};
use mvm_model::{Code, Fault};

/// The error of a command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The agent or coordinator refused, or could not be reached.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// An error with a local file or folder.
    #[error("{0}")]
    LocalFile(Box<Advised>),
    /// An error that the command itself has found, before a call or in its answer.
    #[error("{1}")]
    Here(Code, Box<Advised>),
    /// An error that is a problem document already: of an identity, of a server in this process, or
    /// in an event.
    #[error("{0}")]
    Problem(Box<Problem>),
}

/// An error message, and a hint where there is one.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Advised {
    what: String,
    hint: String,
}

fn advised(what: impl Into<String>) -> Box<Advised> {
    Box::new(Advised { what: what.into(), hint: String::new() })
}

impl CliError {
    /// Makes an error that the command itself has found.
    pub fn new(code: Code, what: impl Into<String>) -> CliError {
        CliError::Here(code, advised(what))
    }

    /// Makes an error about a local file or folder.
    pub fn file(what: impl Into<String>) -> CliError {
        CliError::LocalFile(advised(what))
    }

    /// Makes an error for a fault of mvm itself.
    pub fn internal(what: impl Into<String>) -> CliError {
        CliError::new(Code::Internal, what)
    }

    /// Sets the hint: what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        match &mut self {
            CliError::LocalFile(advised) | CliError::Here(_, advised) => advised.hint = hint.into(),
            CliError::Problem(problem) => problem.hint = hint.into(),
            CliError::Client(_) => return CliError::from(self.into_document()).hint(hint),
        }
        self
    }

    /// Returns the error's code; `None` where only a later version knows it.
    pub fn code(&self) -> Option<Code> {
        match self {
            CliError::Client(error) => error.code(),
            CliError::LocalFile(_) => Some(Code::LocalFile),
            CliError::Here(code, _) => Some(*code),
            CliError::Problem(problem) => problem.code.known(),
        }
    }

    /// Returns whether the error has one of these codes.
    pub fn is_one_of(&self, codes: &[Code]) -> bool {
        self.code().is_some_and(|code| codes.contains(&code))
    }

    /// Returns the message, without the path in a document.
    pub fn detail(&self) -> String {
        match self {
            CliError::Client(ClientError::Problem(problem)) => problem.detail.clone(),
            CliError::Problem(problem) => problem.detail.clone(),
            other => other.to_string(),
        }
    }

    /// Returns the error as a problem document, which programs get whatever its source.
    pub fn into_document(self) -> Problem {
        match self {
            CliError::Client(error) => error.into_problem(),
            CliError::LocalFile(said) => Problem::new(Code::LocalFile, said.what).hint(said.hint),
            CliError::Here(code, said) => Problem::new(code, said.what).hint(said.hint),
            CliError::Problem(problem) => *problem,
        }
    }
}

/// Errors of what runs in this process: their document says as much as they do.
macro_rules! documented {
    ($($error:ty),*) => {$(
        impl From<$error> for CliError {
            fn from(error: $error) -> CliError {
                Problem::from(error).into()
            }
        }
    )*};
}
documented!(Fault, mvm_identity::Error, mvm_server::Error, mvm_coordinator::Error, mvm_node::Error);

impl From<Problem> for CliError {
    fn from(problem: Problem) -> CliError {
        CliError::Problem(Box::new(problem))
    }
}
