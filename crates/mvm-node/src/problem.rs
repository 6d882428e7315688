//! Errors of the crates below, as problem documents.

use mvm_api::Problem;
use mvm_model::Code;

/// Turns an error of a lower crate into a problem document.
pub trait IntoProblem {
    /// Returns the problem document.
    fn problem(self) -> Problem;
}

macro_rules! coded {
    ($($error:ty),*) => {$(
        impl IntoProblem for $error {
            fn problem(self) -> Problem {
                Problem::new(self.code(), self.to_string())
            }
        }
    )*};
}
coded!(
    mvm_guest::Error,
    mvm_hypervisor::Error,
    mvm_image::Error,
    mvm_network::Error,
    mvm_store::Error
);

/// Makes the problem of a call of the operating system. `doing` is the action and its object.
pub fn io(doing: impl std::fmt::Display, cause: std::io::Error) -> Problem {
    mvm_identity::files::io(doing, cause).into()
}

/// Returns the problem that `what` does not exist.
pub fn not_found(what: impl std::fmt::Display, hint: &str) -> Problem {
    Problem::new(Code::NotFound, format!("there is no {what}")).hint(hint)
}

/// Turns the error of a lower crate's result into a problem document.
pub trait OrProblem<T> {
    /// Returns the value, or the error as a problem document.
    fn or_problem(self) -> crate::Result<T>;
}

impl<T, E: IntoProblem> OrProblem<T> for Result<T, E> {
    fn or_problem(self) -> crate::Result<T> {
        self.map_err(IntoProblem::problem)
    }
}

/// Returns the problem that `what` exists already and differs from the request.
pub fn exists(what: String, verb: &str) -> Problem {
    Problem::new(Code::Exists, format!("{what} exists already, and differs"))
        .hint(format!("change it with `{verb}`, or destroy it first"))
}
