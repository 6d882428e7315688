//! A stream into a guest, by way of the API.

use crate::error::CliError;
use mvm_api::{Client, paths};
use mvm_model::{Code, InstanceRef};

pub(super) type Stream = mvm_api::client::Stream;

/// A fresh stream to the instance's guest.
pub async fn open(
    client: &Client,
    instance: &InstanceRef,
    lease_s: Option<u64>,
) -> Result<Stream, CliError> {
    let mut path = paths::instance_part(instance, "stream");
    if let Some(seconds) = lease_s {
        path.push_str(&format!("?lease_s={seconds}"));
    }
    client.streams().upgrade(&path, &()).await.map_err(CliError::from)
}

/// An error of the guest as a problem.
pub fn guest_problem(error: mvm_guest::Error) -> CliError {
    match error {
        // The agent's word, not the guest's: its machine was ended under the session.
        mvm_guest::Error::Guest { code: Code::GuestSilent, message } => {
            CliError::new(Code::GuestSilent, message)
        }
        error => CliError::new(error.code(), error.to_string()),
    }
}
