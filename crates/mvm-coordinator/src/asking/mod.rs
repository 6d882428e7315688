//! Asking one node for a claim, until it is known what the node has of it.
//!
//! What an answer means is decided in `mvm_model::fleet::Asking`. A request is given up when the
//! link to its node breaks: a half-open connection says nothing, and asking again with the same id
//! asks for the same claim.

use crate::Error;
use crate::claim_queue::ClaimOrder;
use crate::leadership::Lead;
use crate::node_client::Refused;
use crate::state::ClusterState;
use mvm_api::fleet::NodeClaim;
use mvm_api::types::Claim;
use mvm_model::fleet::{Asking, CallOutcome, Step};
use mvm_model::{Code, Name};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long one request may take before the node is asked again.
const TRY: Duration = Duration::from_secs(15);
/// How long to wait before a node is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a node does not serve a claim.
#[derive(Debug)]
pub(crate) enum Unserved {
    /// The node has nothing of the claim: another one may serve it.
    Elsewhere(Error),
    /// The node may have something of the claim, and is asked to end it when it is in reach again.
    Lost(Error),
    /// Another coordinator leads, and goes on with the claim.
    Succeeded,
}

/// Asks the node until its answer is known; asking again with the same id asks for the same claim.
pub(crate) async fn ask(
    fleet: &ClusterState,
    lead: &Lead,
    order: &ClaimOrder,
    node: &Name,
    mut asking: Asking,
) -> Result<Claim, Unserved> {
    let body = NodeClaim {
        leader: lead.leader.clone(),
        pool: order.pool.clone(),
        holder: order.holder.clone(),
        lease_s: order.lease_s,
    };
    while lead.is_held() {
        let answer = match fleet.node_client(node) {
            Ok(port) => while_held(fleet, lead, node, port.claim(order.id, &body)).await?,
            Err(refused) => Err(refused),
        };
        let refused = match answer {
            Ok(claim) => return Ok(claim),
            Err(refused) => refused,
        };
        let heard = outcome_of(&refused);
        let error = refused.into_error();
        if error.code() == Code::StaleLeader {
            break;
        }
        let step =
            asking.heard(heard, fleet.reaches(node), fleet.has_lost(node), fleet.clock().now());
        tracing::info!(claim = %order.id, %node, ?heard, ?step, "not served: {error}");
        match step {
            Step::Elsewhere => return Err(Unserved::Elsewhere(error)),
            Step::GiveUp => return Err(Unserved::Lost(error)),
            Step::EndFirst if has_ended(fleet, lead, order, node).await? => {
                return Err(Unserved::Elsewhere(error));
            }
            Step::EndFirst | Step::Again => sleep(AGAIN).await,
        }
    }
    Err(Unserved::Succeeded)
}

/// Asks the node to end what it has of the claim; returns whether it says that nothing is left.
async fn has_ended(
    fleet: &ClusterState,
    lead: &Lead,
    order: &ClaimOrder,
    node: &Name,
) -> Result<bool, Unserved> {
    let Ok(port) = fleet.node_client(node) else { return Ok(false) };
    Ok(while_held(fleet, lead, node, port.end(order.id, &lead.leader)).await?.is_ok())
}

/// Returns the answer to one request to the node, for which it waits while we lead and our link to
/// the node holds.
async fn while_held<T>(
    fleet: &ClusterState,
    lead: &Lead,
    node: &Name,
    answer: impl Future<Output = Result<T, Refused>>,
) -> Result<Result<T, Refused>, Unserved> {
    let silent = |why| Ok(Err(Refused::Unknown(why)));
    tokio::select! {
        answer = timeout(TRY, answer) => match answer {
            Ok(answer) => Ok(answer),
            Err(_) => silent(Error::Timeout),
        },
        () = fleet.unreached(node) => silent(Error::LinkBroke),
        () = lead.lost() => Err(Unserved::Succeeded),
    }
}

fn outcome_of(refused: &Refused) -> CallOutcome {
    match refused {
        Refused::No(_) => CallOutcome::Refused,
        Refused::Failed(_) => CallOutcome::Failed,
        Refused::Unreached(_) => CallOutcome::Unreached,
        Refused::Unknown(_) => CallOutcome::Nothing,
    }
}

/// Returns the error for the client of a claim: another coordinator leads, or the node is lost with
/// the machine.
pub(crate) fn client_error(unserved: Unserved, node: &Name) -> Error {
    match unserved {
        Unserved::Succeeded => Error::Succeeded,
        Unserved::Elsewhere(cause) | Unserved::Lost(cause) => {
            Error::ClaimLost { node: node.clone(), cause: Box::new(cause) }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
