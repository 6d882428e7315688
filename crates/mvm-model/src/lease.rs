//! The right to use one instance for a while.

use crate::Millis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a lease is for; decides what happens when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A job: the instance is recycled by the pool's rule when the lease ends.
    Run,
    /// The agent boots it to become the pool's template.
    Template,
    /// A person or controller took it by `start`, `wake`, `ssh` or `exec`.
    Manual,
    /// Connections to a port that a front of the agent listens on: put to sleep when it ends.
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

/// A lease as the instance's record holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    /// `l-` and eight hexadecimal digits.
    pub id: String,
    /// Who holds it: `uid:0`, or a client's name.
    pub holder: String,
    /// What it is for.
    pub purpose: Purpose,
    /// When it was taken.
    pub since: Millis,
    /// When it ends unless extended.
    pub expires_at: Millis,
}

/// How long a lease lasts that was taken without saying: one hour, in seconds.
pub const DEFAULT_LEASE_S: u64 = 3600;

impl Lease {
    /// Whether its deadline has passed at `now`.
    pub fn expired(&self, now: Millis) -> bool {
        now >= self.expires_at
    }
}
