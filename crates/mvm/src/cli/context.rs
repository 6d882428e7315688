//! What every command gets, and what several share.

use super::remote::{self, OurIdentity, Remote};
use super::values::{Address, Coordinators, Of};
use crate::agent_process;
use crate::error::CliError;
use crate::output::Format;
use clap::Args;
use mvm_api::client::Patience;
use mvm_api::{Client, paths};
use mvm_model::Code;
use std::path::PathBuf;

/// What every command gets.
#[derive(Clone, Debug)]
pub struct Context {
    /// The state directory.
    pub root: PathBuf,
    /// How to show results.
    pub format: Format,
    /// The node to do it on, where it is another machine.
    pub remote: Option<(Address, Remote)>,
    /// The coordinators to ask, where any is named.
    pub coordinator: Option<Coordinators>,
    /// Who we are to it.
    pub ours: OurIdentity,
    /// How long a fleet without a leader is waited for.
    pub patience: Patience,
}

impl Context {
    /// A client of whoever is to do it: a node or a coordinator that is named, else the agent here.
    pub fn client(&self) -> Result<Client, CliError> {
        match (&self.remote, &self.coordinator) {
            (Some((node, remote)), _) => remote.client(node),
            (None, Some(_)) => self.coordinator(),
            (None, None) => self.agent(),
        }
    }

    /// A client of this machine's agent; starts the agent if none runs.
    pub fn agent(&self) -> Result<Client, CliError> {
        agent_process::client(&self.root)
    }

    /// The same, who also waits for an agent that is being replaced; one on this machine that was killed
    /// is started again.
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

    /// A client of the coordinator: of the one that is named, else of the one on this machine.
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

/// A list that is empty since there is no such tenant or pool is an error.
pub async fn explain_empty(client: &Client, of: Option<&Of>) -> Result<(), CliError> {
    let path = match of {
        None => return Ok(()),
        Some(Of::Tenant(tenant)) => paths::tenant(tenant),
        Some(Of::Pool(pool)) => paths::pool(pool),
    };
    client.get::<serde_json::Value>(&path).await.map(drop).map_err(CliError::from)
}

/// Whether it is because one leader of the fleet has ended and the next has not begun.
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
    /// Length of the lease that it takes, in seconds [default: 3600]
    #[arg(long, value_name = "SECONDS")]
    pub lease: Option<u64>,
}
