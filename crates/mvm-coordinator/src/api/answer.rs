//! Errors as answers: the only place where a coordinator makes problem documents.

use crate::Error;
use axum::response::{IntoResponse, Response};
use mvm_api::Problem;

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        match error {
            // A node's status may be one that goes with a code of a later version.
            Error::Problem(problem) => *problem,
            Error::Identity(error) => error.into(),
            Error::Server(error) => error.into(),
            Error::Fault(fault) => fault.into(),
            Error::Client(error) => error.into_problem(),
            error => Problem {
                path: error.path().into_owned(),
                ..Problem::new(error.code(), error.to_string()).hint(error.hint())
            },
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}
