//! A kept program of a simulated guest, as it is in its memory.

use mvm_guest::protocol::Exit;
use serde::{Deserialize, Serialize};

/// A program, and how far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub(super) argv: Vec<String>,
    pub(super) cwd: String,
    /// How many of its commands are done.
    pub(super) done: usize,
    pub(super) status: i32,
    /// When the sleep ends that it is in, in ms of uptime.
    pub(super) until_ms: Option<u64>,
    /// All that it has printed, and whether to standard error.
    pub(super) printed: Vec<(bool, String)>,
    pub(super) exit: Option<Exit>,
}
