//! Leases: the right to use one instance for a while.
//!
//! A person's lease has a deadline. A job's lives as long as its holder: what uses the machine (a
//! job, an open session, the connection of a claim) shows itself every [`RENEW`], and a lease
//! whose holder has not been seen for [`HOLD`] is over.

use crate::id::LeaseId;
use crate::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// How long a lease outlives the last sign of its holder. A change of leaders, or the
/// replacement of an agent, takes less.
pub const HOLD: Duration = Duration::from_secs(30);
/// How often a holder on another machine shows itself.
pub const RENEW: Duration = Duration::from_secs(10);

/// The purpose of a lease. It decides what happens when the lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A job. The lease ends with its holder, and the instance is recycled by the pool's rule.
    Run,
    /// The agent boots the instance to become the pool's template.
    Template,
    /// A person or controller took the instance by `start`, `wake`, `ssh` or `exec`.
    Manual,
    /// Connections to a port that a front of the agent listens on. The instance is put to sleep
    /// when the lease ends.
    Expose,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Purpose::Run => "run",
            Purpose::Template => "template",
            Purpose::Manual => "manual",
            Purpose::Expose => "expose",
        })
    }
}

/// A lease, as the instance's record has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    /// The lease's id: `l-` and eight hexadecimal digits, or sixteen if the claim is a fleet's.
    pub id: LeaseId,
    /// The holder: `uid:0`, or a client's name.
    pub holder: String,
    /// The lease's purpose.
    pub purpose: Purpose,
    /// When the lease was taken; ms since the Unix epoch.
    pub since: Timestamp,
    /// When the lease ends, unless it is extended or, for a job's, renewed by its holder; ms since
    /// the Unix epoch.
    pub expires_at: Timestamp,
    /// When a job's lease ends at the latest, whoever holds it; absent where it ends only with its
    /// holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_until: Option<Timestamp>,
}

/// The length of a lease that was taken without naming one, in seconds: one hour.
pub const DEFAULT_LEASE_S: u64 = 3600;

impl Purpose {
    /// Returns whether a lease for this purpose lives as long as its holder, instead of until a
    /// deadline.
    pub fn lives_with_holder(self) -> bool {
        self == Purpose::Run
    }
}

impl Lease {
    /// Returns when the lease ends, if its holder was last seen at `seen` and shows itself no more.
    pub fn ends_at(&self, seen: Timestamp) -> Timestamp {
        if !self.purpose.lives_with_holder() {
            return self.expires_at;
        }
        let held_until = seen.max(self.since) + HOLD;
        held_until.min(self.longest_until.unwrap_or(Timestamp::MAX))
    }

    /// Returns whether the lease's deadline has passed at `now`.
    pub fn expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }
}

/// When the holders of leases were seen last, by the leases' ids. In memory only: a server that
/// starts counts all holders as seen at that moment, so that its restart costs none of them its
/// lease.
#[derive(Clone, Debug)]
pub struct Holders {
    started: Timestamp,
    signs: HashMap<LeaseId, Sign>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sign {
    /// How many hold the lease here and now.
    open: usize,
    seen: Timestamp,
}

impl Holders {
    /// Returns what a server knows that has started at `now`: no holders.
    pub fn begin(now: Timestamp) -> Holders {
        Holders { started: now, signs: HashMap::new() }
    }

    /// Notes that somebody holds the lease from now on, until [`Holders::let_go`].
    pub fn hold(&mut self, lease: LeaseId) {
        self.signs.entry(lease).or_default().open += 1;
    }

    /// Notes that one of the lease's holders has let it go.
    pub fn let_go(&mut self, lease: LeaseId, now: Timestamp) {
        if let Some(sign) = self.signs.get_mut(&lease) {
            *sign = Sign { open: sign.open.saturating_sub(1), seen: now };
        }
    }

    /// Notes that the holder of the lease has shown itself.
    pub fn renew(&mut self, lease: LeaseId, now: Timestamp) {
        let sign = self.signs.entry(lease).or_default();
        sign.seen = sign.seen.max(now);
    }

    /// Returns whether somebody holds the lease here and now.
    pub fn is_held(&self, lease: LeaseId) -> bool {
        self.signs.get(&lease).is_some_and(|sign| sign.open > 0)
    }

    /// Returns when a holder of the lease was seen last; `now` while one holds it here.
    pub fn seen(&self, lease: LeaseId, now: Timestamp) -> Timestamp {
        match self.signs.get(&lease) {
            Some(sign) if sign.open > 0 => now,
            Some(sign) => sign.seen.max(self.started),
            None => self.started,
        }
    }

    /// Forgets the leases that are gone and that nobody holds.
    pub fn retain(&mut self, is_there: impl Fn(LeaseId) -> bool) {
        self.signs.retain(|lease, sign| sign.open > 0 || is_there(*lease));
    }
}
