//! Instances: machines with records. Operations on them, and the handling of machines that pause,
//! fall silent, lose their tap or end by themselves.
//!
//! From the bottom: slots (who may change a machine), transitions (what is recorded), the watch of
//! machines that are up, machines (from a record to a guest that is ready), recovery, and on top
//! the lifecycle.

mod disks;
mod follower;
mod halted;
mod interrupt;
mod lifecycle;
mod lingering;
mod link_keeper;
mod liveness;
mod machines;
mod recovery;
mod seize;
mod slot;
mod slots;
mod snapshot;
mod transitions;
mod wake;
mod warm;
mod watch;

pub(crate) use disks::{Disks, disk_use_kib, free_space};
pub(crate) use halted::Halted;
pub(crate) use lifecycle::Instances;
pub(crate) use lingering::Lingering;
pub(crate) use link_keeper::LinkKeeper;
pub(crate) use liveness::{Guests, run as watch_guests};
pub(crate) use machines::{Machines, host_key_alias};
pub(crate) use recovery::Recovery;
pub(crate) use slot::{Session, Slot};
pub(crate) use slots::Slots;
pub(crate) use transitions::{Transitions, draw_ids, new_instance};
pub(crate) use warm::HeldWarm;
pub(crate) use watch::MachineWatch;
