//! A kept program of a simulated guest, as it is stored in the guest's memory.

use mvm_guest::protocol::Exit;
use serde::{Deserialize, Serialize};

/// A program and its progress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub(super) argv: Vec<String>,
    pub(super) cwd: String,
    /// How many of the commands are done.
    pub(super) done: usize,
    pub(super) status: i32,
    /// When the program's present sleep ends, in ms of uptime; absent where it does not sleep.
    pub(super) until_ms: Option<u64>,
    /// All output so far. The flag says whether it went to standard error.
    pub(super) printed: Vec<(bool, String)>,
    pub(super) exit: Option<Exit>,
}
