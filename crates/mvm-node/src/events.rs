//! The log of transitions, durable with the change that it tells of, and the metrics made of it.

use crate::Result;
use crate::clock::wall_of;
use crate::node::Node;
use crate::problem::OrProblem;
use crate::world::World;
use mvm_model::event::Event;
use mvm_model::{Instance, InstanceId, Millis, Name, PoolRef, State};
use mvm_store::{Record, Store};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;

/// Where events lie in the store.
const PREFIX: &str = "events/";
/// How far a follower may fall behind before it has to read from the store again.
const BEHIND: usize = 1024;
/// Upper bounds of the histograms, in seconds.
const BUCKETS: [f64; 12] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0, 60.0];

pub(crate) type Labels = Vec<(&'static str, String)>;

/// The key of an event's record.
pub(crate) fn key(id: u64) -> String {
    format!("{PREFIX}{id:020}")
}

/// What is remembered of events in memory.
pub struct EventLog {
    next: AtomicU64,
    followers: broadcast::Sender<Event>,
    moves: Family<Labels, Histogram>,
    failures: Family<Labels, Counter>,
}

impl EventLog {
    /// Goes on after the last event in the store.
    pub(crate) async fn open(store: &dyn Store) -> Result<EventLog> {
        let last = store.last(PREFIX).await.or_problem()?;
        let last = last.and_then(|record| record.key.strip_prefix(PREFIX)?.parse::<u64>().ok());
        Ok(EventLog {
            next: AtomicU64::new(last.unwrap_or(0) + 1),
            followers: broadcast::channel(BEHIND).0,
            moves: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            failures: Family::default(),
        })
    }

    /// The id of the next event; the caller holds the records.
    pub(crate) fn next_id(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Tells followers of what is durable.
    pub(crate) fn publish(&self, events: Vec<Event>) {
        for event in events {
            self.next.store(event.id + 1, Ordering::Relaxed);
            if event.to == State::Failed {
                self.failures.get_or_create(&of_pool(&event.instance.pool)).inc();
            }
            // Nobody follows: nobody is told.
            let _ = self.followers.send(event);
        }
    }

    /// An operation has brought an instance from one state to another.
    pub(crate) fn moved(&self, from: State, to: State, took: Duration) {
        let labels = vec![("from", from.to_string()), ("to", to.to_string())];
        self.moves.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

impl Node {
    /// The events after `since` that are kept, oldest first.
    pub(crate) async fn events_after(&self, since: u64) -> Result<Vec<Event>> {
        let from = key(since.saturating_add(1));
        let records = self.parts.store.list_from(PREFIX, &from).await.or_problem()?;
        let read = |record: &Record| serde_json::from_slice(&record.value).ok();
        Ok(records.iter().filter_map(read).collect())
    }

    /// The number of the last event; 0 where nothing has happened.
    pub(crate) fn newest_event(&self) -> u64 {
        self.events.next_id() - 1
    }

    /// Every event from now on.
    pub(crate) fn follow_events(&self) -> broadcast::Receiver<Event> {
        self.events.followers.subscribe()
    }

    /// Metrics in the OpenMetrics text format; of one tenant only those that are told apart by
    /// tenant and speak of the present.
    pub(crate) async fn metrics(&self, only: Option<&Name>) -> Result<String> {
        let mut registry = Registry::with_prefix("mvm");
        let EventLog { moves, failures, .. } = &self.events;
        if only.is_none() {
            let what = "Time from an operation's begin to its end";
            registry.register("transition_seconds", what, moves.clone());
            registry.register("failures", "Instances that have failed", failures.clone());
            self.audit.register(&mut registry);
            self.fronts.metrics.register(&mut registry);
            self.parts.stages.register(&mut registry);
            self.passes.register(&mut registry);
            self.halted.register(&mut registry);
            self.guests.register(&mut registry);
            self.renewals.register(&mut registry);
        }
        let (instances, leases) = self.read(|world| gauges(world, only)).await;
        registry.register("instances", "Instances by state", instances);
        registry.register("leases", "Leases by purpose", leases);
        let paused = self.read(|world| self.halted.gauge(world, only)).await;
        let what = "Running instances that their hypervisor has paused by itself";
        registry.register("paused", what, paused);
        registry.register("jobs", "Jobs by state", self.read(jobs).await);
        if only.is_none() {
            let lacks = self.lacks();
            let lacks = self.read(|world| lacks.with(world).gauge(world)).await;
            registry.register("shortfall", "What the host lacks of what pools want", lacks);
        }
        let started: Gauge = Gauge::default();
        started.set(i64::try_from(wall_of(self.started_at) / 1000).unwrap_or_default());
        registry.register("agent_start_time_seconds", "When the agent started", started);
        let identity = self.parts.root.identity();
        if only.is_none()
            && identity.exists()
            && let Ok(credential) = identity.load()
        {
            let ends: Gauge = Gauge::default();
            let at = credential.facts.validity.not_after / 1000;
            ends.set(i64::try_from(at).unwrap_or_default());
            let what = "When the certificate of this node runs out, if it is not renewed";
            registry.register("certificate_end_time_seconds", what, ends);
        }
        let mut text = String::new();
        encode(&mut text, &registry)
            .map_err(|error| mvm_api::Problem::internal(error.to_string()))?;
        Ok(text)
    }
}

fn gauges(world: &World, only: Option<&Name>) -> (Family<Labels, Gauge>, Family<Labels, Gauge>) {
    let instances: Family<Labels, Gauge> = Family::default();
    let leases: Family<Labels, Gauge> = Family::default();
    let seen = |i: &&Instance| only.is_none_or(|tenant| i.pool.tenant == *tenant);
    for instance in world.instances.values().filter(seen) {
        let mut labels = of_pool(&instance.pool);
        if let Some(lease) = &instance.lease {
            let mut labels = labels.clone();
            labels.push(("purpose", lease.purpose.to_string()));
            leases.get_or_create(&labels).inc();
        }
        labels.push(("state", instance.state.to_string()));
        instances.get_or_create(&labels).inc();
    }
    (instances, leases)
}

fn jobs(world: &World) -> Family<Labels, Gauge> {
    let jobs: Family<Labels, Gauge> = Family::default();
    for job in world.jobs.values() {
        let mut labels = of_pool(&job.pool);
        labels.push(("state", job.state.to_string()));
        jobs.get_or_create(&labels).inc();
    }
    jobs
}

/// The labels of a pool.
pub(crate) fn of_pool(pool: &PoolRef) -> Labels {
    vec![("tenant", pool.tenant.to_string()), ("pool", pool.pool.to_string())]
}

/// The events of changes of instances, numbered from `first`.
pub(crate) fn of_changes(
    world: &World,
    instances: &[(InstanceId, Option<Instance>)],
    first: u64,
    now: Millis,
) -> Vec<Event> {
    let mut events = Vec::new();
    for (id, after) in instances {
        let (before, id) = (world.instances.get(id), first + events.len() as u64);
        let event = mvm_model::event::of_change(before, after.as_ref(), id, now);
        // The log is read by people, years later: it tells what the clock on the wall said.
        events.extend(event.map(|event| Event { at: wall_of(event.at), ..event }));
    }
    events
}
