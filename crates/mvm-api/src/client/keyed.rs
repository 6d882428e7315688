//! Requests that may be repeated.

use super::{Client, ClientError, Stream, broken, is_success};
use crate::routes::IDEMPOTENCY_KEY;
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
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
        let (response, _sender) = self.exchange(&doing, request).await?;
        if !is_success(response.status()) {
            return Err(self.refusal(response, &doing).await?);
        }
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(broken(&doing, "the agent did not switch protocols"));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|cause| broken(&doing, cause))?;
        Ok(TokioIo::new(upgraded))
    }
}
