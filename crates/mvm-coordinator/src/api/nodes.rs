//! The nodes of the fleet.

use super::handler::{Answer, Asked, Listing, Shared};
use crate::calls::up_to_date;
use crate::claim_dispatch;
use crate::records::{NODES, NodeRecord, change_node};
use crate::view::{KnownNode, View};
use crate::{Error, Result, Thing};
use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use mvm_api::fleet::{NodeView, RegisterNode, SetDuty};
use mvm_api::identity::Identity;
use mvm_model::fleet::Duty;
use mvm_model::{Counts, Name};
use mvm_server::Peer;
use mvm_server::extract::Body;
use mvm_store::{Expect, Write};

pub async fn list(State(fleet): Shared, Asked { page, .. }: Asked) -> Listing<NodeView> {
    let view = fleet.view();
    Ok(page.of(view.nodes.iter().map(|(name, known)| node_view(&view, name, known))))
}

pub async fn show(State(fleet): Shared, Path(node): Path<String>) -> Answer<NodeView> {
    let node: Name = node.parse()?;
    let view = fleet.view();
    let known = view.nodes.get(&node).ok_or_else(|| unknown(&node))?;
    Ok(Json(node_view(&view, &node, known)))
}

fn unknown(node: &Name) -> Error {
    Error::Missing(Thing::Node(node.clone()))
}

fn node_view(view: &View, name: &Name, known: &KnownNode) -> NodeView {
    let (mut ready_counts, mut leased) = (Counts::default(), 0);
    for status in known.status.iter().flat_map(|status| status.pools.values()) {
        ready_counts = ready_counts.plus(status.ready);
        leased = u32::saturating_add(leased, status.leased);
    }
    let digest = known.status.as_ref().and_then(|status| status.document.as_ref());
    NodeView {
        node_id: name.clone(),
        address: known.record.address.clone(),
        duty: known.record.duty,
        alive: known.reached || view.alive.get(name).is_some_and(|by| !by.is_empty()),
        lost_since: known.record.lost_since,
        ready_counts,
        leased,
        up_to_date: up_to_date(view, name, digest),
        refused: known.refused.clone(),
        status: known.status.as_deref().cloned(),
    }
}

/// Registers a node, for itself or for an operator.
pub async fn register(
    State(fleet): Shared,
    ConnectInfo(peer): mvm_server::Caller,
    Body(body): Body<RegisterNode>,
) -> Answer<NodeView> {
    if let Some(Identity::Node(name)) = peer.identity()
        && *name != body.node_id
    {
        return Err(Error::OtherNode { node: name.clone(), other: body.node_id });
    }
    check_address(&peer, &body.address)?;
    // A coordinator without an identity reaches no node on the network: this one would never show
    // up.
    fleet.connector.node(&body.node_id, &body.address)?;
    fleet.register(&body).await?;
    // The store reports the node in a moment; until then the request says how it is.
    {
        let view = fleet.view();
        if let Some(known) = view.nodes.get(&body.node_id) {
            return Ok(Json(node_view(&view, &body.node_id, known)));
        }
    }
    Ok(Json(NodeView {
        node_id: body.node_id,
        address: body.address,
        duty: Duty::Open,
        alive: false,
        lost_since: None,
        ready_counts: Counts::default(),
        leased: 0,
        up_to_date: false,
        refused: None,
        status: None,
    }))
}

fn check_address(peer: &Peer, address: &str) -> Result<()> {
    let fault = |why| Err(Error::Address { address: address.to_owned(), why });
    match address.strip_prefix("unix:") {
        // A socket is a file of this machine: not for those who come over the network.
        Some(_) if !peer.is_local() => fault("names a file of the coordinator's machine"),
        Some(path) if path.starts_with('/') => Ok(()),
        Some(_) => fault("is not an absolute path"),
        None => match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
            _ => fault("is not a valid address"),
        },
    }
}

pub async fn remove(State(fleet): Shared, Path(node): Path<String>) -> Answer<serde_json::Value> {
    let node: Name = node.parse()?;
    let fence = fleet.lead().ok_or(Error::Succeeded)?.fence();
    let key = format!("{NODES}{node}");
    let known = fleet.store.get(&key).await?.ok_or_else(|| unknown(&node))?;
    let delete = Write::Delete { key, expect: Expect::Revision(known.revision) };
    fleet.store.commit(vec![delete, fence]).await?;
    Ok(Json(serde_json::json!({})))
}

pub async fn set_duty(
    State(fleet): Shared,
    Path(node): Path<String>,
    Body(body): Body<SetDuty>,
) -> Answer<NodeView> {
    let name: Name = node.parse()?;
    let fence = fleet.lead().ok_or(Error::Succeeded)?.fence();
    let change = |record: &mut NodeRecord| {
        let before = std::mem::replace(&mut record.duty, body.duty);
        before != body.duty
    };
    change_node(&*fleet.store, &name, Some(fence), change).await?;
    // The change is known here before the store reports it, so that no claim goes there any more.
    if let Some(known) = fleet.view().nodes.get_mut(&name) {
        known.record.duty = body.duty;
    }
    claim_dispatch::refresh(&fleet, &name);
    fleet.placing.replan.notify_one();
    show(State(fleet), Path(node)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Network;
    use crate::state::tests::lonely_with;
    use mvm_model::Code;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_node_on_the_network_is_refused_by_a_coordinator_without_an_identity() {
        let fleet = lonely_with(Arc::new(Network { credentials: None }));
        let add = async |address: &str| {
            let node_id = "n1".parse().expect("a name");
            let body = Body(RegisterNode { node_id, address: address.to_owned() });
            let peer = ConnectInfo(Peer::Unix { uid: Some(0) });
            register(State(fleet.clone()), peer, body).await.map(drop).expect_err("no leader")
        };
        let problem = add("10.0.1.5:4433").await;
        assert_eq!(problem.code(), Code::IdentityMissing);
        assert!(problem.hint().contains("--identity"));
        assert!(fleet.store.list(NODES).await.expect("a list").is_empty());
        // A coordinator without an identity can reach a node on its own machine.
        assert_eq!(add("unix:/run/mvm/agent.sock").await.code(), Code::LeaderChanged);
    }
}
