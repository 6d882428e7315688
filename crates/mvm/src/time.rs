//! The time of a command.

use mvm_clock::Clock;
use mvm_model::Timestamp;

/// Returns the clock of a command that is no server: its timeline ends with it.
pub fn clock() -> Clock {
    Clock::system()
}

/// Returns the wall clock, in ms since the Unix epoch.
pub fn wall() -> Timestamp {
    clock().wall()
}
