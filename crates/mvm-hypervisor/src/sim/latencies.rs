//! How long each call takes.

use std::time::Duration;

/// How long each call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latencies {
    /// Time of `boot`, until the guest runs.
    pub boot: Duration,
    /// Time of `restore`.
    pub restore: Duration,
    /// Time of `adopt`.
    pub adopt: Duration,
    /// Time of each `pause` and `resume`.
    pub pause: Duration,
    /// Time of `snapshot`.
    pub snapshot: Duration,
    /// Time of `kill`.
    pub kill: Duration,
}

impl Default for Latencies {
    /// Returns what the QEMU driver takes on a small host with the software CPU.
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            boot: ms(350),
            restore: ms(80),
            adopt: ms(2),
            pause: ms(1),
            snapshot: ms(20),
            kill: ms(6),
        }
    }
}

impl Latencies {
    /// No latency at all.
    pub const NONE: Self = Self {
        boot: Duration::ZERO,
        restore: Duration::ZERO,
        adopt: Duration::ZERO,
        pause: Duration::ZERO,
        snapshot: Duration::ZERO,
        kill: Duration::ZERO,
    };
}
