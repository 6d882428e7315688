//! How long the agent waits for a guest: one table, which docs/operations.md repeats.
//!
//! Whatever waits for a guest waits under one of these, and says for what when it gives up. Waits
//! for QEMU's monitor have their own in the driver (`mvm-hypervisor/src/qemu`).

use mvm_api::Problem;
use mvm_model::Code;
use std::time::Duration;
use tokio::time::Instant;

/// The longest that one thing may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// Its name in the documentation.
    pub name: &'static str,
    /// The limit in seconds.
    pub seconds: u64,
    /// What is waited for, as it is said to whoever waits.
    pub what: &'static str,
}

/// From power-on to a guest that is itself.
pub(crate) const BOOT: Deadline = of("boot", 120, "its guest did not come up");
/// From a template to a guest that is itself.
pub(crate) const CLONE: Deadline = of("clone", 30, "its guest did not come up");
/// From a snapshot to a guest that has the right time.
pub(crate) const WAKE: Deadline = of("wake", 30, "its guest did not wake up");
/// From a resume to a guest that has the right time; a new connection to a guest that runs.
pub(crate) const RESUME: Deadline = of("resume", 15, "it did not answer");
/// A stream to a guest that runs: what exec, cp, ssh and connections to ports begin with.
pub(crate) const STREAM: Deadline = of("stream", 15, "it did not take a request");
/// A guest's own account of what it uses, and the turn to ask for it.
pub(crate) const STATS: Deadline = of("stats", 2, "it did not say what it uses");
/// A connection to a port of the guest; the guest tries one that refuses for 5 s.
pub(crate) const DIAL: Deadline = of("dial", 30, "it did not connect to its port");
/// The mounting of a cache.
pub(crate) const MOUNT: Deadline = of("mount", 60, "it did not mount a cache");
/// The unmounting of a cache, which writes what is still to be written.
pub(crate) const UNMOUNT: Deadline = of("unmount", 120, "it did not let go of a cache");
/// A guest that was asked to shut down; its machine is ended then.
pub(crate) const SHUTDOWN: Deadline = of("shutdown", 10, "it did not shut down");
/// A pool's `--prewarm` command.
pub(crate) const PREWARM: Deadline = of("prewarm", 1800, "the pool's command did not end");

/// Whoever holds an instance that is to be destroyed; its machine is ended then.
pub(crate) const SEIZE: Deadline = of("seize", 1, "whoever holds it did not let go");

/// All of them.
#[cfg(test)]
pub(crate) const ALL: [Deadline; 12] =
    [BOOT, CLONE, WAKE, RESUME, STREAM, STATS, DIAL, MOUNT, UNMOUNT, SHUTDOWN, PREWARM, SEIZE];

const fn of(name: &'static str, seconds: u64, what: &'static str) -> Deadline {
    Deadline { name, seconds, what }
}

impl Deadline {
    /// The limit; tests may shorten all of them alike.
    pub fn limit(self) -> Duration {
        let limit = Duration::from_secs(self.seconds);
        #[cfg(test)]
        let limit = limit / haste::divisor();
        limit
    }

    /// Several steps are to end by one moment.
    pub fn begin(self) -> Until {
        Until { deadline: self, at: Instant::now() + self.limit() }
    }

    /// Whoever waited gives up.
    pub fn silent(self) -> Problem {
        let (what, seconds) = (self.what, self.seconds);
        let detail = format!("the guest does not answer: {what} within {seconds} s");
        Problem::new(Code::GuestSilent, detail)
    }
}

/// A deadline that has begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until {
    /// Which.
    pub deadline: Deadline,
    /// When it is over.
    pub at: Instant,
}

impl Until {
    /// What is left of it.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

impl From<Deadline> for Until {
    fn from(deadline: Deadline) -> Until {
        deadline.begin()
    }
}

/// Tests of silent guests do not wait for minutes.
#[cfg(test)]
pub(crate) mod haste {
    use std::cell::Cell;

    thread_local! {
        static DIVISOR: Cell<u32> = const { Cell::new(1) };
    }

    /// What every deadline of this thread is divided by.
    pub(crate) fn divisor() -> u32 {
        DIVISOR.get()
    }

    /// Shortens every deadline of this thread so many times.
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
