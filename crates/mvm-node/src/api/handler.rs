//! The parameters and results that all handlers share.

pub use mvm_api::types::Done;
pub use mvm_server::Caller;
pub use mvm_server::extract::{Body, Listing as Asked};

use crate::Error;
use crate::agent::Agent;
use crate::error::InternalError;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use mvm_api::Problem;
use mvm_api::page::List;
use std::sync::Arc;
use tracing::Instrument;

/// The state that every handler takes.
pub type Shared = State<Arc<Agent>>;
/// The result of most handlers.
pub type Answer<T> = Result<Json<T>, Refusal>;
/// The result of the handlers of lists: a page.
pub type Listing<T> = Result<List<T>, Refusal>;

/// A problem as an HTTP response.
pub struct Refusal(pub Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Refusal(problem)
    }
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Refusal(error.into().into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// Runs an operation to its end even if the client disconnects.
pub async fn detached<T: Send + 'static>(
    work: impl Future<Output = crate::Result<T>> + Send + 'static,
) -> crate::Result<T> {
    match tokio::spawn(crate::audit::with_act(work).in_current_span()).await {
        Ok(outcome) => outcome,
        Err(error) => Err(InternalError::Operation(error).into()),
    }
}

/// Returns an empty object.
pub fn done() -> Json<Done> {
    Json(Done {})
}
