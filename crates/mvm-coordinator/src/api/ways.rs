//! The servers that requests are passed on to, and what is said of one that gives no answer.

use crate::records::Candidate;
use crate::{ClusterState, Error, Refused, Result};
use mvm_api::{Client, ClientError};
use mvm_model::Name;

/// How many nodes are asked at once.
pub const AT_ONCE: usize = 64;

/// The destination of a request that is passed on.
pub enum Destination {
    /// The coordinator that leads.
    Leader(Candidate),
    /// A node.
    Node(Name),
}

/// The server that a request is passed on to, and the client that reaches it.
pub struct Upstream {
    /// What speaks to the server there.
    pub client: Client,
    /// Which server that is.
    pub destination: Destination,
}

impl Upstream {
    /// Waits until nothing can come of what is passed on this way: another coordinator leads, and
    /// goes on with what only the leader does. With a node that never happens.
    pub fn over(&self, fleet: &ClusterState) -> impl Future<Output = ()> + Send + use<> {
        let succession = match &self.destination {
            Destination::Leader(leader) => Some(fleet.leadership.succession(&leader.name)),
            Destination::Node(_) => None,
        };
        async move {
            match succession {
                Some(succession) => succession.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Explains why the server gave no answer. The caller knows this coordinator only, so the
    /// error names the server, and says whether the request may have come there.
    pub fn fault(&self, error: ClientError) -> Error {
        let server = || match &self.destination {
            Destination::Leader(leader) => format!("coordinator {}, which led,", leader.name),
            Destination::Node(node) => format!("node {node}"),
        };
        match (error, &self.destination) {
            (error @ ClientError::Problem(_), _) => Error::Client(error),
            (ClientError::Unreachable { cause, .. }, Destination::Leader(leader)) => {
                Error::LeaderSilent { leader: leader.name.clone(), cause }
            }
            (ClientError::Unreachable { cause, .. }, Destination::Node(node)) => {
                Error::NodeSilent { node: node.clone(), cause }
            }
            (cause @ ClientError::Silent { .. }, _) => Error::Silent { server: server(), cause },
            (ClientError::Broken { doing, cause }, _) => {
                Error::Broken { server: server(), doing, cause }
            }
        }
    }
}

/// Returns the way to a node that is in reach. Errors: `node_unreachable`, and `no_such_route` for
/// a simulated node.
pub fn way_to(fleet: &ClusterState, node: &Name) -> Result<Upstream> {
    let port = fleet.node_client(node).map_err(Refused::into_error)?;
    let none = || Error::Simulated(node.clone());
    Ok(Upstream {
        client: port.http().ok_or_else(none)?,
        destination: Destination::Node(node.clone()),
    })
}
