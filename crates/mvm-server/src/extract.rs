//! Extractors for handlers: bodies, query parameters and pages, whose errors are problem documents.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Query as AxumQuery, Request};
use axum::http::Uri;
use axum::http::request::Parts;
use mvm_api::Problem;
use mvm_api::page::Page;
use mvm_model::Code;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A JSON body. Its errors are problem documents.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
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

/// Query parameters. Their errors are problem documents.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match AxumQuery::from_request_parts(parts, state).await {
            Ok(AxumQuery(value)) => Ok(Query(value)),
            Err(rejection) => Err(Problem::new(Code::InvalidValue, rejection.body_text())),
        }
    }
}

/// The query of a list: a filter, and a page.
#[derive(Clone, Debug)]
pub struct Listing<F = All> {
    /// The filter of the items.
    pub filter: F,
    /// The page of the filtered items.
    pub page: Page,
}

/// No filter: all items.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct All {}

impl<S: Send + Sync, F: DeserializeOwned> FromRequestParts<S> for Listing<F> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let page = Page::of_uri(&parts.uri)?;
        let rest =
            format!("/?{}", page.rest()).parse::<Uri>().map_err(|e| invalid(e.to_string()))?;
        match AxumQuery::try_from_uri(&rest) {
            Ok(AxumQuery(filter)) => Ok(Listing { filter, page }),
            Err(rejection) => Err(invalid(rejection.body_text())),
        }
    }
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidValue, detail)
}
