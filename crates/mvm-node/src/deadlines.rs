//! The agent's deadlines for guests: one table, which docs/operations.md repeats.
//!
//! Every wait for a guest has one of these deadlines, and its error names what was waited for.
//! Waits for QEMU's monitor have their own in the driver (`mvm-hypervisor/src/qemu`).

use crate::Error;
use crate::error::MachineError;
use std::time::Duration;
use tokio::time::Instant;

/// The longest time that one step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// The deadline's name in the documentation.
    pub name: &'static str,
    /// The limit in seconds.
    pub seconds: u64,
    /// What the guest failed to do, as the error says it.
    pub what: &'static str,
}

/// From power-on to a guest with its own identity.
pub(crate) const BOOT: Deadline = of("boot", 120, "its guest did not come up");
/// From a template to a guest with its own identity.
pub(crate) const CLONE: Deadline = of("clone", 30, "its guest did not come up");
/// From a snapshot to a guest with the right time.
pub(crate) const WAKE: Deadline = of("wake", 30, "its guest did not wake up");
/// From a resume to a guest with the right time; also a new connection to a running guest.
pub(crate) const RESUME: Deadline = of("resume", 15, "it did not answer");
/// A stream to a running guest: the beginning of exec, cp, ssh and connections to ports.
pub(crate) const STREAM: Deadline = of("stream", 15, "it did not take a request");
/// A guest's own statistics, including the wait to ask for them.
pub(crate) const STATS: Deadline = of("stats", 2, "it did not say what it uses");
/// A connection to a port of the guest. The guest itself tries a port that refuses for 5 s.
pub(crate) const DIAL: Deadline = of("dial", 30, "it did not connect to its port");
/// Mounting a cache.
pub(crate) const MOUNT: Deadline = of("mount", 60, "it did not mount a cache");
/// Unmounting a cache, which writes its pending data.
pub(crate) const UNMOUNT: Deadline = of("unmount", 120, "it did not let go of a cache");
/// The shutdown of a guest that was asked to. After it, the machine is ended.
pub(crate) const SHUTDOWN: Deadline = of("shutdown", 10, "it did not shut down");
/// A pool's `--prewarm` command.
pub(crate) const PREWARM: Deadline = of("prewarm", 1800, "the pool's command did not end");

/// The holder of an instance that is to be destroyed. After it, the machine is ended.
pub(crate) const SEIZE: Deadline = of("seize", 1, "whoever holds it did not let go");

/// All deadlines.
#[cfg(test)]
pub(crate) const ALL: [Deadline; 12] =
    [BOOT, CLONE, WAKE, RESUME, STREAM, STATS, DIAL, MOUNT, UNMOUNT, SHUTDOWN, PREWARM, SEIZE];

const fn of(name: &'static str, seconds: u64, what: &'static str) -> Deadline {
    Deadline { name, seconds, what }
}

impl Deadline {
    /// Returns the limit. Tests may shorten all of them by the same factor.
    pub fn limit(self) -> Duration {
        let limit = Duration::from_secs(self.seconds);
        #[cfg(test)]
        let limit = limit / haste::divisor();
        limit
    }

    /// Begins the deadline, which several steps may share.
    pub fn begin(self) -> Until {
        Until { deadline: self, at: Instant::now() + self.limit() }
    }

    /// Makes the error of a guest that missed the deadline.
    pub fn silent(self) -> Error {
        MachineError::Late { what: self.what, seconds: self.seconds }.into()
    }
}

/// A deadline that has begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until {
    /// The deadline.
    pub deadline: Deadline,
    /// When it ends.
    pub at: Instant,
}

impl Until {
    /// Returns the time that is left.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

impl From<Deadline> for Until {
    fn from(deadline: Deadline) -> Until {
        deadline.begin()
    }
}

/// Tests of silent guests shorten the deadlines.
#[cfg(test)]
pub(crate) mod haste {
    use std::cell::Cell;

    thread_local! {
        static DIVISOR: Cell<u32> = const { Cell::new(1) };
    }

    /// Returns the divisor of every deadline of this thread.
    pub(crate) fn divisor() -> u32 {
        DIVISOR.get()
    }

    /// Divides every deadline of this thread by `times`.
    pub(crate) fn make(times: u32) {
        DIVISOR.set(times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_deadline() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
        let page = std::fs::read_to_string(page).expect("the page");
        let missing: Vec<String> = ALL
            .iter()
            .map(|deadline| format!("| `{}` | {} s |", deadline.name, deadline.seconds))
            .filter(|row| !page.contains(row))
            .collect();
        assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
    }
}
