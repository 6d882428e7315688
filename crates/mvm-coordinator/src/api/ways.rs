//! The servers that requests are passed on to, and what is said of one that gives no answer.

use crate::records::Candidate;
use crate::{ClusterState, Refused, Result};
use mvm_api::{Client, ClientError, Problem};
use mvm_model::{Code, Name};

/// So many nodes are asked at once.
pub const AT_ONCE: usize = 64;

/// Whom a request is passed on to.
pub enum Whom {
    /// The coordinator that leads.
    Leader(Candidate),
    /// A node.
    Node(Name),
}

/// The way of a request that is passed on.
pub struct Way {
    /// What speaks to the server there.
    pub client: Client,
    /// Which server that is.
    pub whom: Whom,
}

impl Way {
    /// Waits until what is passed on this way can come to nothing any more: what only the leader does
    /// goes on at the next one.
    pub fn over(&self, fleet: &ClusterState) -> impl Future<Output = ()> + Send + use<> {
        let succession = match &self.whom {
            Whom::Leader(leader) => Some(fleet.leadership.succession(&leader.name)),
            Whom::Node(_) => None,
        };
        async move {
            match succession {
                Some(succession) => succession.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Why the server there gave no answer. Who asks knows this coordinator only, so that it is told
    /// which server that is, and whether the request came there.
    pub fn fault(&self, error: ClientError) -> Problem {
        let whom = match &self.whom {
            Whom::Leader(leader) => format!("coordinator {}, which led,", leader.name),
            Whom::Node(node) => format!("node {node}"),
        };
        match (error, &self.whom) {
            (ClientError::Problem(problem), _) => *problem,
            (ClientError::Unreachable { cause, .. }, Whom::Leader(_)) => {
                Problem::new(Code::NoLeader, format!("{whom} does not answer: {cause}"))
                    .hint("another one leads in some seconds: try again")
            }
            (ClientError::Unreachable { cause, .. }, Whom::Node(_)) => {
                Problem::new(Code::NodeUnreachable, format!("{whom} does not answer: {cause}"))
                    .hint("see `mvm fleet nodes`")
            }
            (error @ ClientError::Silent { .. }, _) => {
                let problem = error.into_problem();
                Problem { detail: format!("{whom} is silent: {}", problem.detail), ..problem }
            }
            (ClientError::Broken { doing, cause }, _) => {
                let detail = format!("the connection to {whom} broke while {doing}: {cause}");
                Problem::new(Code::ConnectionBroken, detail)
                    .hint("it may have been done: look before you ask again")
            }
        }
    }
}

/// The way to a node that is in reach.
pub fn way_to(fleet: &ClusterState, node: &Name) -> Result<Way> {
    let port = fleet.node_client(node).map_err(Refused::problem)?;
    let none = || Problem::new(Code::NoSuchRoute, format!("node {node} is simulated"));
    Ok(Way { client: port.http().ok_or_else(none)?, whom: Whom::Node(node.clone()) })
}
