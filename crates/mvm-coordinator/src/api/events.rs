//! What happens on all nodes: each node's events in their order, told as they come.
//!
//! A node's status says which event is its last, so that a node is asked where there is something to
//! hear, and only then. How far a reader is stands in the id of every event, node by node: any
//! coordinator goes on after it, and nothing of a reader is kept here.

use super::gather::{asks_for_others, confined, gather, of_node, part};
use super::ways::{AT_ONCE, way_to};
use super::{Asked, Listing, Shared};
use crate::{ClusterState, Result};
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event as Sent, KeepAlive};
use futures::{Stream, StreamExt};
use mvm_api::page::List;
use mvm_api::position::Position;
use mvm_api::query::EventFilter;
use mvm_api::types::EventGap;
use mvm_api::{ClientError, Problem, paths};
use mvm_model::Name;
use mvm_model::fleet::NodeStatus;
use mvm_server::Caller;
use mvm_server::extract::Query;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// So many events of one node are read at once.
const BATCH: usize = 500;
/// How long is waited before nodes that did not answer are asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// What is kept, node by node.
pub async fn list(
    State(fleet): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, filter }: Asked<EventFilter>,
) -> Listing<Value> {
    let since = filter.since.of_fleet()?;
    if asks_for_others(&peer, filter.tenant.as_ref()) {
        return Ok(List { items: Vec::new(), next: None });
    }
    let tenant = confined(&peer, filter.tenant);
    let path = |node: &Name| path(since.get(node).copied().unwrap_or(0), tenant.as_ref());
    Ok(gather(&fleet, |_| true, &page, path).await)
}

fn path(since: u64, tenant: Option<&Name>) -> String {
    let tenant = tenant.map(|tenant| format!("&tenant={tenant}")).unwrap_or_default();
    format!("{}?since={since}{tenant}", paths::EVENTS)
}

