//! TLS for the API's client. The client's crate is below this one, so the connections are handed to
//! it.

use super::connect::{Expect, connect};
use super::credentials::Credentials;
use super::fault::fault_of;
use async_trait::async_trait;
use mvm_api::client::{Connect, Duplex};
use mvm_api::{Client, Problem};
use std::error::Error;
use std::sync::Arc;

/// Returns a client of the server at `address` (`HOST:PORT`), whose identity must be the expected
/// one. It presents the identity of `credentials` and connects with the first call.
pub fn client(address: impl Into<String>, credentials: Arc<Credentials>, expect: Expect) -> Client {
    let address = address.into();
    Client::over(address.clone(), Arc::new(Way { address, credentials, expect }))
}

struct Way {
    address: String,
    credentials: Arc<Credentials>,
    expect: Expect,
}

#[async_trait]
impl Connect for Way {
    async fn connect(&self) -> std::io::Result<Box<dyn Duplex>> {
        Ok(Box::new(connect(&self.address, &self.credentials, &self.expect).await?))
    }

    fn generation(&self) -> u64 {
        self.credentials.generation()
    }

    fn fault(&self, error: &(dyn Error + 'static)) -> Option<Problem> {
        fault_of(&self.address, error).map(Problem::from)
    }
}
