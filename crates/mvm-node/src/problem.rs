//! Errors of the crates below, as problem documents.

use mvm_api::Problem;

/// Says an error of a lower crate as a problem document.
pub trait IntoProblem {
    /// The problem document.
    fn problem(self) -> Problem;
}

/// The HTTP status that suits a stable code of a lower crate.
fn status_of(code: &str) -> u16 {
    match code {
        "not_found" | "image_not_found" | "kernel_not_found" => 404,
        "flake_missing" | "profile_missing" | "flake_build_failed" | "not_a_kernel" => 422,
        "no_space" => 507,
        "name_taken" | "subnet_taken" | "store_locked" => 409,
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
coded!(
    mvm_hypervisor::Error,
    mvm_image::Error,
    mvm_network::Error,
    mvm_store::Error,
    mvm_guest::Error
);

/// An I/O error while `doing` something to something.
pub fn io(doing: impl std::fmt::Display, cause: std::io::Error) -> Problem {
    if cause.kind() == std::io::ErrorKind::StorageFull {
        return Problem::new(507, "no_space", format!("cannot {doing}: no space left on the disk"))
            .hint("free some space: mvm image gc, or destroy instances that are not needed");
    }
    Problem::new(500, "io", format!("cannot {doing}: {cause}"))
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
