//! The agent's metrics in the OpenMetrics text format.

use crate::Result;
use crate::error::InternalError;
use crate::host::Host;
use crate::instances::Halted;
use crate::labels::{Labels, of_pool};
use crate::records::{RecordSet, Records};
use mvm_identity::IdentityDir;
use mvm_model::{Instance, Job, Name, Timestamp};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// Registers the metrics of a service.
pub(crate) type Source = Box<dyn Fn(&mut Registry) + Send + Sync>;

/// Returns the source of a service's metrics.
pub(crate) fn source<T: Send + Sync + 'static>(
    of: &Arc<T>,
    register: fn(&T, &mut Registry),
) -> Source {
    let of = of.clone();
    Box::new(move |registry| register(&of, registry))
}

/// The metrics of the node.
pub(crate) struct Metrics {
    pub(crate) records: Arc<Records>,
    /// The sources of metrics of the whole node.
    pub(crate) sources: Vec<Source>,
    pub(crate) halted: Arc<Halted>,
    pub(crate) host: Arc<Host>,
    pub(crate) identity: IdentityDir,
    pub(crate) started_at: Timestamp,
}

impl Metrics {
    /// Returns the metrics in the OpenMetrics text format. For one tenant (`only`), the metrics of
    /// the services, the shortfalls and the end of the certificate are left out.
    pub(crate) fn render(&self, only: Option<&Name>) -> Result<String> {
        let mut registry = Registry::with_prefix("mvm");
        if only.is_none() {
            self.sources.iter().for_each(|register| register(&mut registry));
        }
        let (instances, leases) = self.records.read(|records| gauges(records, only));
        registry.register("instances", "Instances by state", instances);
        registry.register("leases", "Leases by purpose", leases);
        let paused = self.records.read(|records| self.halted.gauge(records, only));
        let what = "Running instances that their hypervisor has paused by itself";
        registry.register("paused", what, paused);
        let jobs = self.records.read(|records| jobs(records, only));
        registry.register("jobs", "Jobs by state", jobs);
        if only.is_none() {
            let lacks = self.host.shortfalls();
            let lacks = self.records.read(|records| lacks.with(records).gauge(records));
            registry.register("shortfall", "What the host lacks of what pools want", lacks);
        }
        let started: Gauge = Gauge::default();
        let started_at = self.records.clock().wall_of(self.started_at);
        started.set(i64::try_from(started_at.as_secs()).unwrap_or_default());
        registry.register("agent_start_time_seconds", "When the agent started", started);
        if only.is_none()
            && self.identity.exists()
            && let Ok(credential) = self.identity.load()
        {
            let ends: Gauge = Gauge::default();
            let at = credential.facts.validity.not_after;
            ends.set(i64::try_from(at.as_secs()).unwrap_or_default());
            let what = "When the certificate of this node runs out, if it is not renewed";
            registry.register("certificate_end_time_seconds", what, ends);
        }
        let mut text = String::new();
        encode(&mut text, &registry).map_err(InternalError::Metrics)?;
        Ok(text)
    }
}

fn gauges(
    records: &RecordSet,
    only: Option<&Name>,
) -> (Family<Labels, Gauge>, Family<Labels, Gauge>) {
    let instances: Family<Labels, Gauge> = Family::default();
    let leases: Family<Labels, Gauge> = Family::default();
    let seen = |i: &&Instance| only.is_none_or(|tenant| i.pool.tenant == *tenant);
    for instance in records.instances.values().filter(seen) {
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

fn jobs(records: &RecordSet, only: Option<&Name>) -> Family<Labels, Gauge> {
    let jobs: Family<Labels, Gauge> = Family::default();
    let seen = |job: &&Job| only.is_none_or(|tenant| job.pool.tenant == *tenant);
    for job in records.jobs.values().filter(seen) {
        let mut labels = of_pool(&job.pool);
        labels.push(("state", job.state.to_string()));
        jobs.get_or_create(&labels).inc();
    }
    jobs
}
