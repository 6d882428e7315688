//! Machines that their hypervisor has stopped by itself, and what is done about them.

use crate::mib::Mib;
use crate::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a job waits while its machine is paused for want of space, in seconds, unless the agent
/// is configured otherwise.
pub const NO_SPACE_TIMEOUT_S: u64 = 600;
/// How much space must be free before a machine that found none is resumed: as much as before one
/// is started.
pub const ROOM: Mib = Mib(64);
/// How often a machine whose disk fails is tried again before it is given up.
pub const IO_TRIES: u32 = 5;
/// How long a machine must run after it was resumed to count as well again.
pub const CALM: Duration = Duration::from_secs(10);
/// The longest pause between two tries.
const LONGEST: Duration = Duration::from_secs(30);

/// The cause for which a machine was paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A write of its guest found the host's disk full.
    NoSpace,
    /// The host could not read or write one of the machine's disks.
    IoError,
    /// The guest, or its virtual processor, cannot go on.
    Crashed,
    /// A user or program outside mvm has paused the machine.
    Outside,
}

impl Cause {
    /// Returns the cause's name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::NoSpace => "no_space",
            Cause::IoError => "io_error",
            Cause::Crashed => "crashed",
            Cause::Outside => "outside",
        }
    }
}

/// A pause by the hypervisor of a machine that should run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Paused {
    /// The cause of the pause.
    pub cause: Cause,
    /// The cause in words: `no space on the host for disk scratch`.
    pub reason: String,
    /// Since when the machine is paused; ms since the Unix epoch.
    pub since: Timestamp,
}

/// What is known of a paused machine when it is decided what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What has paused it.
    pub cause: Cause,
    /// How often it was let go on since it was last well.
    pub tries: u32,
    /// Since the last time, or since it was paused.
    pub since_try: Duration,
    /// Since it was last well.
    pub paused_for: Duration,
    /// How much room the host's disk has now.
    pub free: Mib,
    /// How long it may be without space; absent where nobody's job waits.
    pub limit: Option<Duration>,
}

/// What is to be done with a paused machine now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Wait,
    /// It goes on, and does again what it could not do.
    Resume,
    /// It has failed.
    Fail,
}

/// Returns what to do with the machine now.
pub fn step(facts: &Facts) -> Step {
    let due = facts.since_try >= pause_before(facts.tries);
    match facts.cause {
        Cause::NoSpace if facts.limit.is_some_and(|limit| facts.paused_for >= limit) => Step::Fail,
        Cause::NoSpace if due && facts.free >= ROOM => Step::Resume,
        Cause::IoError if due && facts.tries < IO_TRIES => Step::Resume,
        Cause::IoError if due => Step::Fail,
        Cause::Crashed => Step::Fail,
        Cause::NoSpace | Cause::IoError | Cause::Outside => Step::Wait,
    }
}

/// Returns the pause before a try, which grows: 0, 1, 2, 4 … 30 s.
fn pause_before(tries: u32) -> Duration {
    let doubled = tries.checked_sub(1).map_or(0, |n| 1 << n.min(5));
    Duration::from_secs(doubled).min(LONGEST)
}
