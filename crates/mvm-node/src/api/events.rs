//! Events and metrics.

use super::{Answer, Caller, Refusal, Shared};
use axum::Json;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Sent, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures::Stream;
use mvm_api::Peer;
use mvm_model::event::Event;
use serde::Deserialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Narrows them down.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Only those after this one.
    #[serde(default)]
    since: u64,
    /// Only those of this tenant.
    tenant: Option<String>,
}

impl Filter {
    fn takes(&self, peer: &Peer, event: &Event) -> bool {
        let tenant = &event.instance.pool.tenant;
        event.id > self.since
            && peer.sees(tenant)
            && self.tenant.as_deref().is_none_or(|wanted| wanted == tenant.as_str())
    }
}

pub async fn list(
    State(node): Shared,
    ConnectInfo(peer): Caller,
    Query(filter): Query<Filter>,
) -> Answer<Vec<Event>> {
    let mut events = node.events_after(filter.since).await?;
    events.retain(|event| filter.takes(&peer, event));
    Ok(Json(events))
}

/// Server-sent events: those that are kept after `since` or `Last-Event-ID`, then each new one.
pub async fn stream(
    State(node): Shared,
    ConnectInfo(peer): Caller,
    Query(mut filter): Query<Filter>,
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
    filter: Filter,
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
            if self.filter.takes(&self.peer, &event) {
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
