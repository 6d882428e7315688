//! The slots of all instances, and the marks of those that need a check.

use super::slot::Slot;
use crate::locks::locked;
use mvm_model::InstanceId;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex as Lock};

/// The agent's memory of its instances.
#[derive(Default)]
pub(crate) struct Slots {
    slots: Lock<HashMap<InstanceId, Arc<Slot>>>,
    /// Sleeping instances whose process may still exist.
    pub(super) lingering: Lock<BTreeSet<InstanceId>>,
    /// Instances whose last operation failed, so that their record may not match the machine.
    needs_check: Lock<BTreeSet<InstanceId>>,
}

impl Slots {
    /// Returns the slot of an instance.
    pub fn of(&self, id: InstanceId) -> Arc<Slot> {
        locked(&self.slots).entry(id).or_default().clone()
    }

    /// Forgets an instance that was destroyed.
    pub fn forget(&self, id: InstanceId) {
        locked(&self.slots).remove(&id);
        locked(&self.lingering).remove(&id);
    }

    /// Marks an instance for a check: the next operation, or the reconcile loop, compares its record with
    /// the machine.
    pub fn need_check(&self, id: InstanceId) {
        locked(&self.needs_check).insert(id);
    }

    /// Returns the instances that are marked for a check.
    pub fn to_check(&self) -> BTreeSet<InstanceId> {
        locked(&self.needs_check).clone()
    }

    /// Clears the mark once the check has passed.
    pub fn checked(&self, id: InstanceId) {
        locked(&self.needs_check).remove(&id);
    }

    /// Returns whether the instance is marked for a check.
    pub fn needs_check(&self, id: InstanceId) -> bool {
        locked(&self.needs_check).contains(&id)
    }
}
