//! Nodes while they are being filled: what is on them, and what still fits.

use super::node::{Duty, FleetNode};
use super::{FleetPool, FleetState};
use crate::mib::Mib;
use crate::name::Name;
use crate::resources::Resources;
use crate::state::Temperature;
use crate::timestamp::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The reason why a node does not get an instance.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum UnfitReason {
    /// The node is out of reach.
    Lost,
    /// The node is being drained.
    Draining,
    /// The node is cordoned.
    Cordoned,
    /// The node lacks a label that the pool requires.
    Labels,
    /// The node lacks the label that the pool is spread over.
    SpreadLabel,
    /// The node's label value would exceed the others by more than the spread allows.
    Skew,
    /// The node has no vCPUs left.
    Vcpus,
    /// The node has no memory left.
    Memory,
    /// The node has no disk space left.
    Disk,
    /// The node has as many instances as the pool wants on one node.
    PerNode,
    /// The tenant's subnet on the node has no address left.
    Subnet,
    /// The tenant's disk quota is used up. Each node's part of it is in whole GiB.
    DiskQuota,
}

impl fmt::Display for UnfitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnfitReason::Lost => "out of reach",
            UnfitReason::Draining => "draining",
            UnfitReason::Cordoned => "cordoned",
            UnfitReason::Labels => "without a required label",
            UnfitReason::SpreadLabel => "without the label of the spread",
            UnfitReason::Skew => "at the limit of the spread",
            UnfitReason::Vcpus => "without free vCPUs",
            UnfitReason::Memory => "without free memory",
            UnfitReason::Disk => "without free disk",
            UnfitReason::PerNode => "at max_per_node",
            UnfitReason::Subnet => "without a free address",
            UnfitReason::DiskQuota => "at the tenant's disk quota",
        })
    }
}

/// What instances take of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub vcpus: u64,
    pub mem_mib: Mib,
    pub disk_mib: Mib,
}

impl Load {
    /// Returns what one instance takes: vCPUs and memory only if it has a process.
    fn of(shape: &Resources, temperature: Temperature) -> Load {
        let hot = u64::from(temperature != Temperature::Sleeping);
        Load {
            vcpus: hot * u64::from(shape.vcpus),
            mem_mib: hot * shape.mem_mib,
            disk_mib: shape.disk_mib(),
        }
    }

    fn add(&mut self, other: Load, times: u64) {
        self.vcpus = self.vcpus.saturating_add(other.vcpus.saturating_mul(times));
        self.mem_mib = self.mem_mib.saturating_add(other.mem_mib.saturating_mul(times));
        self.disk_mib = self.disk_mib.saturating_add(other.disk_mib.saturating_mul(times));
    }

    fn remove(&mut self, other: Load, times: u64) {
        self.vcpus = self.vcpus.saturating_sub(other.vcpus.saturating_mul(times));
        self.mem_mib = self.mem_mib.saturating_sub(other.mem_mib.saturating_mul(times));
        self.disk_mib = self.disk_mib.saturating_sub(other.disk_mib.saturating_mul(times));
    }
}

/// What a tenant has on a node.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    instances: u64,
    disk_mib: Mib,
}

/// A node while it is being filled.
pub(super) struct Site<'a> {
    pub name: &'a Name,
    pub node: &'a FleetNode,
    /// Whether what it has stays there.
    pub keeps: bool,
    /// Why it gets nothing new, if so.
    pub closed: Option<UnfitReason>,
    capacity: Load,
    placed: Load,
    leased: Load,
    tenants: BTreeMap<usize, Held>,
}

/// A pool while it is being placed.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    /// The index of its tenant in the document.
    pub tenant: usize,
    pub pool: &'a FleetPool,
}

/// All nodes.
pub(super) struct Board<'a> {
    pub sites: Vec<Site<'a>>,
    /// What is left of each tenant's disk quota, in GiB.
    disk_left: Vec<u64>,
    /// How many addresses each tenant's subnet has.
    addresses: Vec<u64>,
}

