//! Requests that are passed on: to the node that holds the instance, and to the leader.

use super::gather::gather;
use super::handler::Shared;
use super::ways::{AT_ONCE, Destination, Upstream, way_to};
use crate::view::KnownNode;
use crate::{ClusterState, Error, Result, Thing};
use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use mvm_api::page::Page;
use mvm_api::query::StatusOptions;
use mvm_api::{Client, ClientError, paths};
use mvm_model::fleet::Duty;
use mvm_model::{InstanceRef, Name, PoolRef};
use mvm_server::Peer;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// The longest body that is passed on, in bytes.
const LONGEST: usize = 8 << 20;
/// How long a node has to say whether it has something; one that was cut off never answers.
const SEARCH: std::time::Duration = std::time::Duration::from_secs(3);
/// The methods and routes that only the leader serves.
const LEADERS: [(&str, &str); 6] = [
    ("PUT", "/v1/fleet"),
    ("POST", "/v1/nodes"),
    ("DELETE", "/v1/nodes/{node}"),
    ("POST", "/v1/nodes/{node}/duty"),
    ("POST", "/v1/tenants/{tenant}/pools/{pool}/claims"),
    ("POST", "/v1/tenants/{tenant}/pools/{pool}/jobs"),
];
/// The header of a request that a coordinator has passed on: it is not passed on again.
const PASSED_ON: &str = "mvm-passed-on";

/// Passes on to the leader what only the leader does.
pub async fn to_leader(State(fleet): Shared, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let leaders = LEADERS.contains(&(request.method().as_str(), route))
        || route == paths::FLEET_STATUS && asks_for_leader(&request);
    if !leaders || fleet.leads() {
        return next.run(request).await;
    }
    match pass_to_leader(&fleet, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

fn asks_for_leader(request: &Request) -> bool {
    let options = Query::<StatusOptions>::try_from_uri(request.uri());
    options.is_ok_and(|Query(options)| options.leader)
}

async fn pass_to_leader(fleet: &Arc<ClusterState>, mut request: Request) -> Result<Response> {
    let leader = fleet.leadership.leader().filter(|leader| leader.name != fleet.options.name);
    let leader = leader.filter(|_| !request.headers().contains_key(PASSED_ON));
    let leader = leader.ok_or(Error::NoLeader)?;
    request.headers_mut().insert(PASSED_ON, header::HeaderValue::from_static("1"));
    let client = fleet.connector.coordinator(&leader.address)?;
    let doing = format!("{} {}", request.method(), request.uri());
    let succession = fleet.leadership.succession(&leader.name);
    let way = Upstream { client, destination: Destination::Leader(leader) };
    tokio::select! {
        answer = relay(fleet, &way, request) => answer,
        () = succession => {
            let cause = "another coordinator leads, and it has not answered".to_owned();
            Err(way.fault(ClientError::Broken { doing, cause }))
        }
    }
}

/// Returns the client, acting for the identity that sent the request.
fn on_behalf(client: &Client, request: &Request) -> Client {
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    match peer.and_then(|peer| peer.0.identity()) {
        Some(identity) => client.on_behalf_of(identity.clone()),
        None => client.clone(),
    }
}

/// Passes the request on in its sender's name, and returns the answer as it comes. An upgraded
/// connection is copied both ways, and a coordinator that is asked to end waits for it.
pub async fn relay(fleet: &ClusterState, way: &Upstream, mut request: Request) -> Result<Response> {
    let client = on_behalf(&way.client, &request);
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let ours = upgrades.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, LONGEST).await.map_err(Error::BodyTooLong)?;
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.extensions.clear();
    let request = axum::http::Request::from_parts(parts, bytes);
    let response = client.streams().relay(request).await.map_err(|error| way.fault(error))?;
    let mut response = response.map(Body::new);
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(ours)) = (response.status(), ours) {
        let theirs = hyper::upgrade::on(&mut response);
        let (under_way, over) = (fleet.lifecycle.shutdown.wait_for_this(), way.over(fleet));
        tokio::spawn(async move {
            let _under_way = under_way;
            let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) else { return };
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            // Where one side broke, the other one does not end in order either.
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
                () = over => {}
            }
        });
        return Ok(response);
    }
    Ok(framed(response))
}

