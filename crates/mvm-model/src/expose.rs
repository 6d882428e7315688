//! Pools behind a TCP port: an instance is woken when a connection comes, and sleeps once nobody is
//! connected.
//!
//! The rule: a connection goes to the instance with the most connections that still has a free one,
//! so that the others empty. If none has, the connection waits; one instance is woken for as many
//! waiting connections as it can serve, so that a burst wakes no more than needed. An instance
//! without connections for a while is put to sleep, whatever the pool's recycle rule.

use crate::choose::choose;
use crate::error::Fault;
use crate::id::InstanceId;
use crate::instance::Instance;
use crate::name::PoolRef;
use crate::pool::{Pool, Recycle};
use crate::timestamp::Timestamp;
use mvm_code::Code;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// The most connections that one instance can serve at once: its guest channel carries 128 streams,
/// and other sessions need some.
pub const MAX_CONNECTIONS: u32 = 100;
/// The most connections of one front that may wait for an instance.
pub const MAX_WAITING: u32 = 256;
/// The longest times that can be chosen, in seconds.
const MAX_SECONDS: u64 = 24 * 3600;
/// Pause between a failed wake and the next try.
const RETRY: Duration = Duration::from_secs(1);

/// The limits of a front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The most connections that one instance serves at the same time, 1 to 100.
    pub max_connections: u32,
    /// The most instances that serve at the same time; 0 for as many as the quotas allow.
    pub max_instances: u32,
    /// Seconds without a connection after which an instance is put to sleep.
    pub idle_s: u64,
    /// How long a connection waits for an instance at most, in seconds.
    pub wake_timeout_s: u64,
}

impl Default for Limits {
    /// Allows 32 connections per instance, which sleeps after a minute without one and has a minute
    /// to wake.
    fn default() -> Self {
        Limits { max_connections: 32, max_instances: 0, idle_s: 60, wake_timeout_s: 60 }
    }
}

impl Limits {
    /// Checks every field's range; the fault's path is the field's name.
    pub fn validate(&self) -> Result<(), Fault> {
        let range = |field: &str, value: u64, max: u64| {
            if (1..=max).contains(&value) {
                return Ok(());
            }
            Err(Fault::new(Code::InvalidValue, format!("{field} is {value}"))
                .at(field)
                .hint(format!("allowed are 1 to {max}")))
        };
        range("max_connections", self.max_connections.into(), MAX_CONNECTIONS.into())?;
        range("idle_s", self.idle_s, MAX_SECONDS)?;
        range("wake_timeout_s", self.wake_timeout_s, MAX_SECONDS)
    }
}

/// The durable record of a front.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expose {
    /// Where it listens: no two have the same.
    pub listen: SocketAddr,
    /// Whose instances serve.
    pub pool: PoolRef,
    /// The TCP port of the guest's loopback.
    pub to: u16,
    /// What was chosen.
    pub limits: Limits,
    /// The instances that have served it. Used, they are nobody else's in a pool that recycles by
    /// `reset`: they are kept for the next connection.
    #[serde(default)]
    pub instances: BTreeSet<InstanceId>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Expose {
    /// Returns the front's name as the holder of leases.
    pub fn holder(&self) -> String {
        format!("expose:{}", self.listen)
    }

    /// Returns the instance to wake: one that has served before and still has its memory, otherwise
    /// the readiest that a job would get; `None` means that a new one must be made.
    pub fn choose<'a>(
        &self,
        pool: &Pool,
        instances: impl IntoIterator<Item = &'a Instance>,
    ) -> Option<&'a Instance> {
        let revision = Some(pool.current_revision()?.digest);
        let (own, others): (Vec<_>, Vec<_>) =
            instances.into_iter().partition(|instance| self.instances.contains(&instance.id));
        choose(Recycle::Sleep, revision, own).or_else(|| choose(pool.recycle, revision, others))
    }

    /// Returns the front's own instances that are of no use any more: those of an old revision that
    /// the planner leaves alone, as it does with used ones if the pool recycles by `reset`.
    pub fn outdated<'a>(
        &self,
        pool: &Pool,
        instances: impl IntoIterator<Item = &'a Instance>,
    ) -> Vec<InstanceId> {
        let Some(revision) = pool.current_revision() else { return Vec::new() };
        instances
            .into_iter()
            .filter(|instance| pool.recycle == Recycle::Reset && !instance.is_clean())
            .filter(|instance| self.instances.contains(&instance.id))
            .filter(|instance| instance.lease.is_none() && !instance.is_busy())
            .filter(|instance| instance.revision != revision.digest)
            .map(|instance| instance.id)
            .collect()
    }
}

/// One instance that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Server {
    connections: u32,
    /// Since when nobody is connected.
    idle_since: Timestamp,
}

