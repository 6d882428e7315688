//! The context of every command, and helpers that several commands share.

use super::remote::{self, OurIdentity, Remote};
use super::values::{Address, Coordinators, ListScope};
use crate::agent_process;
use crate::error::CliError;
use crate::output::Format;
use clap::Args;
use mvm_api::client::Patience;
use mvm_api::{Client, paths};
use mvm_model::Code;
use std::path::PathBuf;

/// The context of a command: options that all commands have.
#[derive(Clone, Debug)]
pub struct Context {
    /// The state directory.
    pub root: PathBuf,
    /// The output format.
    pub format: Format,
    /// The node to run the command on, where it is another machine.
    pub remote: Option<(Address, Remote)>,
    /// The coordinators to ask, where some are named.
    pub coordinator: Option<Coordinators>,
    /// The identity that we present to other machines.
    pub ours: OurIdentity,
    /// How long to wait for a fleet without a leader.
    pub patience: Patience,
}

impl Context {
    /// Returns a client of the named node or coordinator, or else of the agent on this machine.
    pub fn client(&self) -> Result<Client, CliError> {
        match (&self.remote, &self.coordinator) {
            (Some((node, remote)), _) => remote.client(node),
            (None, Some(_)) => self.coordinator(),
            (None, None) => self.agent(),
        }
    }

    /// Returns a client of this machine's agent; starts the agent if none runs.
    pub fn agent(&self) -> Result<Client, CliError> {
        agent_process::client(&self.root)
    }

    /// Like [`Context::client`], but also waits for an agent that is being replaced. An agent on
    /// this machine that was killed is started again.
    pub fn patient(&self) -> Result<Client, CliError> {
        let patience = self.patience.clone();
        let patience = match (&self.remote, &self.coordinator) {
            (None, None) => {
                let root = self.root.clone();
                patience.reviving(move || agent_process::revive(&root))
            }
            _ => patience,
        };
        Ok(self.client()?.patient(patience))
    }

    /// Returns a client of the named coordinators, or else of the one on this machine.
    pub fn coordinator(&self) -> Result<Client, CliError> {
        match &self.coordinator {
            Some(list) => {
                let client = remote::coordinator(list, &self.ours)?;
                Ok(client.patient(self.patience.clone()))
            }
            None => {
                let socket = self.root.join("coordinator.sock");
                if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
                    return Ok(Client::new(socket).patient(self.patience.clone()));
                }
                let detail = format!("no coordinator serves {}", self.root.display());
                Err(CliError::new(Code::CoordinatorUnreachable, detail).hint(
                    "name one with --coordinator HOST:PORT, or start one: mvm coordinator serve",
                ))
            }
        }
    }
}

/// Returns an error where a list is empty because its tenant or pool does not exist.
pub async fn explain_empty(client: &Client, of: Option<&ListScope>) -> Result<(), CliError> {
    let path = match of {
        None => return Ok(()),
        Some(ListScope::Tenant(tenant)) => paths::tenant(tenant),
        Some(ListScope::Pool(pool)) => paths::pool(pool),
    };
    client.get::<serde_json::Value>(&path).await.map(drop).map_err(CliError::from)
}

/// Returns whether the error's cause is that one leader of the fleet has ended and the next has not
/// begun.
pub fn is_between_leaders(problem: &CliError) -> bool {
    problem.is_one_of(&[
        Code::LeaderChanged,
        Code::NoLeader,
        Code::AgentUnreachable,
        Code::ConnectionBroken,
    ])
}

/// How many seconds a lease lasts.
#[derive(Clone, Copy, Debug, Args)]
pub struct LeaseLength {
    /// Length of the lease, in seconds [default: 3600]
    #[arg(long, value_name = "SECONDS")]
    pub lease: Option<u64>,
}
