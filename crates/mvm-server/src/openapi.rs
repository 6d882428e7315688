//! Serves the API's description.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use mvm_api::openapi::describe;
use mvm_api::routes::Server;

/// Returns the response with the description of this server's routes.
pub fn answer(server: Server) -> Response {
    let text = describe(Some(server)).to_string();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
