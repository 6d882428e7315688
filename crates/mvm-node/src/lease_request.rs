//! What whoever wants a lease asks for.

use crate::random::hex_digits;
use crate::{Result, now};
use mvm_api::Problem;
use mvm_model::lease::{DEFAULT_LEASE_S, Purpose};
use mvm_model::{Code, Lease};

/// The longest lease, in seconds: a week.
const MAX_LEASE_S: u64 = 7 * 24 * 3600;

/// Who wants a lease, what for, and for how long.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// `uid:N`, or the holder of a certificate: `operator:alice`.
    pub holder: String,
    /// What for.
    pub purpose: Purpose,
    /// In seconds: how long, or, of a job's, how long at most. Where absent it lasts for the default
    /// time, and a job's for as long as its holder.
    pub lease_s: Option<u64>,
}

impl LeaseRequest {
    pub(crate) fn lease(&self) -> Result<Lease> {
        let seconds = self.lease_s.unwrap_or(DEFAULT_LEASE_S);
        checked(seconds)?;
        let (since, purpose) = (now(), self.purpose);
        let held = purpose.lives_with_holder();
        let lease = Lease {
            id: format!("l-{}", hex_digits(8)?),
            holder: self.holder.clone(),
            purpose,
            since,
            expires_at: since + seconds * 1000,
            longest_until: self.lease_s.filter(|_| held).map(|seconds| since + seconds * 1000),
        };
        Ok(Lease { expires_at: lease.ends_at(since), ..lease })
    }
}

/// Refuses a length that no lease may have.
pub(crate) fn checked(seconds: u64) -> Result<()> {
    if (1..=MAX_LEASE_S).contains(&seconds) {
        return Ok(());
    }
    Err(Problem::new(Code::InvalidValue, format!("a lease of {seconds} s"))
        .hint(format!("allowed are 1 to {MAX_LEASE_S} s")))
}
