//! Requests for a lease.

use crate::Result;
use crate::error::LeaseError;
use crate::random::random_bytes;
use mvm_model::lease::{DEFAULT_LEASE_S, Purpose};
use mvm_model::{Lease, LeaseId, Timestamp};
use std::time::Duration;

/// The longest lease, in seconds: one week.
const MAX_LEASE_S: u64 = 7 * 24 * 3600;

/// The holder, purpose and length of a wanted lease.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// `uid:N`, or the holder of a certificate: `operator:alice`.
    pub holder: String,
    /// The purpose of the lease.
    pub purpose: Purpose,
    /// The length of the lease in seconds; of a job's lease, its maximum length. Where absent, a
    /// lease has the default length, and a job's lease lasts as long as its holder.
    pub lease_s: Option<u64>,
}

impl LeaseRequest {
    /// Returns a new lease from `since` on.
    pub(crate) fn lease(&self, since: Timestamp) -> Result<Lease> {
        let seconds = self.lease_s.unwrap_or(DEFAULT_LEASE_S);
        checked(seconds)?;
        let purpose = self.purpose;
        let held = purpose.lives_with_holder();
        let after = |seconds| since + Duration::from_secs(seconds);
        let lease = Lease {
            id: LeaseId::from_number(u32::from_be_bytes(random_bytes()?)),
            holder: self.holder.clone(),
            purpose,
            since,
            expires_at: after(seconds),
            longest_until: self.lease_s.filter(|_| held).map(after),
        };
        Ok(Lease { expires_at: lease.ends_at(since), ..lease })
    }
}

/// Returns an error if the length is out of range.
pub(crate) fn checked(seconds: u64) -> Result<()> {
    if (1..=MAX_LEASE_S).contains(&seconds) {
        return Ok(());
    }
    Err(LeaseError::Length { seconds, most: MAX_LEASE_S }.into())
}
