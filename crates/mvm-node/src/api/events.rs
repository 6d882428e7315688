//! Events and metrics.

use super::{Asked, Caller, Listing, Refusal, Shared};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Sent, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures::Stream;
use mvm_api::Peer;
use mvm_api::query::{EventFilter, Query};
use mvm_api::types::EventView;
use mvm_model::event::Event;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

fn takes(filter: &EventFilter, peer: &Peer, event: &Event) -> bool {
    let tenant = &event.instance.pool.tenant;
    event.id > filter.since
        && peer.sees(tenant)
        && filter.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
}

pub async fn list(
    State(node): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, filter }: Asked<EventFilter>,
) -> Listing<EventView> {
    let mut events = node.events_after(filter.since).await?;
    events.retain(|event| takes(&filter, &peer, event));
    Ok(page.of(events.into_iter().map(EventView::from)))
}

/// Server-sent events: those that are kept after `since` or `Last-Event-ID`, then each new one.
pub async fn stream(
    State(node): Shared,
    ConnectInfo(peer): Caller,
    Query(mut filter): Query<EventFilter>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, Refusal> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    filter.since = last.unwrap_or(filter.since);
    let follow = Follow {
        // Before the past is read, so that nothing falls between the two.
        live: node.follow_events(),
        past: node.events_after(filter.since).await?.into(),
        node,
        peer,
        filter,
    };
    let stream = futures::stream::unfold(follow, |mut follow| async {
        let event = follow.next().await?;
        let data = serde_json::to_string(&event).unwrap_or_default();
        Some((Ok(Sent::default().id(event.id.to_string()).event("event").data(data)), follow))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

struct Follow {
    node: Arc<crate::Node>,
    past: VecDeque<Event>,
    live: Receiver<Event>,
    peer: Peer,
    filter: EventFilter,
}

impl Follow {
    async fn next(&mut self) -> Option<Event> {
        loop {
            let event = match self.past.pop_front() {
                Some(event) => event,
                None => match self.live.recv().await {
                    Ok(event) => event,
                    Err(RecvError::Lagged(_)) => {
                        self.past = self.node.events_after(self.filter.since).await.ok()?.into();
                        continue;
                    }
                    Err(RecvError::Closed) => return None,
                },
            };
            if takes(&self.filter, &self.peer, &event) {
                self.filter.since = event.id;
                return Some(event);
            }
        }
    }
}

pub async fn metrics(State(node): Shared, ConnectInfo(peer): Caller) -> Result<Response, Refusal> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], node.metrics(peer.tenant()).await?).into_response())
}
