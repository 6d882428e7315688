//! The hypervisor trait and its drivers.
//!
//! What lives here: [`Hypervisor`] and [`Machine`], the small interface over one virtual machine
//! monitor (boot, restore, adopt, pause, resume, snapshot, kill, stats), the driver [`qemu`], and
//! the simulated driver [`sim`].
//!
//! What never may: tenants, pools, leases, images, network rules, or any record of state. A
//! [`VmSpec`] holds everything that a driver may know; a [`ProcessIdentity`] is everything that its
//! caller must remember of a machine. Drivers never decide *when* to act: they carry out calls and
//! report precisely what failed ([`Error::code`]).

mod condition;
mod error;
mod machine;
pub mod qemu;
pub mod sim;
mod spec;

pub use condition::{Condition, Halt};
pub use error::{Error, Result};
pub use machine::{Hypervisor, Machine, OnStarted};
pub use qemu::{CONSOLE_MAX_BYTES, trim_log};
pub use spec::{
    CONFINED_UIDS, Confine, Description, Disk, Exit, Kernel, MachineStats, Nic, OwnMemory,
    Platform, ProcessIdentity, RestoreMemory, VmSpec,
};
