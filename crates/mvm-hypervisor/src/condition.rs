//! Whether a machine does what it was told.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a machine does what it was told, see [`crate::Machine::condition`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// It runs, or was paused by its caller.
    #[default]
    Fine,
    /// It should run, and the hypervisor has stopped its vCPUs. Memory and disks are whole;
    /// [`crate::Machine::retry`] tries again what could not be done.
    Halted(Halt),
}

/// Why a hypervisor has stopped a machine's vCPUs by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Halt {
    /// A write found no room where the file of this disk ([`crate::Disk::id`]) is.
    NoSpace {
        /// Where it is known.
        disk: Option<String>,
    },
    /// The file of this disk could not be read or written.
    IoError {
        /// Where it is known.
        disk: Option<String>,
    },
    /// The guest's kernel panicked, and said so by its own device.
    Panicked,
    /// Anything else, in the hypervisor's own word: `internal-error`, `watchdog`, `paused` (by
    /// somebody who is not its caller).
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
