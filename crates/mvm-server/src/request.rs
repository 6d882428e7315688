//! The id of a request: taken from its header or made here. The response, the log and the audit log
//! repeat it.

use crate::drain::Left;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mvm_api::Problem;
use mvm_model::Code;
use tracing::Instrument;

/// The header with the request's id.
pub const REQUEST_ID: &str = "x-request-id";
/// The longest id that a caller may set, in characters.
const LONGEST: usize = 64;
/// The longest error text of axum that is kept, in bytes.
const LONGEST_WORDS: usize = 16 << 10;

/// The id of the request that is being handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

/// Gives every request an id, and turns every unsuccessful response into a problem document with
/// that id.
pub async fn layer(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let id = given.filter(|id| is_sane(id)).map_or_else(made, str::to_owned);
    let span = tracing::info_span!("request", id);
    let value = HeaderValue::from_str(&id).ok();
    if let Some(value) = value.clone() {
        // A request that is forwarded keeps its id.
        request.headers_mut().insert(REQUEST_ID, value);
    }
    request.extensions_mut().insert(RequestId(id.clone()));
    let left = Left::of(&mut request);
    let mut response = explained(next.run(request).instrument(span.clone()).await).await;
    if let Some(left) = left.filter(|_| response.status() != StatusCode::SWITCHING_PROTOCOLS) {
        left.drain().await;
    }
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        if problem.status >= 500 {
            tracing::error!(parent: &span, code = %problem.code, "{problem}");
        }
        problem.request_id = id.into();
        let (_, body) = problem.into_response().into_parts();
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        response = Response::from_parts(parts, body);
    }
    response
        .headers_mut()
        .extend(value.map(|value| (header::HeaderName::from_static(REQUEST_ID), value)));
    response
}

fn is_sane(id: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=LONGEST).contains(&id.len()) && id.bytes().all(fits)
}

fn made() -> String {
    let mut drawn = [0; 8];
    // Without random bytes the id is not unique, and the request is served nonetheless.
    let _ = getrandom::fill(&mut drawn);
    format!("{:016x}", u64::from_be_bytes(drawn))
}

/// Turns an error of the router or an extractor into a problem document.
async fn explained(response: Response) -> Response {
    let status = response.status();
    let refused = status.is_client_error() || status.is_server_error();
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !refused || kind.is_some_and(|kind| !kind.starts_with("text/plain")) {
        return response;
    }
    let allow = response.headers().get(header::ALLOW).cloned();
    let words = axum::body::to_bytes(response.into_body(), LONGEST_WORDS).await.unwrap_or_default();
    let (code, detail) = match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            (Code::MethodNotAllowed, "this path does not take that method")
        }
        StatusCode::PAYLOAD_TOO_LARGE => (Code::TooLarge, "the body is too long"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => (Code::NotJson, "the body is not JSON"),
        _ if status.is_server_error() => (Code::Internal, "the request cannot be served"),
        _ => (Code::InvalidValue, "the request cannot be read"),
    };
    let words = String::from_utf8_lossy(&words);
    let detail = if words.is_empty() { detail.to_owned() } else { words.into_owned() };
    let mut response = Problem::new(code, detail).into_response();
    response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use axum::{Extension, Router};
    use mvm_model::Code;
    use tower::ServiceExt;

    async fn ask(method: &str, path: &str, id: Option<&str>) -> (Response, Option<Problem>) {
        let told = |Extension(RequestId(id)): Extension<RequestId>| async move { id };
        let refuses = || async { Problem::new(Code::Conflict, "no") };
        let app = Router::new().route("/told", get(told)).route("/refuses", get(refuses));
        let mut request = Request::builder().method(method).uri(path);
        if let Some(id) = id {
            request = request.header(REQUEST_ID, id);
        }
        let request = request.body(Body::empty()).expect("a request");
        let Ok(response) = app.layer(from_fn(layer)).oneshot(request).await;
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 16).await.expect("a body");
        let problem = serde_json::from_slice(&bytes).ok();
        (Response::from_parts(parts, bytes.into()), problem)
    }

    fn id_of(response: &Response) -> &str {
        response.headers()[REQUEST_ID].to_str().expect("text")
    }

    #[tokio::test]
    async fn an_id_is_taken_where_it_is_sane_and_else_made() {
        let (response, _) = ask("GET", "/told", Some("build-7.a_b")).await;
        assert_eq!(id_of(&response), "build-7.a_b");
        for odd in [None, Some(""), Some("a b"), Some("a\"b"), Some(&*"a".repeat(65))] {
            let (response, _) = ask("GET", "/told", odd).await;
            let made = id_of(&response).to_owned();
            assert!(made.len() == 16 && Some(&*made) != odd, "{odd:?}: {made}");
            let bytes = axum::body::to_bytes(response.into_body(), 100).await.expect("a body");
            assert_eq!(bytes, made.as_bytes(), "the handler knows the same");
        }
    }

    #[tokio::test]
    async fn every_refusal_is_a_problem_document_with_the_id() {
        for (method, path, status) in [("GET", "/refuses", 409), ("PUT", "/told", 405)] {
            let (response, problem) = ask(method, path, Some("x1")).await;
            let problem = problem.unwrap_or_else(|| panic!("{path}: no problem document"));
            assert_eq!((response.status().as_u16(), problem.status), (status, status), "{path}");
            assert_eq!(&*problem.request_id, "x1");
            assert_eq!(response.headers()[header::CONTENT_TYPE], mvm_api::problem::MEDIA_TYPE);
            assert_eq!(response.headers().contains_key(header::ALLOW), status == 405);
        }
    }
}
