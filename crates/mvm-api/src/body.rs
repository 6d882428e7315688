//! JSON bodies of requests.

use crate::Problem;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use mvm_model::Code;

/// A JSON body whose faults are problem documents.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Body(value)),
            Err(rejection @ JsonRejection::MissingJsonContentType(_)) => {
                Err(Problem::new(Code::NotJson, rejection.body_text()))
            }
            Err(rejection) => Err(Problem::new(Code::InvalidDocument, rejection.body_text())),
        }
    }
}
