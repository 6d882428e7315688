//! The log of transitions. Each event is durable together with the change that it reports.

use super::record_set::RecordSet;
use crate::Result;
use crate::labels::{Labels, of_pool};
use mvm_clock::Clock;
use mvm_model::event::Event;
use mvm_model::{Instance, InstanceId, State};
use mvm_store::{Record, Store};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;

/// The prefix of events' keys in the store.
const PREFIX: &str = "events/";
/// How many events a follower may be behind before it must read from the store again.
const BEHIND: usize = 1024;
/// Upper bounds of the histograms, in seconds.
const BUCKETS: [f64; 12] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0, 60.0];

/// Returns the key of an event's record.
pub(crate) fn key(id: u64) -> String {
    format!("{PREFIX}{id:020}")
}

/// The followers and counts of events, in memory.
pub struct EventLog {
    next: AtomicU64,
    followers: broadcast::Sender<Event>,
    moves: Family<Labels, Histogram>,
    failures: Family<Labels, Counter>,
}

impl EventLog {
    /// Opens the log, which continues after the last event in the store.
    pub(crate) async fn open(store: &dyn Store) -> Result<EventLog> {
        let last = store.last(PREFIX).await?;
        let last = last.and_then(|record| record.key.strip_prefix(PREFIX)?.parse::<u64>().ok());
        Ok(EventLog {
            next: AtomicU64::new(last.unwrap_or(0) + 1),
            followers: broadcast::channel(BEHIND).0,
            moves: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            failures: Family::default(),
        })
    }

    /// Returns the id of the next event. The caller holds the turn of the records.
    pub(crate) fn next_id(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Sends durable events to followers.
    pub(crate) fn publish(&self, events: Vec<Event>) {
        for event in events {
            self.next.store(event.id + 1, Ordering::Relaxed);
            if event.to == State::Failed {
                self.failures.get_or_create(&of_pool(&event.instance.pool)).inc();
            }
            // Sending fails only if there are no followers.
            let _ = self.followers.send(event);
        }
    }

    /// Returns the stored events after `since`, oldest first.
    pub(super) async fn after(&self, store: &dyn Store, since: u64) -> Result<Vec<Event>> {
        let from = key(since.saturating_add(1));
        let records = store.list_from(PREFIX, &from).await?;
        let read = |record: &Record| serde_json::from_slice(&record.value).ok();
        Ok(records.iter().filter_map(read).collect())
    }

    /// Returns a receiver of every event from now on.
    pub(super) fn follow(&self) -> broadcast::Receiver<Event> {
        self.followers.subscribe()
    }

    /// Registers the metrics of transitions.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Time from an operation's begin to its end";
        registry.register("transition_seconds", what, self.moves.clone());
        registry.register("failures", "Instances that have failed", self.failures.clone());
    }

    /// Notes that an operation has brought an instance from one state to another.
    pub(crate) fn moved(&self, from: State, to: State, took: Duration) {
        let labels = vec![("from", from.to_string()), ("to", to.to_string())];
        self.moves.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// Returns the events for changes of instances, numbered from `first`.
pub(crate) fn of_changes(
    records: &RecordSet,
    instances: &[(InstanceId, Option<Instance>)],
    first: u64,
    clock: &Clock,
) -> Vec<Event> {
    let (mut events, now) = (Vec::new(), clock.now());
    for (id, after) in instances {
        let (before, id) = (records.instances.get(id), first + events.len() as u64);
        let event = mvm_model::event::of_change(before, after.as_ref(), id, now);
        // People read the log, even years later: its times are those of the wall clock.
        events.extend(event.map(|event| Event { at: clock.wall_of(event.at), ..event }));
    }
    events
}
