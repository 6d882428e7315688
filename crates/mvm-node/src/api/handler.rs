//! What all handlers share: what they get, and what they answer.

pub use mvm_api::types::Done;
pub use mvm_server::Caller;
pub use mvm_server::extract::{Body, Listing as Asked};

use crate::agent::Agent;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use mvm_api::Problem;
use mvm_api::page::List;
use std::sync::Arc;
use tracing::Instrument;

/// What every handler gets.
pub type Shared = State<Arc<Agent>>;
/// What every handler gives.
pub type Answer<T> = Result<Json<T>, Refusal>;
/// What the handlers of lists give: a page.
pub type Listing<T> = Result<List<T>, Refusal>;

/// A problem as an HTTP answer.
pub struct Refusal(pub Problem);

impl<E: Into<Problem>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Refusal(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// Runs an operation to its end even when the client goes away in the middle.
pub async fn detached<T: Send + 'static>(
    work: impl Future<Output = crate::Result<T>> + Send + 'static,
) -> crate::Result<T> {
    match tokio::spawn(crate::audit::carried(work).in_current_span()).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Problem::internal(format!("the operation did not end well: {error}"))),
    }
}

/// Done.
pub fn done() -> Json<Done> {
    Json(Done {})
}
