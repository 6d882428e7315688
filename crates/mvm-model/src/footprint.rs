//! What a machine's process takes of the host's memory, by what it is for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::{AddAssign, Div};

/// The memory of a machine's process, in KiB. What is its own goes when it ends; what it shares
/// stays for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Footprint {
    /// Its own pages of the guest's memory: what the guest has changed since it was cloned.
    pub guest_kib: u64,
    /// Code that was translated for the guest; 0 under KVM.
    pub translation_kib: u64,
    /// The heap of the process.
    pub heap_kib: u64,
    /// All other anonymous memory of its own: stacks, arenas and buffers.
    pub anonymous_kib: u64,
    /// Its own pages of the program and its libraries: relocated and changed data.
    pub program_kib: u64,
    /// What stays when it ends, counted in full: its template's pages, and what others use too.
    pub shared_kib: u64,
    /// How much of all this is in huge pages.
    pub huge_kib: u64,
}

impl Footprint {
    /// Returns the memory of its own, in KiB.
    pub fn own_kib(&self) -> u64 {
        self.guest_kib
            + self.translation_kib
            + self.heap_kib
            + self.anonymous_kib
            + self.program_kib
    }

    fn with(self, other: Footprint, join: impl Fn(u64, u64) -> u64) -> Footprint {
        Footprint {
            guest_kib: join(self.guest_kib, other.guest_kib),
            translation_kib: join(self.translation_kib, other.translation_kib),
            heap_kib: join(self.heap_kib, other.heap_kib),
            anonymous_kib: join(self.anonymous_kib, other.anonymous_kib),
            program_kib: join(self.program_kib, other.program_kib),
            shared_kib: join(self.shared_kib, other.shared_kib),
            huge_kib: join(self.huge_kib, other.huge_kib),
        }
    }
}

impl AddAssign for Footprint {
    fn add_assign(&mut self, other: Footprint) {
        *self = self.with(other, |mine, others| mine + others);
    }
}

impl Div<u64> for Footprint {
    type Output = Footprint;

    fn div(self, by: u64) -> Footprint {
        self.with(self, |mine, _| mine / by)
    }
}
