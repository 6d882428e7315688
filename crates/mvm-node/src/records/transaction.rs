//! One write of the records: collects the changes while they are decided.

use super::event_log::{EventLog, key, of_changes};
use super::in_force::InForce;
use super::record_set::{DESIRED, LEADER, RecordSet};
use mvm_api::fleet::Leader;
use mvm_clock::Clock;
use mvm_model::event::{self, Event};
use mvm_model::expose::Expose;
use mvm_model::{Instance, InstanceId, Job, JobId, Name, Pool, PoolRef, Tenant};
use mvm_store::{Expect, Write};
use serde::Serialize;
use std::net::SocketAddr;

/// A change of the records in memory, which is made once it is durable.
type Change = Box<dyn FnOnce(&mut RecordSet) + Send>;

/// Changes that belong together: either all of them become durable, or none.
#[derive(Default)]
pub struct Transaction {
    writes: Vec<Write>,
    /// The instances as they will be; `None` for a removed one.
    instances: Vec<(InstanceId, Option<Instance>)>,
    /// Events besides those of changes of instances.
    events: Vec<Event>,
    /// The changes of all other records.
    apply: Vec<Change>,
}

impl Transaction {
    /// Makes or replaces a tenant.
    pub fn put_tenant(&mut self, tenant: Tenant) {
        self.put(format!("tenants/{}", tenant.name), &tenant);
        self.apply.push(Box::new(move |records| {
            records.tenants.insert(tenant.name.clone(), tenant);
        }));
    }

    /// Removes a tenant.
    pub fn remove_tenant(&mut self, name: Name) {
        self.delete(format!("tenants/{name}"));
        self.apply.push(Box::new(move |records| {
            records.tenants.remove(&name);
        }));
    }

    /// Makes or replaces a pool.
    pub fn put_pool(&mut self, pool: Pool) {
        self.put(format!("pools/{}", pool.reference), &pool);
        self.apply.push(Box::new(move |records| {
            records.pools.insert(pool.reference.clone(), pool);
        }));
    }

    /// Removes a pool.
    pub fn remove_pool(&mut self, reference: PoolRef) {
        self.delete(format!("pools/{reference}"));
        self.apply.push(Box::new(move |records| {
            records.pools.remove(&reference);
        }));
    }

    /// Makes or replaces an instance.
    pub fn put_instance(&mut self, instance: Instance) {
        self.put(format!("instances/{}", instance.id), &instance);
        self.instances.push((instance.id, Some(instance)));
    }

    /// Removes an instance.
    pub fn remove_instance(&mut self, id: InstanceId) {
        self.delete(format!("instances/{id}"));
        self.instances.push((id, None));
    }

    /// Writes an event that comes with no change of a record. The event gets its number when it is
    /// written.
    pub fn add_event(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Makes or replaces a job.
    pub fn put_job(&mut self, job: Job) {
        self.put(format!("jobs/{}", job.id), &job);
        self.apply.push(Box::new(move |records| {
            records.jobs.insert(job.id, job);
        }));
    }

    /// Removes a job.
    pub fn remove_job(&mut self, id: JobId) {
        self.delete(format!("jobs/{id}"));
        self.apply.push(Box::new(move |records| {
            records.jobs.remove(&id);
        }));
    }

    /// Returns whether the transaction changes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.events.is_empty()
    }

    /// Puts a document of desired state in force.
    pub fn put_desired(&mut self, desired: InForce) {
        self.put(DESIRED.to_owned(), &desired);
        self.apply.push(Box::new(move |records| records.desired = Some(desired)));
    }

    /// Makes this the leader of a fleet that the node obeys from now on.
    pub fn put_leader(&mut self, leader: Leader) {
        self.put(LEADER.to_owned(), &leader);
        self.apply.push(Box::new(move |records| records.leader = Some(leader)));
    }

    /// Removes the leader that the node obeys.
    pub fn remove_leader(&mut self) {
        self.delete(LEADER.to_owned());
        self.apply.push(Box::new(move |records| records.leader = None));
    }

    /// Removes the document in force.
    pub fn remove_desired(&mut self) {
        self.delete(DESIRED.to_owned());
        self.apply.push(Box::new(move |records| records.desired = None));
    }

    /// Makes or replaces a front.
    pub fn put_expose(&mut self, expose: Expose) {
        self.put(format!("exposes/{}", expose.listen), &expose);
        self.apply.push(Box::new(move |records| {
            records.exposes.insert(expose.listen, expose);
        }));
    }

    /// Removes a front.
    pub fn remove_expose(&mut self, listen: SocketAddr) {
        self.delete(format!("exposes/{listen}"));
        self.apply.push(Box::new(move |records| {
            records.exposes.remove(&listen);
        }));
    }

    /// Returns the writes that make the changes durable, with their events, and the changes to make
    /// in memory afterwards.
    pub(super) fn seal(
        mut self,
        records: &RecordSet,
        log: &EventLog,
        clock: &Clock,
    ) -> (Vec<Write>, Sealed) {
        let mut events = of_changes(records, &self.instances, log.next_id(), clock);
        for event in std::mem::take(&mut self.events) {
            let id = log.next_id() + events.len() as u64;
            events.push(Event { id, ..event });
        }
        for event in &events {
            self.put(key(event.id), event);
            if let Some(old) = event.id.checked_sub(event::KEPT) {
                self.delete(key(old));
            }
        }
        (self.writes, Sealed { instances: self.instances, apply: self.apply, events })
    }

    fn put(&mut self, key: String, value: &impl Serialize) {
        // Records are plain structs of strings and numbers, so their serialisation cannot fail.
        let value = serde_json::to_vec(value).unwrap_or_default();
        self.writes.push(Write::Put { key, value, expect: Expect::Any });
    }

    fn delete(&mut self, key: String) {
        self.writes.push(Write::Delete { key, expect: Expect::Any });
    }
}

/// A transaction whose writes are on their way to the store.
pub(super) struct Sealed {
    instances: Vec<(InstanceId, Option<Instance>)>,
    apply: Vec<Change>,
    /// The events for followers of the log.
    pub events: Vec<Event>,
}

impl Sealed {
    /// Changes the records in memory. Called once, when the writes are durable.
    pub fn apply(&mut self, records: &mut RecordSet) {
        for change in self.apply.drain(..) {
            change(records);
        }
        for (id, instance) in self.instances.drain(..) {
            match instance {
                Some(instance) => records.instances.insert(id, instance),
                None => records.instances.remove(&id),
            };
        }
    }
}
