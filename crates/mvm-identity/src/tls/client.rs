//! TLS for the API's client, which is handed it: it is below keys and certificates.

use super::connect::{Expect, connect};
use super::fault::fault_of;
use super::keeper::Keeper;
use async_trait::async_trait;
use mvm_api::client::{Connect, Duplex};
use mvm_api::{Client, Problem};
use std::error::Error;
use std::sync::Arc;

/// A client of the server at `address` (`HOST:PORT`), which must be whom we expect, with the
/// identity that `keeper` keeps. Connects with the first call.
pub fn client(address: impl Into<String>, keeper: Arc<Keeper>, expect: Expect) -> Client {
    let address = address.into();
    Client::over(address.clone(), Arc::new(Way { address, keeper, expect }))
}

struct Way {
    address: String,
    keeper: Arc<Keeper>,
    expect: Expect,
}

#[async_trait]
impl Connect for Way {
    async fn connect(&self) -> std::io::Result<Box<dyn Duplex>> {
        Ok(Box::new(connect(&self.address, &self.keeper, &self.expect).await?))
    }

    fn generation(&self) -> u64 {
        self.keeper.generation()
    }

    fn fault(&self, error: &(dyn Error + 'static)) -> Option<Problem> {
        fault_of(&self.address, error)
    }
}