/// What is going on at a front: who serves how many, and who waits.
#[derive(Clone, Debug, Default)]
pub struct Front {
    servers: BTreeMap<InstanceId, Server>,
    /// Being put to sleep.
    ending: BTreeSet<InstanceId>,
    waking: u32,
    waiting: u32,
    retry_at: Timestamp,
}

impl Front {
    /// Admits a new connection; returns whether it may wait for an instance.
    pub fn arrive(&mut self) -> bool {
        let admitted = self.waiting < MAX_WAITING;
        self.waiting += u32::from(admitted);
        admitted
    }

    /// Removes a waiting connection that has given up.
    pub fn leave(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Assigns one of the waiting connections to an instance and returns it; `None` if all are
    /// full.
    pub fn assign(&mut self, limits: &Limits) -> Option<InstanceId> {
        let has_room = |server: &Server| server.connections < limits.max_connections;
        let fullest = self
            .servers
            .iter_mut()
            .filter(|(_, server)| self.waiting > 0 && has_room(server))
            .max_by_key(|(id, server)| (server.connections, std::cmp::Reverse(**id)));
        let (id, server) = fullest?;
        server.connections += 1;
        self.waiting -= 1;
        Some(*id)
    }

    /// Returns whether one more instance should be woken now; if so, it counts as being woken until
    /// [`Front::woken`] or [`Front::failed`]. An instance that is just being put to sleep is waited
    /// for, since it is the one to wake.
    pub fn wake(&mut self, limits: &Limits, now: Timestamp) -> bool {
        let expected = u64::from(self.waking) * u64::from(limits.max_connections);
        let room: u64 = self
            .servers
            .values()
            .map(|server| u64::from(limits.max_connections.saturating_sub(server.connections)))
            .sum();
        let up = self.servers.len() + self.waking as usize;
        let allowed = limits.max_instances == 0 || up < limits.max_instances as usize;
        let needed = u64::from(self.waiting) > expected + room;
        let wake = needed && allowed && self.ending.is_empty() && now >= self.retry_at;
        self.waking += u32::from(wake);
        wake
    }

    /// Lets an instance serve that was woken.
    pub fn woken(&mut self, id: InstanceId, now: Timestamp) {
        self.waking = self.waking.saturating_sub(1);
        self.retry_at = Timestamp::EPOCH;
        self.adopt(id, now);
    }

    /// Lets an instance serve that an earlier front has woken.
    pub fn adopt(&mut self, id: InstanceId, now: Timestamp) {
        self.servers.entry(id).or_insert(Server { connections: 0, idle_since: now });
    }

    /// Records that no instance could be woken. Returns whether waiting connections may go on
    /// waiting, because another instance serves or is being woken.
    pub fn failed(&mut self, now: Timestamp) -> bool {
        self.waking = self.waking.saturating_sub(1);
        self.retry_at = now + RETRY;
        self.waking > 0 || !self.servers.is_empty()
    }

    /// Returns when the next wake may be tried after a failed one; the Unix epoch means at once.
    pub fn retry_at(&self) -> Timestamp {
        self.retry_at
    }

    /// Ends a connection to that instance.
    pub fn close(&mut self, id: InstanceId, now: Timestamp) {
        if let Some(server) = self.servers.get_mut(&id) {
            server.connections = server.connections.saturating_sub(1);
            server.idle_since = now;
        }
    }

    /// Removes an instance that no longer serves: it is gone, or somebody else's. Its connections
    /// are closed by their owners.
    pub fn lose(&mut self, id: InstanceId) {
        self.servers.remove(&id);
        self.ending.remove(&id);
    }

    /// Returns the instances without connections for long enough. They get no more connections, and
    /// count as ending until [`Front::ended`].
    pub fn end(&mut self, limits: &Limits, now: Timestamp) -> Vec<InstanceId> {
        let idle = |server: &Server| {
            server.connections == 0 && now >= server.idle_since + Duration::from_secs(limits.idle_s)
        };
        let over: Vec<InstanceId> =
            self.servers.iter().filter(|(_, s)| idle(s)).map(|(id, _)| *id).collect();
        for id in &over {
            self.servers.remove(id);
            self.ending.insert(*id);
        }
        over
    }

    /// Records that an instance has been put to sleep.
    pub fn ended(&mut self, id: InstanceId) {
        self.ending.remove(&id);
    }

    /// Returns the instances that serve, and their connections.
    pub fn servers(&self) -> impl Iterator<Item = (InstanceId, u32)> {
        self.servers.iter().map(|(id, server)| (*id, server.connections))
    }

    /// Returns whether nothing is being woken or put to sleep.
    pub fn is_settled(&self) -> bool {
        self.waking == 0 && self.ending.is_empty()
    }

    /// Returns the number of connections that wait for an instance.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Returns the number of instances that are being woken.
    pub fn waking(&self) -> u32 {
        self.waking
    }
}