impl<'a> Board<'a> {
    pub fn new(
        document: &FleetState,
        nodes: &'a BTreeMap<Name, FleetNode>,
        now: Timestamp,
    ) -> Board<'a> {
        let grace = Duration::from_secs(document.node_grace_s);
        let sites = nodes.iter().map(|(name, node)| Site::new(document, name, node, grace, now));
        let tenants = document.tenants.iter();
        Board {
            sites: sites.collect(),
            disk_left: tenants.clone().map(|tenant| tenant.quotas.max_disk_gib).collect(),
            addresses: tenants.map(|tenant| u64::from(tenant.network.capacity())).collect(),
        }
    }

    /// Returns how many more instances fit; if none, why. What stays where it is may use the
    /// headroom and the space of leases: nothing moves because some instances are in use.
    pub fn room(
        &self,
        at: usize,
        item: Item<'_>,
        temperature: Temperature,
        stays: bool,
    ) -> Result<u32, UnfitReason> {
        let site = &self.sites[at];
        let percent =
            if stays { 100 } else { 100 - u64::from(item.pool.placement.headroom_percent) };
        let unit = Load::of(&item.pool.footprint(), temperature);
        let left = |capacity: u64, placed: u64, leased: u64| {
            let usable = (capacity.saturating_mul(percent) / 100).saturating_sub(placed);
            if stays { usable } else { usable.saturating_sub(leased) }
        };
        let fits = |left: u64, unit: u64| left.checked_div(unit).unwrap_or(u64::MAX);
        let held = site.tenants.get(&item.tenant).copied().unwrap_or_default();
        let quota = Mib::from_gib(held.disk_mib.gib_rounded_up() + self.disk_left[item.tenant]);
        let (capacity, placed, leased) = (site.capacity, site.placed, site.leased);
        let limits = [
            (
                fits(left(capacity.vcpus, placed.vcpus, leased.vcpus), unit.vcpus),
                UnfitReason::Vcpus,
            ),
            (
                fits(left(capacity.mem_mib.0, placed.mem_mib.0, leased.mem_mib.0), unit.mem_mib.0),
                UnfitReason::Memory,
            ),
            (
                fits(
                    left(capacity.disk_mib.0, placed.disk_mib.0, leased.disk_mib.0),
                    unit.disk_mib.0,
                ),
                UnfitReason::Disk,
            ),
            (self.addresses[item.tenant].saturating_sub(held.instances), UnfitReason::Subnet),
            (fits(quota.saturating_sub(held.disk_mib).0, unit.disk_mib.0), UnfitReason::DiskQuota),
        ];
        let (room, why) =
            limits.into_iter().min_by_key(|(room, _)| *room).unwrap_or((0, UnfitReason::Disk));
        if room == 0 { Err(why) } else { Ok(u32::try_from(room).unwrap_or(u32::MAX)) }
    }

    /// Puts `count` instances on the node.
    pub fn put(&mut self, at: usize, item: Item<'_>, temperature: Temperature, count: u32) {
        self.change(at, item, |placed, held| {
            let unit = Load::of(&item.pool.footprint(), temperature);
            placed.add(unit, count.into());
            held.instances += u64::from(count);
            held.disk_mib += u64::from(count) * unit.disk_mib;
        });
    }

    /// Takes `count` instances away from the node.
    pub fn take(&mut self, at: usize, item: Item<'_>, temperature: Temperature, count: u32) {
        self.change(at, item, |placed, held| {
            let unit = Load::of(&item.pool.footprint(), temperature);
            placed.remove(unit, count.into());
            held.instances = held.instances.saturating_sub(count.into());
            held.disk_mib = held.disk_mib.saturating_sub(u64::from(count) * unit.disk_mib);
        });
    }

    fn change(&mut self, at: usize, item: Item<'_>, change: impl FnOnce(&mut Load, &mut Held)) {
        let site = &mut self.sites[at];
        let held = site.tenants.entry(item.tenant).or_default();
        let before = held.disk_mib.gib_rounded_up();
        change(&mut site.placed, held);
        let left = &mut self.disk_left[item.tenant];
        *left = (*left + before).saturating_sub(held.disk_mib.gib_rounded_up());
    }
}

impl<'a> Site<'a> {
    fn new(
        document: &FleetState,
        name: &'a Name,
        node: &'a FleetNode,
        grace: Duration,
        now: Timestamp,
    ) -> Self {
        let given_up = node.lost_since.is_some_and(|since| now >= since + grace);
        let draining = node.duty == Duty::Draining;
        let closed = match (node.lost_since, node.duty) {
            (Some(_), _) => Some(UnfitReason::Lost),
            (None, Duty::Draining) => Some(UnfitReason::Draining),
            (None, Duty::Cordoned) => Some(UnfitReason::Cordoned),
            (None, Duty::Open) => None,
        };
        let mut leased = Load::default();
        for (pool, status) in &node.status.pools {
            if let Some(pool) = document.pool(pool).filter(|_| status.leased > 0) {
                leased.add(Load::of(&pool.footprint(), Temperature::Running), status.leased.into());
            }
        }
        let capacity = node.status.capacity;
        let capacity = Load {
            vcpus: capacity.vcpus,
            mem_mib: capacity.mem_mib,
            disk_mib: Mib::from_gib(capacity.disk_gib),
        };
        let (placed, tenants) = Default::default();
        Site {
            name,
            node,
            keeps: !given_up && !draining,
            closed,
            capacity,
            placed,
            leased,
            tenants,
        }
    }

    /// Returns how full the node is, in thousandths of its scarcest resource.
    pub fn fullness(&self) -> u64 {
        let share = |placed: u64, leased: u64, capacity: u64| {
            placed.saturating_add(leased).saturating_mul(1000) / capacity.max(1)
        };
        let (placed, leased, capacity) = (self.placed, self.leased, self.capacity);
        share(placed.vcpus, leased.vcpus, capacity.vcpus)
            .max(share(placed.mem_mib.0, leased.mem_mib.0, capacity.mem_mib.0))
            .max(share(placed.disk_mib.0, leased.disk_mib.0, capacity.disk_mib.0))
    }

    /// Returns the sum of the weights of the pool's preferences that match the node.
    pub fn liking(&self, pool: &FleetPool) -> u32 {
        let liked = pool.placement.prefer.iter().filter(|like| self.node.fits(&like.labels));
        liked.map(|like| like.weight).sum()
    }
}
