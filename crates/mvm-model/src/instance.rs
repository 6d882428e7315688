//! The record of an instance: one microVM.

use crate::accelerator::Processor;
use crate::cache::{self, CacheDisk};
use crate::cpu_model::CpuModel;
use crate::digest::Digest;
use crate::halt::Paused;
use crate::id::InstanceId;
use crate::lease::Lease;
use crate::mac::Mac;
use crate::mib::Mib;
use crate::name::{InstanceRef, PoolRef};
use crate::resources::Resources;
use crate::state::{Intent, State};
use crate::timestamp::Timestamp;
use crate::way_up::WayUp;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// The durable record of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The instance's id, unique on the node.
    pub id: InstanceId,
    /// The pool that it belongs to.
    pub pool: PoolRef,
    /// The last state that it is known to have reached.
    pub state: State,
    /// The transition under way, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
    /// The temperature to which the reconciler is bringing it, perhaps in several transitions;
    /// absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<State>,
    /// Why it is `failed`, in words that people can act on, or why its guest ended by itself;
    /// absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why its hypervisor has paused it by itself although it should run; absent if it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// The template that it is a clone of, while its memory is mapped from there; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether it sleeps without ever having run: it wakes from the template.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dormant: bool,
    /// How it came to run the last time; absent if it never has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_up: Option<WayUp>,
    /// The processor that its machine was started with, while it has memory; absent if it has none,
    /// or if an earlier version started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<Processor>,
    /// Digest of the image revision that it boots from.
    pub revision: Digest,
    /// Its shape, copied from the pool when it was made.
    pub resources: Resources,
    /// The CPU model that it is booted with, copied from the pool when it was made.
    #[serde(default, skip_serializing_if = "CpuModel::is_host")]
    pub cpu_model: CpuModel,
    /// Its copies of the pool's caches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<CacheDisk>,
    /// Its address in the tenant's subnet.
    pub address: Ipv4Addr,
    /// The MAC address of its network interface.
    pub mac: Mac,
    /// When the instance was made.
    pub created_at: Timestamp,
    /// When it reached its state.
    pub state_since: Timestamp,
    /// The lease on it; absent if nobody uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// How many leases it has served: 0 means that nobody has ever used it.
    #[serde(default)]
    pub leases_served: u32,
}

impl Instance {
    /// Returns the instance's full reference.
    pub fn reference(&self) -> InstanceRef {
        InstanceRef { pool: self.pool.clone(), id: self.id }
    }

    /// Returns the state that it is in or on its way to: what quotas and plans count.
    pub fn heading(&self) -> State {
        self.intent.map_or(self.state, |intent| intent.to)
    }

    /// Returns the state that the reconciler counts: where the instance will be when everything
    /// under way is done.
    pub fn counts_as(&self) -> State {
        self.goal.unwrap_or_else(|| self.heading())
    }

    /// Returns whether something is under way with the instance, so that nothing else may begin.
    pub fn is_busy(&self) -> bool {
        self.intent.is_some() || self.goal.is_some()
    }

    /// Returns whether the instance has nothing of its own yet, neither memory nor disks.
    pub fn is_blank(&self) -> bool {
        self.state == State::Created || self.dormant
    }

    /// Records that the instance has reached `state`, and clears what was only needed on the way.
    pub fn reach(&mut self, state: State, now: Timestamp) {
        self.state = state;
        self.state_since = now;
        self.intent = None;
        self.reason = None;
        self.paused = None;
        match state {
            State::Running | State::Warm => self.dormant = false,
            // From now on its memory is in a file of its own.
            State::Sleeping if !self.dormant => self.template = None,
            // It has no memory: the machine that it becomes is a clone of whatever template there is.
            State::Sleeping => self.processor = None,
            _ => (self.dormant, self.template, self.processor) = (false, None, None),
        }
    }

    /// Returns what the instance may come to use on disk at most, in MiB.
    pub fn disk_mib(&self) -> Mib {
        self.resources.disk_mib() + cache::disk_mib(&self.caches)
    }

    /// Returns whether nobody has ever held the instance.
    pub fn is_clean(&self) -> bool {
        self.leases_served == 0 && self.lease.is_none()
    }

    /// Returns whether the reconciler is bringing it somewhere, and it is a clone that nobody has ever used: its
    /// memory is worth no snapshot, because the template is the same.
    pub fn is_untouched_clone(&self) -> bool {
        self.goal.is_some() && self.template.is_some() && self.is_clean()
    }
}
