//! One microVM.

use crate::Millis;
use crate::cache::{self, CacheDisk};
use crate::halt::Paused;
use crate::id::InstanceId;
use crate::lease::Lease;
use crate::name::{InstanceRef, PoolRef};
use crate::resources::Resources;
use crate::state::{Intent, State};
use crate::way_up::WayUp;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// The durable record of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The pool it belongs to.
    pub pool: PoolRef,
    /// The last state it was known to reach.
    pub state: State,
    /// A transition under way, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
    /// The temperature the reconciler is bringing it to, perhaps in several transitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<State>,
    /// Why it is `failed`, in words a person can act on; or why its guest ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It should run, and its hypervisor has paused it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// The template that it is a clone of, while its memory is mapped from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Asleep without ever having run: what it wakes from is the template.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dormant: bool,
    /// How it came to run the last time; absent where it never has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_up: Option<WayUp>,
    /// Digest of the image revision that it boots from.
    pub revision: String,
    /// Its shape, copied from the pool when it was made.
    pub resources: Resources,
    /// Its copies of the pool's caches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<CacheDisk>,
    /// Its address in the tenant's subnet.
    pub address: Ipv4Addr,
    /// The MAC address of its network interface.
    pub mac: String,
    /// When it was made.
    pub created_at: Millis,
    /// When it reached its state.
    pub state_since: Millis,
    /// The lease on it, if somebody uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// How many leases it has served: 0 is an instance that nobody has ever used.
    #[serde(default)]
    pub leases_served: u32,
}

impl Instance {
    /// Its full reference.
    pub fn reference(&self) -> InstanceRef {
        InstanceRef { pool: self.pool.clone(), id: self.id }
    }

    /// The state that it is in or on its way to: what quotas and plans count.
    pub fn heading(&self) -> State {
        self.intent.map_or(self.state, |intent| intent.to)
    }

    /// What the reconciler counts it as: where it will be when all that is under way is done.
    pub fn counts_as(&self) -> State {
        self.goal.unwrap_or_else(|| self.heading())
    }

    /// Whether something is under way with it, so that nothing else may be begun.
    pub fn is_busy(&self) -> bool {
        self.intent.is_some() || self.goal.is_some()
    }

    /// Whether it has nothing of its own yet, neither memory nor disks.
    pub fn is_blank(&self) -> bool {
        self.state == State::Created || self.dormant
    }

    /// It has come to be in `state`, and what it had to know on the way there is forgotten.
    pub fn reach(&mut self, state: State, now: Millis) {
        self.state = state;
        self.state_since = now;
        self.intent = None;
        self.reason = None;
        self.paused = None;
        match state {
            State::Running | State::Warm => self.dormant = false,
            // Its memory is its own from now on.
            State::Sleeping if !self.dormant => self.template = None,
            State::Sleeping => {}
            _ => (self.dormant, self.template) = (false, None),
        }
    }

    /// What it may come to use on disk at most, in MiB.
    pub fn disk_mib(&self) -> u64 {
        self.resources.disk_mib() + cache::disk_mib(&self.caches)
    }

    /// Whether nobody has ever held it.
    pub fn is_clean(&self) -> bool {
        self.leases_served == 0 && self.lease.is_none()
    }

    /// Returns whether the reconciler is bringing it somewhere, and it is a clone that nobody has ever used: its
    /// memory is worth no snapshot, because the template is the same.
    pub fn is_untouched_clone(&self) -> bool {
        self.goal.is_some() && self.template.is_some() && self.is_clean()
    }
}
