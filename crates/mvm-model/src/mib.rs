//! Sizes of memory and disks.

use crate::text::plain_schema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

/// A size in MiB, written as a plain number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Mib(pub u64);

plain_schema!(Mib as u64);

impl Mib {
    /// Returns as many GiB, at most the largest size.
    pub const fn from_gib(gib: u64) -> Mib {
        Mib(gib.saturating_mul(1024))
    }

    /// Returns the whole MiB of a number of bytes.
    pub const fn from_bytes(bytes: u64) -> Mib {
        Mib(bytes >> 20)
    }

    /// Returns the MiB that a number of bytes needs.
    pub const fn from_bytes_rounded_up(bytes: u64) -> Mib {
        Mib(bytes.div_ceil(1 << 20))
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 << 20
    }

    /// Returns the size in KiB.
    pub const fn kib(self) -> u64 {
        self.0 << 10
    }

    /// Returns the whole GiB of the size.
    pub const fn gib(self) -> u64 {
        self.0 / 1024
    }

    /// Returns the GiB that the size needs.
    pub const fn gib_rounded_up(self) -> u64 {
        self.0.div_ceil(1024)
    }

    /// Returns the sum, at most the largest size.
    pub const fn saturating_add(self, other: Mib) -> Mib {
        Mib(self.0.saturating_add(other.0))
    }

    /// Returns the difference, at least nothing.
    pub const fn saturating_sub(self, other: Mib) -> Mib {
        Mib(self.0.saturating_sub(other.0))
    }

    /// Returns the size `times` times, at most the largest size.
    pub const fn saturating_mul(self, times: u64) -> Mib {
        Mib(self.0.saturating_mul(times))
    }
}

impl Add for Mib {
    type Output = Mib;

    fn add(self, other: Mib) -> Mib {
        Mib(self.0 + other.0)
    }
}

impl AddAssign for Mib {
    fn add_assign(&mut self, other: Mib) {
        *self = *self + other;
    }
}

impl Sum for Mib {
    fn sum<I: Iterator<Item = Mib>>(sizes: I) -> Mib {
        sizes.fold(Mib(0), Mib::add)
    }
}

impl Mul<Mib> for u64 {
    type Output = Mib;

    fn mul(self, size: Mib) -> Mib {
        Mib(self * size.0)
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}