/// Does as [`relay`], for a body of any length.
pub async fn relay_stream(way: &Upstream, mut request: Request) -> Result<Response> {
    let client = on_behalf(&way.client, &request);
    request.extensions_mut().clear();
    let response = client.streams().relay_stream(request).await;
    Ok(framed(response.map_err(|error| way.fault(error))?.map(Body::new)))
}

/// Returns the answer without the headers of its framing, which this server makes by itself.
fn framed(mut response: Response) -> Response {
    response.headers_mut().remove(header::CONNECTION);
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    response
}

/// Returns, of the nodes in reach that serve a pool, the one with the fewest leases.
pub fn least_leased(fleet: &ClusterState, pool: &PoolRef) -> Option<Name> {
    let view = fleet.view();
    let serving = view.nodes.iter().filter_map(|(name, known)| {
        let held = known.status.as_ref()?.pools.get(pool)?;
        let serves = known.reached && known.record.duty != Duty::Draining && view.holds(name, pool);
        serves.then_some((name, held.leased))
    });
    mvm_model::fleet::least_leased(serving).cloned()
}

/// Passes a request about one instance on to the node that holds it.
pub async fn pass(
    State(fleet): Shared,
    Path(at): Path<InPath>,
    request: Request,
) -> Result<Response> {
    let instance = at.reference()?;
    let key = instance.to_string();
    let node = match fleet.nodes.locations.of(&key) {
        Some(node) => node,
        None => find(&fleet, &instance).await?,
    };
    pass_to(&fleet, &node, key, request).await
}

/// Passes a request on to the node, and remembers under `key` that it went there.
pub async fn pass_to(
    fleet: &ClusterState,
    node: &Name,
    key: String,
    request: Request,
) -> Result<Response> {
    fleet.await_nodes(std::slice::from_ref(node)).await;
    let outcome = match way_to(fleet, node) {
        Ok(way) => relay(fleet, &way, request).await,
        Err(error) => Err(error),
    };
    match &outcome {
        Ok(response) if response.status() != StatusCode::NOT_FOUND => {
            fleet.nodes.locations.note(key, node)
        }
        // The next request looks for it anew: the node may have lost it, or have begun a new life.
        _ => fleet.nodes.locations.forget(&key),
    }
    outcome
}

/// The parameters in the path of an instance.
#[derive(Debug, Deserialize)]
pub struct InPath {
    tenant: String,
    pool: String,
    id: String,
}

impl InPath {
    fn reference(&self) -> Result<InstanceRef> {
        let pool = PoolRef { tenant: self.tenant.parse()?, pool: self.pool.parse()? };
        Ok(InstanceRef { pool, id: self.id.parse()? })
    }
}

/// Returns which of these nodes have what is at this path, and whether all of them have answered.
pub async fn search(fleet: &Arc<ClusterState>, nodes: Vec<Name>, path: &str) -> (Vec<Name>, bool) {
    let ask = |node: Name| async move {
        let found = has(fleet, &node, path).await;
        (node, found)
    };
    let mut answers = futures::stream::iter(nodes.into_iter().map(ask)).buffer_unordered(AT_ONCE);
    let (mut holders, mut all) = (Vec::new(), true);
    while let Some((node, found)) = answers.next().await {
        all &= found.is_some();
        holders.extend(Some(node).filter(|_| found == Some(true)));
    }
    (holders, all)
}

