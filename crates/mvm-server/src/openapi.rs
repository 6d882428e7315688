//! The description of the API, as a server serves it.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use mvm_api::openapi::describe;
use mvm_api::routes::Server;

/// The description of what this server serves, to go out.
pub fn answer(server: Server) -> Response {
    let text = describe(Some(server)).to_string();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
