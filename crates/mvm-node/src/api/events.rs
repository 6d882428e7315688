//! Handlers of events and metrics.

use super::handler::{Asked, Caller, Listing, Refusal, Shared};
use crate::agent::Agent;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Sent, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures::Stream;
use mvm_api::position::Position;
use mvm_api::query::EventFilter;
use mvm_api::types::{EventGap, EventView};
use mvm_model::Name;
use mvm_model::event::Event;
use mvm_server::Peer;
use mvm_server::extract::Query;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// The filter of events for one reader.
struct Wanted {
    since: u64,
    tenant: Option<Name>,
    peer: Peer,
}

impl Wanted {
    fn takes(&self, event: &Event) -> bool {
        let tenant = &event.instance.pool.tenant;
        event.id > self.since
            && self.peer.sees(tenant)
            && self.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
    }
}

pub async fn list(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, filter }: Asked<EventFilter>,
) -> Listing<EventView> {
    let wanted = Wanted { since: filter.since.of_node()?, tenant: filter.tenant, peer };
    let mut events = agent.base.records.events_after(wanted.since).await?;
    events.retain(|event| wanted.takes(event));
    Ok(page.of(events.into_iter().map(EventView::from)))
}

/// Streams server-sent events: the kept ones after `since` or `Last-Event-ID`, then each new one. A
/// gap stands for events that are no longer kept.
pub async fn stream(
    State(agent): Shared,
    ConnectInfo(peer): Caller,
    Query(filter): Query<EventFilter>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, Refusal> {
    let since = Position::of_headers(&headers)?.unwrap_or(filter.since).of_node()?;
    let wanted = Wanted { since, tenant: filter.tenant, peer };
    // The subscription begins before the past is read, so that no event is missed in between.
    let live = agent.base.records.follow_events();
    let mut follow = Follow { live, past: VecDeque::new(), seen: since, agent, wanted };
    follow.read().await?;
    let stream = futures::stream::unfold(follow, |mut follow| async {
        Some((Ok(follow.next().await?), follow))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

fn sent(name: &str, data: &impl Serialize) -> Sent {
    Sent::default().event(name).data(serde_json::to_string(data).unwrap_or_default())
}

struct Follow {
    agent: Arc<Agent>,
    past: VecDeque<Event>,
    live: Receiver<Event>,
    /// The last event that was examined.
    seen: u64,
    wanted: Wanted,
}

impl Follow {
    /// Reads the kept events. If the reader's position is higher than the newest event, it is of an
    /// earlier life of this node, and all kept events are sent.
    async fn read(&mut self) -> crate::Result<()> {
        if self.seen > self.agent.base.records.newest_event() {
            (self.seen, self.wanted.since) = (0, 0);
        }
        self.past = self.agent.base.records.events_after(self.seen).await?.into();
        Ok(())
    }

    async fn next(&mut self) -> Option<Sent> {
        loop {
            let event = match self.past.pop_front() {
                Some(event) => event,
                None => match self.live.recv().await {
                    Ok(event) => event,
                    Err(RecvError::Lagged(_)) => {
                        self.read().await.ok()?;
                        continue;
                    }
                    Err(RecvError::Closed) => return None,
                },
            };
            let (after, before) = (self.seen, event.id);
            if before <= after {
                continue;
            }
            if after > 0 && before > after + 1 {
                self.seen = before - 1;
                self.past.push_front(event);
                return Some(sent("gap", &EventGap { after, before, node_id: None }));
            }
            self.seen = event.id;
            if self.wanted.takes(&event) {
                let id = event.id.to_string();
                return Some(sent("event", &EventView::from(event)).id(id));
            }
        }
    }
}

pub async fn metrics(State(agent): Shared, ConnectInfo(peer): Caller) -> Result<Response, Refusal> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], agent.views.metrics.render(peer.tenant())?).into_response())
}
