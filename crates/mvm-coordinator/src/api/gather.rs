//! Lists over all nodes: node by node, each in its own order, every item with its node's name.

use super::handler::{Asked, Listing, Shared};
use super::ways::{AT_ONCE, way_to};
use crate::view::KnownNode;
use crate::{ClusterState, Error};
use axum::extract::{ConnectInfo, Path, State};
use futures::StreamExt;
use mvm_api::page::{Key, List, Page, cursor_of};
use mvm_api::paths;
use mvm_api::query::{InstanceFilter, LeaseFilter};
use mvm_model::{InstanceRef, Name, PoolRef};
use mvm_server::{Caller, Peer};
use serde_json::Value;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a node has for its part of a list.
const ANSWER: Duration = Duration::from_secs(10);

/// Lists all instances that the caller may see, each with its node.
pub async fn instances(
    State(fleet): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, filter }: Asked<InstanceFilter>,
) -> Listing<Value> {
    let path = of_tenant(paths::INSTANCES, confined(&peer, filter.tenant.clone()));
    let mut all = gather(&fleet, |_| true, &page, |_| path.clone()).await;
    let wanted = filter.tenant.as_ref();
    all.items.retain(|view| is_for(&peer, wanted, parsed(&view["tenant_id"])));
    Ok(all)
}

/// Lists the instances of one pool, each with its node.
pub async fn of_pool(
    State(fleet): Shared,
    Path((tenant, pool)): Path<(String, String)>,
    Asked { page, .. }: Asked,
) -> Listing<Value> {
    let pool = PoolRef { tenant: tenant.parse()?, pool: pool.parse()? };
    fleet.check_pool(&pool)?;
    let has = |known: &KnownNode| {
        known.status.as_ref().is_some_and(|status| status.pools.contains_key(&pool))
    };
    Ok(gather(&fleet, has, &page, |_| paths::pool_part(&pool, "instances")).await)
}

/// Lists all leases that the caller may see, each with its node.
pub async fn leases(
    State(fleet): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, filter }: Asked<LeaseFilter>,
) -> Listing<Value> {
    let path = of_tenant(paths::LEASES, confined(&peer, filter.tenant.clone()));
    let mut all = gather(&fleet, |_| true, &page, |_| path.clone()).await;
    let tenant = |lease: &Value| Some(parsed::<InstanceRef>(&lease["instance"])?.pool.tenant);
    let wanted = filter.tenant.as_ref();
    all.items.retain(|lease| is_for(&peer, wanted, tenant(lease)));
    Ok(all)
}

/// Returns the tenant to ask the nodes for: a tenant operator's own, whichever it names.
pub fn confined(peer: &Peer, wanted: Option<Name>) -> Option<Name> {
    peer.tenant().cloned().or(wanted)
}

/// Returns whether a tenant operator asks for another tenant's things, of which it gets none.
pub fn asks_for_others(peer: &Peer, wanted: Option<&Name>) -> bool {
    wanted.is_some_and(|wanted| !peer.sees(wanted))
}

/// Returns whether the caller wants and may see an item of this tenant; one without a tenant is
/// shown to nobody.
pub fn is_for(peer: &Peer, wanted: Option<&Name>, tenant: Option<Name>) -> bool {
    tenant.is_some_and(|tenant| peer.sees(&tenant) && wanted.is_none_or(|wanted| *wanted == tenant))
}

/// Reads a field's text; `None` where it is not a string, or is malformed.
pub fn parsed<T: FromStr>(field: &Value) -> Option<T> {
    field.as_str()?.parse().ok()
}

fn of_tenant(path: &str, tenant: Option<Name>) -> String {
    tenant.map_or_else(|| path.to_owned(), |tenant| format!("{path}?tenant={tenant}"))
}

/// Returns a page of what these nodes answer to a `GET` of their `path`. A node that does not
/// answer in time is left out, like one out of reach.
pub async fn gather(
    fleet: &Arc<ClusterState>,
    takes: impl Fn(&KnownNode) -> bool,
    page: &Page,
    path: impl Fn(&Name) -> String,
) -> List<Value> {
    // The node in which the page begins, or after which.
    let begin = page.after().map(|after| {
        let (node, within) = after.split();
        (node.to_owned(), within.map(str::to_owned))
    });
    let wanted = |name: &Name| match &begin {
        Some((node, Some(_))) => name.as_str() >= node.as_str(),
        Some((node, None)) => name.as_str() > node.as_str(),
        None => true,
    };
    let nodes: Vec<Name> = {
        let view = fleet.view();
        let of = view.nodes.iter().filter(|(_, known)| known.reached && takes(known));
        of.map(|(name, _)| name.clone()).filter(wanted).collect()
    };
    let ask = async |node: &Name, limit: Option<usize>, after: Option<&str>| {
        let asked = part(path(node), limit, after);
        let answer = match way_to(fleet, node).map(|way| way.client) {
            Ok(client) => match timeout(ANSWER, client.page(&asked)).await {
                Ok(answer) => answer.map_err(Error::from),
                Err(_) => Err(Error::Timeout),
            },
            Err(error) => Err(error),
        };
        answer.unwrap_or_else(|error| {
            tracing::warn!(%node, "left out of a list: {error}");
            List { items: Vec::<Value>::new(), next: None }
        })
    };
    let first = |node: Name| {
        let within = begin.as_ref().filter(|(name, _)| name == node.as_str());
        let within = within.and_then(|(_, within)| within.clone());
        let ask = &ask;
        async move { (ask(&node, page.given(), within.as_deref()).await, node, within) }
    };
    let mut answers = futures::stream::iter(nodes.into_iter().map(first)).buffered(AT_ONCE);
    let (mut items, mut last) = (Vec::new(), None);
    while let Some((mut answer, node, mut within)) = answers.next().await {
        while !answer.items.is_empty() {
            let room = page.limit().saturating_sub(items.len());
            if room == 0 {
                // The page is full, and this node has more.
                return List { items, next: last.map(|last| page.next(&last)) };
            }
            if answer.items.len() > room {
                answer = ask(&node, Some(room), within.as_deref()).await;
            }
            items.extend(answer.items.drain(..).map(|item| of_node(item, &node)));
            within = answer.next.as_deref().and_then(cursor_of).map(|cursor| cursor.to_string());
            last = Some(match &within {
                Some(within) => Key::of(&node).then(within),
                None => Key::of(&node),
            });
            if within.is_some() {
                let room = page.limit().saturating_sub(items.len());
                answer = ask(&node, page.given().map(|_| room.max(1)), within.as_deref()).await;
            }
        }
    }
    List { items, next: None }
}

/// Returns the path of a part of a node's list.
pub fn part(mut path: String, limit: Option<usize>, after: Option<&str>) -> String {
    let asked = limit.map(|limit| format!("limit={limit}"));
    for one in asked.into_iter().chain(after.map(|after| format!("after={after}"))) {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(&one);
    }
    path
}

/// Returns an item with its node's name in `node_id`.
pub fn of_node(mut item: Value, node: &Name) -> Value {
    if let Some(fields) = item.as_object_mut() {
        fields.insert("node_id".to_owned(), node.to_string().into());
    }
    item
}
