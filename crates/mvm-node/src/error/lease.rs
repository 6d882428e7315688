//! The errors of leases and claims.

use mvm_model::{Code, LeaseId};
use std::borrow::Cow;

/// Why a lease or a claim did not come about, or did not end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The text cannot be the id of a claim.
    #[error("{shown:?} is not a valid claim id")]
    InvalidId {
        /// The beginning of the text.
        shown: String,
    },
    /// No lease may last that long.
    #[error("a lease of {seconds} s")]
    Length {
        /// The length that was asked for, in seconds.
        seconds: u64,
        /// The greatest length, in seconds.
        most: u64,
    },
    /// The lease ended while its instance was brought up.
    #[error("the lease {id} has ended")]
    Ended {
        /// The lease.
        id: LeaseId,
    },
    /// The lease's instance could not be recycled.
    #[error("the lease {id} could not be ended")]
    NotEnded {
        /// The lease.
        id: LeaseId,
    },
}

impl LeaseError {
    /// Returns the stable code of the error.
    pub fn code(&self) -> Code {
        match self {
            Self::InvalidId { .. } | Self::Length { .. } => Code::InvalidValue,
            Self::Ended { .. } => Code::LeaseEnded,
            Self::NotEnded { .. } => Code::InUse,
        }
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::InvalidId { .. } => "it is l- and 16 hexadecimal digits".into(),
            Self::Length { most, .. } => format!("allowed are 1 to {most} s").into(),
            Self::Ended { .. } => "".into(),
            Self::NotEnded { .. } => "the agent's log says why; it is tried again".into(),
        }
    }
}