/// Server-sent events: what is kept after `since` or `Last-Event-ID`, then each new one.
pub async fn stream(
    State(fleet): Shared,
    ConnectInfo(peer): Caller,
    Query(filter): Query<EventFilter>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = std::result::Result<Sent, Infallible>>>> {
    let since = Position::of_headers(&headers)?.unwrap_or(filter.since).of_fleet()?;
    let ending = fleet.clone();
    let follow = Follow {
        news: fleet.nodes.news.subscribe(),
        fleet,
        silent: asks_for_others(&peer, filter.tenant.as_ref()),
        tenant: confined(&peer, filter.tenant),
        seen: since.clone(),
        told: since,
        queue: VecDeque::new(),
    };
    let stream = futures::stream::unfold(follow, |mut follow| async {
        Some((Ok(follow.next().await), follow))
    });
    // Its reader goes on at another coordinator.
    let stream = stream.take_until(async move { ending.life.shutdown.begun().await });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

struct Follow {
    fleet: Arc<ClusterState>,
    news: watch::Receiver<()>,
    tenant: Option<Name>,
    /// There is nothing for whoever asks.
    silent: bool,
    /// The last event of each node that was looked at.
    seen: BTreeMap<Name, u64>,
    /// The last one of each that was told.
    told: BTreeMap<Name, u64>,
    /// What is to be told: an event, or a gap before it.
    queue: VecDeque<(Name, Item)>,
}

enum Item {
    Event(u64, Value),
    Gap(EventGap),
}

/// What a node has told: from after which event to which, and those in between that are wanted.
struct Heard {
    node: Name,
    after: u64,
    newest: u64,
    events: Vec<Value>,
}

impl Follow {
    async fn next(&mut self) -> Sent {
        if self.silent {
            return std::future::pending().await;
        }
        loop {
            if let Some((node, item)) = self.queue.pop_front() {
                return match item {
                    Item::Gap(gap) => Sent::default().event("gap").data(json!(gap).to_string()),
                    Item::Event(id, event) => {
                        self.told.insert(node, id);
                        let position = Position::Fleet(self.told.clone());
                        let sent = Sent::default().event("event").id(position.to_string());
                        sent.data(event.to_string())
                    }
                };
            }
            // What comes after this is told anew.
            self.news.mark_unchanged();
            match self.hear().await {
                Some(true) => {}
                Some(false) => tokio::time::sleep(AGAIN).await,
                None if self.news.changed().await.is_ok() => {}
                // The coordinator ends.
                None => std::future::pending().await,
            }
        }
    }

    /// The nodes in reach whose last event is not the last that was looked at, with both.
    fn behind(&self) -> Vec<(Name, u64, u64)> {
        let view = self.fleet.view();
        let reached = view.nodes.iter().filter(|(_, known)| known.reached);
        let behind = reached.filter_map(|(name, known)| {
            let newest = known.status.as_ref()?.newest_event;
            let seen = self.seen.get(name).copied().unwrap_or(0);
            (newest != seen && newest > 0).then(|| (name.clone(), seen, newest))
        });
        behind.collect()
    }

    /// Asks the nodes that have something to tell; whether any has told something. None: no node has.
    async fn hear(&mut self) -> Option<bool> {
        let behind = self.behind();
        if behind.is_empty() {
            return None;
        }
        let (fleet, tenant) = (self.fleet.clone(), self.tenant.clone());
        let ask = |(node, seen, newest)| {
            let heard = heard(&fleet, tenant.as_ref(), node, seen, newest);
            async move { heard.await.inspect_err(|e| tracing::warn!("asked for later: {e}")).ok()? }
        };
        let asked = futures::stream::iter(behind.into_iter().map(ask)).buffer_unordered(AT_ONCE);
        let heard: Vec<Heard> = asked.filter_map(std::future::ready).collect().await;
        let mut told = Vec::new();
        for Heard { node, after, newest, events } in &heard {
            let (mut seen, mut at) = (*after, 0);
            for event in events {
                let id = event["id"].as_u64().unwrap_or_default();
                // As they happened, as far as clocks agree; those of one node keep their order.
                at = event["at"].as_u64().unwrap_or_default().max(at);
                // Of one tenant only, others' events are no gap.
                if self.tenant.is_none() && seen > 0 && id > seen + 1 {
                    let gap = EventGap { after: seen, before: id, node_id: Some(node.clone()) };
                    told.push((at, node.clone(), Item::Gap(gap)));
                }
                seen = id;
                told.push((at, node.clone(), Item::Event(id, of_node(event.clone(), node))));
            }
            if events.len() < BATCH {
                seen = *newest;
            }
            self.seen.insert(node.clone(), seen);
        }
        told.sort_by_key(|(at, ..)| *at);
        self.queue.extend(told.into_iter().map(|(_, node, item)| (node, item)));
        Some(!heard.is_empty())
    }
}

/// Asks a node for its events after `seen`, up to the one that its status has told of. None: it has
/// nothing to tell.
async fn heard(
    fleet: &ClusterState,
    tenant: Option<&Name>,
    node: Name,
    seen: u64,
    newest: u64,
) -> std::result::Result<Option<Heard>, Problem> {
    let client = way_to(fleet, &node)?.client;
    let (mut after, mut newest) = (seen, newest);
    if newest < seen {
        // The status may be older than the reader: another coordinator may have told more.
        let status: NodeStatus =
            client.get(paths::NODE_STATUS).await.map_err(ClientError::into_problem)?;
        if status.newest_event >= seen {
            return Ok(None);
        }
        // An event that was never told is of an earlier life of this node.
        (after, newest) = (0, status.newest_event);
    }
    let asked = part(path(after, tenant), Some(BATCH), None);
    let page = client.page::<Value>(&asked).await.map_err(ClientError::into_problem)?;
    let mut events = page.items;
    events.retain(|event| event["id"].as_u64().is_some_and(|id| id <= newest));
    Ok(Some(Heard { node, after, newest, events }))
}
