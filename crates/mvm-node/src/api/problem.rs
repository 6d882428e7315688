//! Errors as problem documents: the only place where they become such.

use crate::Error;
use axum::response::{IntoResponse, Response};
use mvm_api::Problem;

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        match error {
            // Another process' document is passed on as it came.
            Error::Client(error) => error.into_problem(),
            Error::Identity(error) => error.into(),
            Error::Server(error) => error.into(),
            Error::Hinted { error, hint } => Problem::from(*error).hint(hint),
            Error::Step { step, error } => {
                let problem = Problem::from(*error);
                Problem { detail: format!("cannot {step}: {}", problem.detail), ..problem }
            }
            error => {
                let problem = Problem::new(error.code(), error.detail()).hint(error.hint());
                Problem { path: error.path().to_owned(), ..problem }
            }
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}
