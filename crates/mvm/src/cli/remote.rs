//! Options for other machines: their addresses, and the identity that we present to them.

use super::values::{Address, Coordinators};
use crate::error::CliError;
use crate::time::wall;
use clap::Args;
use mvm_api::Client;
use mvm_identity::IdentityDir;
use mvm_identity::tls::{Credentials, Expect};
use mvm_model::{Code, Name};
use std::path::PathBuf;
use std::sync::Arc;

/// Who we are.
#[derive(Clone, Debug, Default, Args)]
pub struct OurIdentity {
    /// Directory of the identity to show [default: /etc/mvm/identity as root, else
    /// ~/.config/mvm/identity]
    #[arg(long, env = "MVM_IDENTITY", value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// Whether it was named on the command line, and not by the environment, which says who the user is.
    #[arg(skip)]
    pub is_named: bool,
}

impl OurIdentity {
    /// Returns the identity's directory as an absolute path.
    pub fn dir(&self) -> IdentityDir {
        let dir = self.identity.clone().unwrap_or_else(|| config_dir().join("identity"));
        IdentityDir::new(std::path::absolute(&dir).unwrap_or(dir))
    }

    /// Returns the identity's directory as an absolute path, if the command line names it. A
    /// machine's own identity may be there.
    pub fn named(&self) -> Option<IdentityDir> {
        self.is_named.then(|| self.dir())
    }

    /// Returns the identity. An expired one is an error, since no server would accept it.
    pub fn credentials(&self) -> Result<Arc<Credentials>, CliError> {
        let credentials = Credentials::open(self.dir())?;
        let facts = credentials.credential().facts;
        if wall() >= facts.validity.not_after {
            let dir = self.dir();
            let detail = format!(
                "the certificate of {} in {} has run out",
                facts.identity.holder(),
                dir.path().display()
            );
            return Err(CliError::new(Code::CertificateExpired, detail)
                .hint("get a new one: `mvm ca issue`, or `mvm node join` for a node"));
        }
        Ok(credentials)
    }
}

/// Returns a client of these coordinators; any of them may answer.
pub fn coordinator(list: &Coordinators, ours: &OurIdentity) -> Result<Client, CliError> {
    let all = coordinators(list, ours)?.into_iter().reduce(Client::or);
    all.ok_or_else(|| CliError::internal("a list of no coordinators"))
}

/// Returns a client of each coordinator.
pub fn coordinators(list: &Coordinators, ours: &OurIdentity) -> Result<Vec<Client>, CliError> {
    let mut credentials = None;
    let client = |address: &Address| {
        let address = address.to_string();
        if let Some(path) = address.strip_prefix("unix:") {
            return Ok(Client::new(path));
        }
        let credentials = match &mut credentials {
            Some(credentials) => credentials,
            none => none.insert(ours.credentials()?),
        };
        Ok(tls(address, credentials))
    };
    list.addresses().iter().map(client).collect()
}

fn tls(address: String, credentials: &Arc<Credentials>) -> Client {
    mvm_identity::client(address, credentials.clone(), Expect::Coordinator)
}

/// A node that is called directly; the coordinator is asked where none is named.
#[derive(Clone, Debug, Args)]
pub struct Remote {
    /// The node's address; the port is 4433 where it is left out
    #[arg(long, value_name = "HOST:PORT")]
    pub node: Option<Address>,
    /// The name that the node must have; without it, any node of the same authority will do
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<Name>,
    #[command(flatten)]
    pub ours: OurIdentity,
}

impl Remote {
    /// Returns a client of the node's agent.
    pub fn client(&self, node: &Address) -> Result<Client, CliError> {
        let expect = Expect::Node(self.node_name.clone());
        Ok(mvm_identity::client(node.to_string(), self.ours.credentials()?, expect))
    }

    /// Returns the arguments with which another `mvm` reaches the same node.
    pub fn words(&self, node: &Address) -> Vec<String> {
        let identity = self.ours.dir().path().display().to_string();
        let mut words = vec!["--node".to_owned(), node.to_string()];
        words.extend(["--identity".to_owned(), identity]);
        if let Some(name) = &self.node_name {
            words.extend(["--node-name".to_owned(), name.to_string()]);
        }
        words
    }
}

/// Returns the folder of the user's configuration: a system path for root, the XDG one for other
/// users.
pub fn config_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/etc/mvm");
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".config");
    config.unwrap_or_else(home).join("mvm")
}