/// Returns whether a node has what is at this path; `None` where it does not say so in time.
async fn has(fleet: &ClusterState, node: &Name, path: &str) -> Option<bool> {
    let client = way_to(fleet, node).ok()?.client;
    match tokio::time::timeout(SEARCH, client.get::<Value>(path)).await {
        Ok(Ok(_)) => Some(true),
        Ok(Err(ClientError::Problem(problem))) if problem.status == 404 => Some(false),
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Returns the node that holds an instance; all nodes that have its pool are asked.
async fn find(fleet: &Arc<ClusterState>, instance: &InstanceRef) -> Result<Name> {
    let with: Vec<Name> = {
        let view = fleet.view();
        // A node that was never heard from may have anything.
        let has = |known: &KnownNode| {
            known.status.as_ref().is_none_or(|s| s.pools.contains_key(&instance.pool))
        };
        let with = view.nodes.iter().filter(|(_, known)| has(known));
        with.map(|(name, _)| name.clone()).collect()
    };
    fleet.await_nodes(&with).await;
    let every = with.len();
    let reached: Vec<Name> = {
        let view = fleet.view();
        let reached = |node: &Name| view.nodes.get(node).is_some_and(|known| known.reached);
        with.into_iter().filter(reached).collect()
    };
    let mut unreached = reached.len() < every;
    let (holders, all) = search(fleet, reached, &paths::instance(instance)).await;
    unreached |= !all;
    match &holders[..] {
        [node] => Ok(node.clone()),
        [] if unreached => Err(Error::InstanceOutOfReach(instance.clone())),
        [] => Err(Error::Missing(Thing::Instance(instance.clone()))),
        [one, other, ..] => Err(Error::Ambiguous {
            what: format!("instance {instance}"),
            one: one.clone(),
            other: other.clone(),
        }),
    }
}

/// Passes a request about one lease on to the node that has it.
pub async fn pass_lease(
    State(fleet): Shared,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response> {
    let all = gather(&fleet, |_| true, &Page::whole(), |_| paths::LEASES.to_owned()).await;
    let node = all.items.iter().find(|lease| lease["id"] == id.as_str());
    let node = node.and_then(|lease| lease["node_id"].as_str());
    let node = node.ok_or(Error::Missing(Thing::Lease(id)))?;
    relay(&fleet, &way_to(&fleet, &node.parse()?)?, request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_client::{Connector, NodeClient};
    use crate::records::Candidate;
    use crate::state::tests::lonely_with;
    use mvm_model::Code;
    use std::time::Duration;

    /// Reaches coordinators on this machine.
    struct Here;

    impl Connector for Here {
        fn node(&self, node: &Name, _: &str) -> Result<Arc<dyn NodeClient>> {
            Err(Error::OutOfReach(node.clone()))
        }

        fn coordinator(&self, address: &str) -> Result<Client> {
            Ok(Client::new(address))
        }
    }

    fn leader(name: &str, address: &str) -> Option<Candidate> {
        Some(Candidate { name: name.parse().expect("a name"), address: address.to_owned() })
    }

    #[tokio::test]
    async fn a_leader_that_hangs_is_not_waited_for_when_another_one_leads() {
        let folder = tempfile::tempdir().expect("a directory");
        let socket = folder.path().join("c2.sock");
        // The kernel accepts the connection, and nothing ever answers.
        let _hangs = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let fleet = lonely_with(Arc::new(Here));
        fleet.leadership.set_leader(leader("c2", &socket.display().to_string()));
        let request = Request::put("/v1/fleet").body("{}".into()).expect("a request");
        let of = fleet.clone();
        let passing = tokio::spawn(async move { pass_to_leader(&of, request).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        fleet.leadership.set_leader(None);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!passing.is_finished(), "it may lead again");
        fleet.leadership.set_leader(leader("c3", "/nowhere"));
        let outcome = tokio::time::timeout(Duration::from_secs(10), passing).await;
        let error = outcome.expect("in time").expect("a task").expect_err("no answer");
        assert_eq!(error.code(), Code::ConnectionBroken);
        assert!(error.to_string().contains("c2"), "{error}");
    }
}
