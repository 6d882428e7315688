//! Requests that may be repeated.

use super::{Client, ClientError, Stream, broken};
use crate::routes::IDEMPOTENCY_KEY;
use hyper::Method;
use hyper::header::HeaderValue;
use serde::Serialize;

impl Client {
    /// As [`Client::upgrade`], under a key: said again with the same one it is the same request.
    pub async fn upgrade_keyed(
        &self,
        path: &str,
        body: &impl Serialize,
        key: &str,
    ) -> Result<Stream, ClientError> {
        let doing = format!("POST {path}");
        let request = self.request(Method::POST, path, body, true);
        let mut request = request.map_err(|cause| broken(&doing, cause))?;
        let key = HeaderValue::from_str(key).map_err(|cause| broken(&doing, cause))?;
        request.headers_mut().insert(IDEMPOTENCY_KEY, key);
        self.switch(&doing, request).await
    }
}
