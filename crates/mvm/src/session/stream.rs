//! A stream to a guest, through the API.

use crate::error::CliError;
use mvm_api::{Client, paths};
use mvm_model::{Code, InstanceRef};

pub(super) type Stream = mvm_api::client::Stream;

/// Opens a stream to the instance's guest.
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

/// Turns an error of the guest channel into a command's error.
pub fn guest_problem(error: mvm_guest::Error) -> CliError {
    match error {
        // This message is the agent's, not the guest's: the machine was ended during the session.
        mvm_guest::Error::Guest { code: Code::GuestSilent, message } => {
            CliError::new(Code::GuestSilent, message)
        }
        error => CliError::new(error.code(), error.to_string()),
    }
}
