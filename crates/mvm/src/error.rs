//! Why a command failed, as the command line sees it.

use mvm_api::{ClientError, Problem};
use mvm_model::{Code, Fault};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The agent or coordinator refused, or could not be asked.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// A file or folder on this side, where `mvm` runs.
    #[error("{0}")]
    LocalFile(Box<Advised>),
    /// Found here: before somebody is asked, or in what was answered.
    #[error("{1}")]
    Here(Code, Box<Advised>),
    /// As somebody has put it already: an identity, a server that this process was, an event's data.
    #[error("{0}")]
    Problem(Box<Problem>),
}

/// What went wrong, and what to do next where that is known.
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
    /// An error that was found here.
    pub fn new(code: Code, what: impl Into<String>) -> CliError {
        CliError::Here(code, advised(what))
    }

    /// What is wrong with a file or folder on this side.
    pub fn file(what: impl Into<String>) -> CliError {
        CliError::LocalFile(advised(what))
    }

    /// Something that should not happen.
    pub fn internal(what: impl Into<String>) -> CliError {
        CliError::new(Code::Internal, what)
    }

    /// The same with the next step to take.
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        match &mut self {
            CliError::LocalFile(advised) | CliError::Here(_, advised) => advised.hint = hint.into(),
            CliError::Problem(problem) => problem.hint = hint.into(),
            CliError::Client(_) => return CliError::from(self.into_document()).hint(hint),
        }
        self
    }

    /// Its code; none where only a later version knows it.
    pub fn code(&self) -> Option<Code> {
        match self {
            CliError::Client(error) => error.code(),
            CliError::LocalFile(_) => Some(Code::LocalFile),
            CliError::Here(code, _) => Some(*code),
            CliError::Problem(problem) => problem.code.known(),
        }
    }

    /// Whether it is of one of these codes.
    pub fn is_one_of(&self, codes: &[Code]) -> bool {
        self.code().is_some_and(|code| codes.contains(&code))
    }

    /// What went wrong, without the place in a document.
    pub fn detail(&self) -> String {
        match self {
            CliError::Client(ClientError::Problem(problem)) => problem.detail.clone(),
            CliError::Problem(problem) => problem.detail.clone(),
            other => other.to_string(),
        }
    }

    /// As programs get it: in the form of the API's problems, whoever has found it.
    pub fn into_document(self) -> Problem {
        match self {
            CliError::Client(error) => error.into_problem(),
            CliError::LocalFile(said) => Problem::new(Code::LocalFile, said.what).hint(said.hint),
            CliError::Here(code, said) => Problem::new(code, said.what).hint(said.hint),
            CliError::Problem(problem) => *problem,
        }
    }
}

impl From<Problem> for CliError {
    fn from(problem: Problem) -> CliError {
        CliError::Problem(Box::new(problem))
    }
}

impl From<Fault> for CliError {
    fn from(fault: Fault) -> CliError {
        Problem::from(fault).into()
    }
}
