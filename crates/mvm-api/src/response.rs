//! Problems and lists as HTTP responses (feature `responses`). The code is in this crate because
//! the trait and the types are foreign to the servers' crates; a client does without.

use crate::Problem;
use crate::page::List;
use crate::problem::MEDIA_TYPE;
use axum_core::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// The response keeps the problem itself for the middleware.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(status, MEDIA_TYPE, &self);
        response.extensions_mut().insert(self);
        response
    }
}

impl<T: Serialize> IntoResponse for List<T> {
    fn into_response(self) -> Response {
        let mut response = json(StatusCode::OK, "application/json", &self.items);
        let link = self.next.map(|next| format!("<{next}>; rel=\"next\""));
        let link = link.and_then(|link| HeaderValue::from_str(&link).ok());
        response.headers_mut().extend(link.map(|link| (header::LINK, link)));
        response
    }
}

fn json(status: StatusCode, media_type: &'static str, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => (status, [(header::CONTENT_TYPE, media_type)], text).into_response(),
        Err(cause) => (StatusCode::INTERNAL_SERVER_ERROR, cause.to_string()).into_response(),
    }
}
