//! Machines that their hypervisor has paused by itself: shown, reported, and resumed when they can
//! go on.
//!
//! For each machine, a task follows the condition and carries out what [`mvm_model::halt`] decides.
//! The pauses that are shown are in memory, since nothing can be recorded on a full disk; the
//! record and its event follow as soon as there is space.

#[cfg(test)]
mod tests;

use crate::Error;
use crate::error::MachineError;
use crate::labels::{Labels, of_pool};
use crate::locks::locked;
use crate::records::RecordSet;
use mvm_hypervisor::{Condition, Halt, Machine, ProcessIdentity};
use mvm_model::halt::Paused;
use mvm_model::{InstanceId, Mib, Name};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;

/// Returns the free space of the machines' disk, if it can be read.
pub(crate) type Room = Arc<dyn Fn() -> Option<Mib> + Send + Sync>;

/// How long a job's machine may be without disk space, and the function that reads the free space.
type Terms = (Duration, Room);

/// The paused machines, in memory only.
pub(crate) struct Halted {
    terms: Lock<Terms>,
    pub(super) shown: Lock<HashMap<InstanceId, Paused>>,
    pub(super) followed: Lock<HashSet<ProcessIdentity>>,
    pub(super) pauses: Family<Labels, Counter>,
}

impl Halted {
    pub(crate) fn new(limit: Duration, room: Room) -> Halted {
        Halted {
            terms: Lock::new((limit, room)),
            shown: Lock::default(),
            followed: Lock::default(),
            pauses: Family::default(),
        }
    }

    /// Returns why the machine of this instance is paused, if it is.
    pub(crate) fn paused(&self, id: InstanceId) -> Option<Paused> {
        locked(&self.shown).get(&id).cloned()
    }

    /// Registers the count of pauses.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let what = "Machines that their hypervisor has paused by itself, by cause";
        registry.register("pauses", what, self.pauses.clone());
    }

    /// Returns the metric of machines that are paused now.
    pub(crate) fn gauge(&self, records: &RecordSet, only: Option<&Name>) -> Family<Labels, Gauge> {
        let gauge: Family<Labels, Gauge> = Family::default();
        for (id, paused) in locked(&self.shown).iter() {
            let Some(instance) = records.instances.get(id) else { continue };
            if only.is_none_or(|tenant| instance.pool.tenant == *tenant) {
                let mut labels = of_pool(&instance.pool);
                labels.push(("cause", paused.cause.as_str().to_owned()));
                gauge.get_or_create(&labels).inc();
            }
        }
        gauge
    }

    /// Replaces the limit and the reading of free space, for tests.
    #[cfg(test)]
    pub(crate) fn set_terms(&self, limit: Duration, room: Room) {
        *locked(&self.terms) = (limit, room);
    }

    pub(super) fn terms(&self) -> (Duration, Mib) {
        let (limit, room) = locked(&self.terms).clone();
        (limit, room().unwrap_or_default())
    }
}

/// Returns the error for operations that wait for the guest of a machine that is paused because
/// the disk is full; `None` where it is not.
pub(crate) fn no_space_error(machine: &Arc<dyn Machine>) -> Option<Error> {
    let condition = machine.condition().borrow().clone();
    let Condition::Halted(halt @ Halt::NoSpace { .. }) = condition else { return None };
    Some(MachineError::HeldBack(halt).into())
}
