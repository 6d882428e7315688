//! Whether a machine runs as its caller asked, or was halted by its hypervisor.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Whether a machine runs as its caller asked, see [`crate::Machine::condition`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The machine runs, or was paused by its caller.
    #[default]
    Fine,
    /// The machine should run, but the hypervisor has stopped its vCPUs. Memory and disks are
    /// whole; [`crate::Machine::retry`] repeats the operation that failed.
    Halted(Halt),
}

/// Why a hypervisor has stopped a machine's vCPUs by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Halt {
    /// A write found no space on the file system of this disk's file ([`crate::Disk::id`]).
    NoSpace {
        /// The disk's id; `None` if the hypervisor does not say which.
        disk: Option<String>,
    },
    /// The file of this disk could not be read or written.
    IoError {
        /// The disk's id; `None` if the hypervisor does not say which.
        disk: Option<String>,
    },
    /// The guest's kernel panicked and reported it through the panic device.
    Panicked,
    /// Any other reason, in the hypervisor's own word: `internal-error`, `watchdog`, `paused` (by
    /// somebody other than its caller).
    Other(String),
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSpace { disk: Some(disk) } => write!(f, "no space on the host for disk {disk}"),
            Self::NoSpace { disk: None } => f.write_str("no space on the host"),
            Self::IoError { disk: Some(disk) } => {
                write!(f, "the host cannot read or write disk {disk}")
            }
            Self::IoError { disk: None } => f.write_str("the host cannot read or write a disk"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::Other(word) => write!(f, "the hypervisor stopped it: {word}"),
        }
    }
}
