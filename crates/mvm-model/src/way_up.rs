//! How a machine came to run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How an instance started to run the last time: from nothing, from a template, or from sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WayUp {
    /// It booted from its kernel: there was no template, or it has disks of its own.
    Booted,
    /// It was made as a clone of the pool's template.
    Cloned,
    /// It was warm: only its vCPUs were paused.
    Warm,
    /// It was asleep, and its hypervisor's process was still there.
    Lingering,
    /// It was restored from its snapshot on disk.
    Disk,
}

impl fmt::Display for WayUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WayUp::Booted => "booted",
            WayUp::Cloned => "cloned",
            WayUp::Warm => "woken from warm",
            WayUp::Lingering => "woken from its process",
            WayUp::Disk => "woken from disk",
        })
    }
}
