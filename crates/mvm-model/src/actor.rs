//! On whose behalf an instance is moved, and what its lease says to that.

use crate::error::Fault;
use crate::id::LeaseId;
use crate::instance::Instance;
use crate::lease::{Lease, Purpose};
use crate::state::State;
use mvm_code::Code;

/// On whose behalf an instance is moved from one state to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The reconciler and the policy: they leave alone what anybody holds.
    Agent,
    /// The holder of the lease with this id, and the agent that ends it.
    Lease(LeaseId),
    /// The person or program of this name: moves what nobody holds, and what it holds itself by a
    /// manual lease.
    Holder(String),
    /// The destroyer of an instance or its pool: no lease stands in the way.
    Force,
}

impl Actor {
    /// Returns the actor that the instance's lease stands for; the agent, where it has no lease.
    pub fn of(instance: &Instance) -> Actor {
        instance.lease.as_ref().map_or(Actor::Agent, |lease| Actor::Lease(lease.id))
    }

    /// Checks whether the actor may move the instance. The fault names the lease that forbids it,
    /// its holder and what it is for.
    pub fn check(&self, instance: &Instance) -> Result<(), Fault> {
        match (self, &instance.lease) {
            (Actor::Force, _) | (Actor::Agent | Actor::Holder(_), None) => Ok(()),
            (Actor::Holder(_), Some(lease)) if self.holds(lease) => Ok(()),
            (Actor::Lease(id), Some(lease)) if lease.id == *id => Ok(()),
            (Actor::Lease(id), None) => Err(ended(instance, *id)),
            (_, Some(lease)) => Err(leased(instance, lease)),
        }
    }

    /// Returns whether the actor gives up the instance's lease by bringing it to `to`: a holder
    /// that puts a machine aside needs it no more. A start or wake keeps the lease.
    pub fn gives_up(&self, instance: &Instance, to: State) -> bool {
        to != State::Running && instance.lease.as_ref().is_some_and(|lease| self.holds(lease))
    }

    fn holds(&self, lease: &Lease) -> bool {
        let Actor::Holder(holder) = self else { return false };
        lease.purpose == Purpose::Manual && lease.holder == *holder
    }
}

/// Checks whether this holder may take the instance. Errors: `leased`, where another one has it.
pub fn may_take(instance: &Instance, holder: &str) -> Result<(), Fault> {
    match &instance.lease {
        Some(lease) if lease.holder != holder => Err(leased(instance, lease)),
        _ => Ok(()),
    }
}

fn ended(instance: &Instance, id: LeaseId) -> Fault {
    let what = format!("the lease {id} on instance {} has ended", instance.reference());
    Fault::new(Code::LeaseEnded, what).hint("see who has what: mvm lease list")
}

fn leased(instance: &Instance, lease: &Lease) -> Fault {
    let (reference, id, holder) = (instance.reference(), lease.id, &lease.holder);
    let (what, hint) = match lease.purpose {
        Purpose::Run => ("a job of ", "wait for the job or cancel it".to_owned()),
        Purpose::Template => ("the making of a template: ", "wait until that is done".to_owned()),
        Purpose::Manual => ("", format!("wait for its end, or end it: mvm lease release {id}")),
        Purpose::Expose => (
            "connections: ",
            format!(
                "wait for their end, or take the front away: mvm pool unexpose {}",
                instance.pool
            ),
        ),
    };
    let message = format!(
        "instance {reference} is leased to {what}{holder} (lease {id}, purpose {})",
        lease.purpose
    );
    Fault::new(Code::Leased, message)
        .hint(format!("{hint}; `mvm instance destroy` works at any time"))
}
