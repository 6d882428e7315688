//! Errors of the crates below, as problem documents.

use mvm_api::Problem;
pub use mvm_api::files::io;

/// Says an error of a lower crate as a problem document.
pub trait IntoProblem {
    /// The problem document.
    fn problem(self) -> Problem;
}

/// The HTTP status that suits a stable code of a lower crate.
fn status_of(code: &str) -> u16 {
    match code {
        "revision_missing" => 404,
        "invalid" => 400,
        "flake_missing"
        | "flake_foreign"
        | "profile_missing"
        | "flake_build_failed"
        | "flake_evaluation_failed"
        | "sandbox_unavailable"
        | "sandbox_refused"
        | "not_a_kernel"
        | "kernel_missing"
        | "kernel_compression"
        | "kernel_unfit"
        | "image_refused" => 422,
        "no_space" => 507,
        "name_taken" | "exists" | "ambiguous" | "busy" => 409,
        _ => 500,
    }
}

macro_rules! coded {
    ($($error:ty),*) => {$(
        impl IntoProblem for $error {
            fn problem(self) -> Problem {
                Problem::new(status_of(self.code()), self.code(), self.to_string())
            }
        }
    )*};
}
coded!(mvm_hypervisor::Error, mvm_image::Error, mvm_network::Error, mvm_guest::Error);

impl IntoProblem for mvm_store::Error {
    fn problem(self) -> Problem {
        self.into()
    }
}

/// `what` is not known.
pub fn not_found(what: impl std::fmt::Display, hint: &str) -> Problem {
    Problem::new(404, "not_found", format!("there is no {what}")).hint(hint)
}

/// Shorthand for mapping a lower crate's error.
pub trait OrProblem<T> {
    /// The value, or the error as a problem document.
    fn or_problem(self) -> crate::Result<T>;
}

impl<T, E: IntoProblem> OrProblem<T> for Result<T, E> {
    fn or_problem(self) -> crate::Result<T> {
        self.map_err(IntoProblem::problem)
    }
}

/// `what` exists, and is not what was asked for.
pub fn exists(what: String, verb: &str) -> Problem {
    Problem::new(409, "exists", format!("{what} exists already, and differs"))
        .hint(format!("change it with `{verb}`, or destroy it first"))
}
