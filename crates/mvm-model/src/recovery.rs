//! What an agent that starts does with an instance, given what is really there.

use crate::instance::Instance;
use crate::state::State;

/// What there is of a sleeping machine to wake it from: on disk, or its template if it is dormant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// There is nothing to wake it from.
    Absent,
    /// The snapshot is the machine; a process has changed nothing.
    Whole,
    /// A process was about to be resumed, or was resumed a moment ago.
    Resuming {
        /// Whether its guest may have run: then memory and snapshot belong together no more.
        stale: bool,
    },
}

impl Snapshot {
    /// Returns whether the machine can be woken from it.
    fn is_good(self) -> bool {
        matches!(self, Snapshot::Whole | Snapshot::Resuming { stale: false })
    }
}

/// What to do with one instance at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its process lives and is right: take it over and bring the vCPUs to this state.
    Adopt(State),
    /// End its process if there is one; the instance is then in this state.
    Settle(State),
    /// Finish destroying it.
    Destroy,
    /// Mark it as failed, for this reason.
    Fail(String),
}

/// Decides by the record, by whether its hypervisor `process` lives, and by the `snapshot`. A whole
/// snapshot is renamed before a woken machine runs, so where it is there, it is the machine, and
/// the process has changed nothing. While a machine is being resumed its process is the machine;
/// where that has died before its guest ran, the snapshot is.
pub fn recover(instance: &Instance, process: bool, snapshot: Snapshot) -> Verdict {
    let Some(intent) = instance.intent else {
        return settled(instance, process, snapshot);
    };
    match (intent.from, intent.to) {
        (_, State::Destroyed) => Verdict::Destroy,
        (_, State::Stopped) => Verdict::Settle(State::Stopped),
        (State::Sleeping, to) if process && matches!(snapshot, Snapshot::Resuming { .. }) => {
            Verdict::Adopt(to)
        }
        (_, State::Sleeping) | (State::Sleeping, _) if snapshot.is_good() => {
            Verdict::Settle(State::Sleeping)
        }
        // A boot or clone that was cut off is undone: there is nothing of the guest yet.
        (State::Created, _) => Verdict::Settle(State::Created),
        (from, State::Sleeping) if process => Verdict::Adopt(from),
        (State::Sleeping, to) if process => Verdict::Adopt(to),
        (_, State::Sleeping) | (State::Sleeping, _) => {
            lost(&format!("on its way from {} to {}", intent.from, intent.to))
        }
        // A pause or resume that was cut off is undone: its process holds the machine.
        (from, _) if from.has_process() && process => Verdict::Adopt(from),
        (from, to) if from.has_process() => lost(&format!("on its way from {from} to {to}")),
        // A start from kept disks that was cut off is undone, too.
        (from, _) => Verdict::Settle(from),
    }
}

fn settled(instance: &Instance, process: bool, snapshot: Snapshot) -> Verdict {
    match instance.state {
        state @ (State::Running | State::Warm) if process => Verdict::Adopt(state),
        state @ (State::Running | State::Warm) => lost(&state.to_string()),
        State::Sleeping if snapshot.is_good() => Verdict::Settle(State::Sleeping),
        State::Sleeping => Verdict::Fail(
            "its snapshot is not on disk any more; destroy the instance, or start it afresh from \
             its disks"
                .to_owned(),
        ),
        State::Destroyed => Verdict::Destroy,
        state => Verdict::Settle(state),
    }
}

fn lost(while_: &str) -> Verdict {
    Verdict::Fail(format!(
        "its hypervisor process ended while it was {while_} and no agent watched; the console log \
         may say why. Destroy the instance, or start it afresh from its disks"
    ))
}
