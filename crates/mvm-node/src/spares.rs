//! Instances without a lease, which are marked before the agent does something with them on its
//! own.

use crate::Result;
use crate::audit::Auditor;
use crate::instances::{Instances, Slots};
use crate::records::Records;
use mvm_model::{Actor, Code, InstanceId, State};
use std::sync::Arc;

/// Moves and destroys idle instances.
pub(crate) struct Spares {
    records: Arc<Records>,
    slots: Arc<Slots>,
    instances: Arc<Instances>,
    auditor: Arc<Auditor>,
}

impl Spares {
    /// Makes the service for the idle instances among these.
    pub(crate) fn new(
        records: Arc<Records>,
        slots: Arc<Slots>,
        instances: Arc<Instances>,
        auditor: Arc<Auditor>,
    ) -> Spares {
        Spares { records, slots, instances, auditor }
    }

    /// Sets the goal of an instance that is still idle. Returns `None` if it is leased or busy.
    pub(crate) async fn claim(
        &self,
        id: InstanceId,
        to: State,
    ) -> Result<Option<(InstanceId, State)>> {
        self.records
            .change(|records, changes| {
                let mut instance = records.by_id(id)?.clone();
                if instance.lease.is_some() || instance.is_busy() {
                    return Ok(None);
                }
                instance.goal = Some(to);
                changes.put_instance(instance);
                Ok(Some((id, to)))
            })
            .await
    }

    /// Clears the goal of an instance once the reconciler has reached it or failed. Returns whether
    /// the instance was destroyed.
    pub(crate) async fn clear_goal(&self, id: InstanceId) -> bool {
        let cleared = self.records.update(id, |instance| instance.goal = None).await;
        let gone = self.records.read(|records| records.by_id(id).is_err());
        if cleared.is_err() && !gone {
            self.slots.need_check(id);
        }
        gone
    }

    /// Destroys an instance, unless it was leased after the plan was made.
    pub(crate) async fn destroy(&self, id: InstanceId) -> Result<()> {
        match self.claim(id, State::Destroyed).await? {
            Some((id, _)) => {
                let outcome = self
                    .auditor
                    .as_agent_on("instance.destroy", id, self.instances.destroy(id, &Actor::Agent))
                    .await;
                match outcome {
                    Err(error) if error.code() == Code::Leased => {
                        self.clear_goal(id).await;
                        Ok(())
                    }
                    outcome => outcome,
                }
            }
            None => Ok(()),
        }
    }
}
