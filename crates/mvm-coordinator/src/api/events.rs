//! Events of all nodes: each node's in their order, sent as they come.
//!
//! A node's status names its newest event, so a node is asked only when it has something new. The
//! id of every event says how far its reader is, node by node: any coordinator goes on after it,
//! and none keeps anything of a reader.

use super::gather::{asks_for_others, confined, gather, of_node, part};
use super::handler::{Asked, Listing, Shared};
use super::ways::{AT_ONCE, way_to};
use crate::{ClusterState, Result};
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event as Sent, KeepAlive};
use futures::{Stream, StreamExt};
use mvm_api::page::List;
use mvm_api::paths;
use mvm_api::position::Position;
use mvm_api::query::EventFilter;
use mvm_api::types::EventGap;
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

/// How many events of one node are read at once.
const BATCH: usize = 500;
/// How long to wait before nodes that did not answer are asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Lists the events that the nodes have kept, node by node.
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

/// Streams server-sent events: those kept after `since` or `Last-Event-ID`, then each new one.
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
        last_sent: since,
        queue: VecDeque::new(),
    };
    let stream = futures::stream::unfold(follow, |mut follow| async {
        Some((Ok(follow.next().await), follow))
    });
    // The reader goes on at another coordinator.
    let stream = stream.take_until(async move { ending.lifecycle.shutdown.begun().await });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

struct Follow {
    fleet: Arc<ClusterState>,
    news: watch::Receiver<()>,
    tenant: Option<Name>,
    /// The reader asks for another tenant's events: it gets none.
    silent: bool,
    /// The last event of each node that was read.
    seen: BTreeMap<Name, u64>,
    /// The last event of each node that was sent.
    last_sent: BTreeMap<Name, u64>,
    /// What is to be sent: an event, or a gap before it.
    queue: VecDeque<(Name, Item)>,
}

enum Item {
    Event(u64, Value),
    Gap(EventGap),
}

/// What a node answered: the wanted events after `after` and up to `newest`.
struct NodeEvents {
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
                        self.last_sent.insert(node, id);
                        let position = Position::Fleet(self.last_sent.clone());
                        let sent = Sent::default().event("event").id(position.to_string());
                        sent.data(event.to_string())
                    }
                };
            }
            // News from here on wake the reader again.
            self.news.mark_unchanged();
            match self.fetch().await {
                Some(true) => {}
                Some(false) => tokio::time::sleep(AGAIN).await,
                None if self.news.changed().await.is_ok() => {}
                // The coordinator is ending.
                None => std::future::pending().await,
            }
        }
    }

    /// Returns the nodes in reach whose newest event is not the last that was read, with the
    /// numbers of the last one read and the newest.
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

    /// Asks the nodes that have something new, and returns whether any had; `None` where there was
    /// no node to ask.
    async fn fetch(&mut self) -> Option<bool> {
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
        let heard: Vec<NodeEvents> = asked.filter_map(std::future::ready).collect().await;
        let mut items = Vec::new();
        for NodeEvents { node, after, newest, events } in &heard {
            let (mut seen, mut at) = (*after, 0);
            for event in events {
                let id = event["id"].as_u64().unwrap_or_default();
                // Events are sorted by time, as far as clocks agree; those of one node keep their
                // order.
                at = event["at"].as_u64().unwrap_or_default().max(at);
                // Where only one tenant's events are wanted, the missing ones are others': they are
                // no gap.
                if self.tenant.is_none() && seen > 0 && id > seen + 1 {
                    let gap = EventGap { after: seen, before: id, node_id: Some(node.clone()) };
                    items.push((at, node.clone(), Item::Gap(gap)));
                }
                seen = id;
                items.push((at, node.clone(), Item::Event(id, of_node(event.clone(), node))));
            }
            if events.len() < BATCH {
                seen = *newest;
            }
            self.seen.insert(node.clone(), seen);
        }
        items.sort_by_key(|(at, ..)| *at);
        self.queue.extend(items.into_iter().map(|(_, node, item)| (node, item)));
        Some(!heard.is_empty())
    }
}

/// Asks a node for its events after `seen`, up to the newest that its status named. Returns `None`
/// where it has nothing new.
async fn heard(
    fleet: &ClusterState,
    tenant: Option<&Name>,
    node: Name,
    seen: u64,
    newest: u64,
) -> Result<Option<NodeEvents>> {
    let client = way_to(fleet, &node)?.client;
    let (mut after, mut newest) = (seen, newest);
    if newest < seen {
        // The status may be older than the reader: another coordinator may have sent more.
        let status: NodeStatus = client.get(paths::NODE_STATUS).await?;
        if status.newest_event >= seen {
            return Ok(None);
        }
        // The node has begun to count anew: the reader's position is of an earlier life of it.
        (after, newest) = (0, status.newest_event);
    }
    let asked = part(path(after, tenant), Some(BATCH), None);
    let page = client.page::<Value>(&asked).await?;
    let mut events = page.items;
    events.retain(|event| event["id"].as_u64().is_some_and(|id| id <= newest));
    Ok(Some(NodeEvents { node, after, newest, events }))
}
