//! Claims on the fleet's instances: who is served next, and by which node.
//!
//! A state machine without clocks and I/O. Waiting claims are served by tenant: the one with the
//! fewest claims in use relative to its weight comes first (max-min), then the one that was served
//! longest ago; inside a pool they are served in order of arrival. A claim goes to the node that
//! can serve it soonest: from a running or warm instance, then a sleeping one, then a clone, then a
//! boot; of equal nodes the least loaded. A claim that was sent to a node counts at once, so that a
//! burst spreads over nodes before any of them has reported it.

use super::node::Capacity;
use crate::id::LeaseId;
use crate::name::{Name, PoolRef};
use crate::pool::Counts;
use crate::resources::Resources;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Limits on claims under way and waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many claims one node brings up at once.
    pub per_node: u32,
    /// How many claims of one tenant may wait.
    pub per_tenant: usize,
    /// How many claims may wait in all.
    pub total: usize,
}

/// What a node offers to claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeOffer {
    /// Whether the node may be asked: it is in reach and not draining.
    pub open: bool,
    /// Everything that the node offers to instances.
    pub capacity: Capacity,
    /// What of its capacity is free for instances that have no process yet.
    pub free: Capacity,
    /// The number of its leased instances.
    pub leased: u64,
    /// What it offers of each pool.
    pub pools: BTreeMap<PoolRef, PoolOffer>,
}

/// What a node offers of one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolOffer {
    /// Unleased instances by temperature.
    pub ready: Counts,
    /// The shape of new ones.
    pub shape: Resources,
    /// Whether new instances are clones.
    pub template: bool,
    /// Whether new instances can be made at all.
    pub built: bool,
    /// How many more leases the node's part of the quotas allows.
    pub leases: u32,
}

/// What a claim is served from, the soonest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A running or warm instance.
    Hot,
    /// A sleeping instance.
    Sleeping,
    /// A new clone of the template.
    Clone,
    /// A new instance that boots.
    Boot,
}

/// An order to send a claim to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The claim's id, which its lease gets.
    pub claim: LeaseId,
    /// The pool that it is of.
    pub pool: PoolRef,
    /// The node to send it to.
    pub node: Name,
    /// What the node should serve it from.
    pub source: Source,
}

/// The result of a claim on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The node has given it an instance.
    Served,
    /// The node has no instance to give: the claim waits again, in its old place.
    Refused,
    /// The claim has failed for good.
    Failed,
}

/// Why a claim is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimDenied {
    /// As many claims of the tenant wait as may.
    TenantFull,
    /// As many claims wait as may.
    Full,
    /// A claim with this id exists.
    Known,
}

#[derive(Clone, Debug)]
enum Stage {
    Waiting,
    Granted { node: usize, source: Source },
    Held { node: usize },
}

#[derive(Clone, Debug)]
struct Claim {
    pool: PoolRef,
    /// Its position in the order of arrival.
    turn: u64,
    deadline: Timestamp,
    stage: Stage,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    stand: PoolOffer,
    /// Claims that were sent there and not answered yet.
    flying: u32,
    /// Whether it has refused a claim and not reported since.
    full: bool,
}

#[derive(Clone, Debug, Default)]
struct NodeState {
    open: bool,
    capacity: Capacity,
    free: Capacity,
    leased: u64,
    flying: u32,
    pools: BTreeSet<PoolRef>,
}

#[derive(Clone, Debug, Default)]
struct PoolState {
    /// What each node offers of the pool.
    slots: BTreeMap<usize, Slot>,
    /// The waiting claims in order of arrival.
    waiting: BTreeMap<u64, LeaseId>,
    /// Whether no node had anything for the pool when it was last tried.
    blocked: bool,
}

#[derive(Clone, Debug)]
struct TenantState {
    weight: u32,
    in_use: u64,
    waiting: usize,
    /// Number of the grant that served it last.
    served: u64,
    pools: BTreeSet<PoolRef>,
}

/// All claims: waiting, under way and held.
#[derive(Clone, Debug)]
pub struct Claims {
    limits: Limits,
    claims: HashMap<LeaseId, Claim>,
    deadlines: BTreeSet<(Timestamp, LeaseId)>,
    tenants: BTreeMap<Name, TenantState>,
    pools: HashMap<PoolRef, PoolState>,
    names: BTreeMap<Name, usize>,
    nodes: Vec<(Name, NodeState)>,
    waiting: usize,
    turns: u64,
    grants: u64,
}

impl Claims {
    /// Makes an empty set of claims.
    pub fn new(limits: Limits) -> Claims {
        Claims {
            limits,
            claims: HashMap::new(),
            deadlines: BTreeSet::new(),
            tenants: BTreeMap::new(),
            pools: HashMap::new(),
            names: BTreeMap::new(),
            nodes: Vec::new(),
            waiting: 0,
            turns: 0,
            grants: 0,
        }
    }

    /// Returns how many claims wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns how many claims of a tenant wait, and how many it uses.
    pub fn of_tenant(&self, tenant: &Name) -> (usize, u64) {
        self.tenants.get(tenant).map_or((0, 0), |t| (t.waiting, t.in_use))
    }

    /// Returns the node that a claim was sent to or is held on; `None` while it waits.
    pub fn node_of(&self, claim: LeaseId) -> Option<&Name> {
        match self.claims.get(&claim)?.stage {
            Stage::Waiting => None,
            Stage::Granted { node, .. } | Stage::Held { node } => Some(&self.nodes[node].0),
        }
    }

    /// Returns which of the claims that a node reports as held belong to nobody: those that were
    /// neither sent to this node nor adopted for it.
    pub fn strays(&self, node: &Name, held: impl IntoIterator<Item = LeaseId>) -> Vec<LeaseId> {
        held.into_iter().filter(|id| self.node_of(*id) != Some(node)).collect()
    }

    /// Sets a tenant's weight, which is 1 until then.
    pub fn set_weight(&mut self, tenant: &Name, weight: u32) {
        self.tenant(tenant).weight = weight.max(1);
    }

    /// Records what a node has reported, or what has become known about it.
    pub fn set_node(&mut self, name: &Name, room: NodeOffer) {
        let index = self.index(name);
        let node = &mut self.nodes[index].1;
        let gone: Vec<PoolRef> =
            node.pools.iter().filter(|pool| !room.pools.contains_key(*pool)).cloned().collect();
        (node.open, node.capacity, node.free) = (room.open, room.capacity, room.free);
        node.leased = room.leased;
        node.pools = room.pools.keys().cloned().collect();
        for pool in gone {
            if let Some(state) = self.pools.get_mut(&pool) {
                // Claims that were sent there must still be answered.
                match state.slots.get_mut(&index) {
                    Some(slot) if slot.flying > 0 => slot.stand = PoolOffer::default(),
                    _ => drop(state.slots.remove(&index)),
                }
            }
        }
        for (pool, stand) in room.pools {
            let slot = self.pools.entry(pool).or_default().slots.entry(index).or_default();
            (slot.stand, slot.full) = (stand, false);
        }
        self.freed(index);
    }

    /// Stops sending claims to a node that is out of reach, draining or gone.
    pub fn close_node(&mut self, name: &Name) {
        let index = self.index(name);
        self.nodes[index].1.open = false;
    }

    /// Adds a claim that must be served before `deadline`.
    pub fn submit(
        &mut self,
        id: LeaseId,
        pool: &PoolRef,
        deadline: Timestamp,
    ) -> Result<(), ClaimDenied> {
        if self.claims.contains_key(&id) {
            return Err(ClaimDenied::Known);
        }
        if self.waiting >= self.limits.total {
            return Err(ClaimDenied::Full);
        }
        if self.tenant(&pool.tenant).waiting >= self.limits.per_tenant {
            return Err(ClaimDenied::TenantFull);
        }
        self.turns += 1;
        let claim = Claim { pool: pool.clone(), turn: self.turns, deadline, stage: Stage::Waiting };
        self.claims.insert(id, claim);
        self.wait(id);
        Ok(())
    }

    /// Adds a claim that an earlier leader sent to a node, or that the node reports as held.
    pub fn adopt(&mut self, id: LeaseId, pool: &PoolRef, node: &Name, deadline: Timestamp) {
        if self.claims.contains_key(&id) {
            return;
        }
        let node = self.index(node);
        self.turns += 1;
        let stage = Stage::Held { node };
        let claim = Claim { pool: pool.clone(), turn: self.turns, deadline, stage };
        self.claims.insert(id, claim);
        self.tenant(&pool.tenant).in_use += 1;
    }

    /// Grants the claim that is served next and returns it with its node; `None` if nothing can be
    /// served now.
    pub fn next_grant(&mut self) -> Option<Grant> {
        let mut order: Vec<(u128, u64, &Name)> = (self.tenants.iter())
            .filter(|(_, tenant)| tenant.waiting > 0)
            .map(|(name, t)| (share(t), t.served, name))
            .collect();
        order.sort_unstable();
        let order: Vec<Name> = order.into_iter().map(|(_, _, name)| name.clone()).collect();
        order.iter().find_map(|tenant| self.next_of(tenant))
    }

    /// Returns the node that would serve a claim of the pool soonest; `None` if none can.
    pub fn soonest(&self, pool: &PoolRef) -> Option<&Name> {
        self.route(pool).map(|(index, _)| &self.nodes[index].0)
    }

    fn next_of(&mut self, tenant: &Name) -> Option<Grant> {
        let state = self.tenants.get(tenant)?;
        let mut heads: Vec<(u64, PoolRef)> = (state.pools.iter())
            .filter_map(|pool| {
                let queue = self.pools.get(pool).filter(|queue| !queue.blocked)?;
                Some((*queue.waiting.keys().next()?, pool.clone()))
            })
            .collect();
        heads.sort_unstable();
        for (_, pool) in heads {
            match self.route(&pool) {
                Some((node, source)) => return self.grant(pool, node, source),
                None => self.pools.entry(pool).or_default().blocked = true,
            }
        }
        None
    }

    fn route(&self, pool: &PoolRef) -> Option<(usize, Source)> {
        let slots = self.pools.get(pool)?.slots.iter();
        let able = slots.filter_map(|(index, slot)| {
            let (source, load) = self.able(*index, slot)?;
            Some((source, load, *index))
        });
        able.min().map(|(source, _, index)| (index, source))
    }

    /// Returns what the node could serve one more claim of the pool from, and its load; `None` if
    /// it cannot.
    fn able(&self, index: usize, slot: &Slot) -> Option<(Source, u64)> {
        let node = &self.nodes[index].1;
        let stand = &slot.stand;
        if !node.open || slot.full || node.flying >= self.limits.per_node {
            return None;
        }
        if stand.leases <= slot.flying {
            return None;
        }
        let hot = stand.ready.running + stand.ready.warm;
        let free = node.free.vcpus >= u64::from(stand.shape.vcpus)
            && node.free.mem_mib >= stand.shape.mem_mib;
        let source = if hot > slot.flying {
            Source::Hot
        } else if !free {
            return None;
        } else if hot + stand.ready.sleeping > slot.flying {
            Source::Sleeping
        } else if stand.template {
            Source::Clone
        } else if stand.built {
            Source::Boot
        } else {
            return None;
        };
        let load = node.leased.saturating_add(node.flying.into()).saturating_mul(1000)
            / node.capacity.vcpus.max(1);
        Some((source, load))
    }

    fn grant(&mut self, pool: PoolRef, node: usize, source: Source) -> Option<Grant> {
        let queue = self.pools.get_mut(&pool)?;
        let (_, id) = queue.waiting.pop_first()?;
        let slot = queue.slots.entry(node).or_default();
        slot.flying += 1;
        let shape = slot.stand.shape;
        self.nodes[node].1.flying += 1;
        if source != Source::Hot {
            self.occupy(node, &shape);
        }
        self.grants += 1;
        self.waiting -= 1;
        let grants = self.grants;
        let tenant = self.tenant(&pool.tenant);
        (tenant.waiting, tenant.served) = (tenant.waiting - 1, grants);
        tenant.in_use += 1;
        let claim = self.claims.get_mut(&id)?;
        claim.stage = Stage::Granted { node, source };
        self.deadlines.remove(&(claim.deadline, id));
        Some(Grant { claim: id, pool, node: self.nodes[node].0.clone(), source })
    }

    /// Records a node's answer to a claim.
    pub fn settle(&mut self, id: LeaseId, outcome: Outcome) {
        let Some(claim) = self.claims.get_mut(&id) else { return };
        let Stage::Granted { node, source } = claim.stage else { return };
        let pool = claim.pool.clone();
        if outcome == Outcome::Served {
            claim.stage = Stage::Held { node };
        }
        let state = &mut self.nodes[node].1;
        state.flying = state.flying.saturating_sub(1);
        state.leased = state.leased.saturating_add((outcome == Outcome::Served).into());
        if let Some(slot) = self.pools.get_mut(&pool).and_then(|p| p.slots.get_mut(&node)) {
            slot.flying = slot.flying.saturating_sub(1);
            match outcome {
                Outcome::Served => taken(&mut slot.stand, source),
                Outcome::Refused => slot.full = true,
                Outcome::Failed => {}
            }
        }
        match outcome {
            Outcome::Served => {}
            Outcome::Refused => {
                let tenant = self.tenant(&pool.tenant);
                tenant.in_use = tenant.in_use.saturating_sub(1);
                if let Some(claim) = self.claims.get_mut(&id) {
                    claim.stage = Stage::Waiting;
                    self.wait(id);
                }
            }
            Outcome::Failed => self.forget(id),
        }
        self.freed(node);
    }

    /// Ends a held claim.
    pub fn end(&mut self, id: LeaseId) {
        let Some(claim) = self.claims.get(&id) else { return };
        let Stage::Held { node } = claim.stage else { return };
        let pool = claim.pool.clone();
        self.forget(id);
        let state = &mut self.nodes[node].1;
        state.leased = state.leased.saturating_sub(1);
        if let Some(slot) = self.pools.get_mut(&pool).and_then(|p| p.slots.get_mut(&node)) {
            slot.stand.leases = slot.stand.leases.saturating_add(1);
        }
        self.freed(node);
    }

    /// Removes a claim that nobody waits for any more; returns whether it was still waiting. A
    /// claim that was sent to a node is settled and ended by the node's answer.
    pub fn cancel(&mut self, id: LeaseId) -> bool {
        let waits = self.claims.get(&id).is_some_and(|claim| matches!(claim.stage, Stage::Waiting));
        if waits {
            self.unwait(id);
            self.claims.remove(&id);
        }
        waits
    }

    /// Removes the claims whose deadline has passed and returns their ids.
    pub fn expire(&mut self, now: Timestamp) -> Vec<LeaseId> {
        let mut expired = Vec::new();
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.cancel(id);
            self.deadlines.remove(&(deadline, id));
            expired.push(id);
        }
        expired
    }

    /// Returns when the next deadline passes; `None` if no claim waits.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn wait(&mut self, id: LeaseId) {
        let Some(claim) = self.claims.get(&id) else { return };
        let (pool, turn, deadline) = (claim.pool.clone(), claim.turn, claim.deadline);
        self.deadlines.insert((deadline, id));
        self.waiting += 1;
        let tenant = self.tenant(&pool.tenant);
        tenant.waiting += 1;
        if !tenant.pools.contains(&pool) {
            tenant.pools.insert(pool.clone());
        }
        self.pools.entry(pool).or_default().waiting.insert(turn, id);
    }

    fn unwait(&mut self, id: LeaseId) {
        let Some(claim) = self.claims.get(&id) else { return };
        let (pool, turn, deadline) = (claim.pool.clone(), claim.turn, claim.deadline);
        self.deadlines.remove(&(deadline, id));
        self.waiting -= 1;
        self.tenant(&pool.tenant).waiting -= 1;
        if let Some(queue) = self.pools.get_mut(&pool) {
            queue.waiting.remove(&turn);
        }
    }

    /// Removes a claim that was in use.
    fn forget(&mut self, id: LeaseId) {
        if let Some(claim) = self.claims.remove(&id) {
            let tenant = self.tenant(&claim.pool.tenant);
            tenant.in_use = tenant.in_use.saturating_sub(1);
        }
    }

    /// Tries pools again that waited for something on a node that may be free now.
    fn freed(&mut self, index: usize) {
        let mut free = Vec::new();
        for pool in &self.nodes[index].1.pools {
            let Some(state) = self.pools.get(pool).filter(|state| state.blocked) else { continue };
            let slot = state.slots.get(&index);
            if slot.is_some_and(|slot| self.able(index, slot).is_some()) {
                free.push(pool.clone());
            }
        }
        for pool in free {
            self.pools.entry(pool).or_default().blocked = false;
        }
    }

    fn occupy(&mut self, node: usize, shape: &Resources) {
        let free = &mut self.nodes[node].1.free;
        free.vcpus = free.vcpus.saturating_sub(shape.vcpus.into());
        free.mem_mib = free.mem_mib.saturating_sub(shape.mem_mib);
    }

    fn index(&mut self, name: &Name) -> usize {
        if let Some(index) = self.names.get(name) {
            return *index;
        }
        self.nodes.push((name.clone(), NodeState::default()));
        self.names.insert(name.clone(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn tenant(&mut self, name: &Name) -> &mut TenantState {
        self.tenants.entry(name.clone()).or_insert_with(|| TenantState {
            weight: 1,
            in_use: 0,
            waiting: 0,
            served: 0,
            pools: BTreeSet::new(),
        })
    }
}

/// Returns what a tenant uses relative to its weight.
fn share(tenant: &TenantState) -> u128 {
    u128::from(tenant.in_use) * 1_000_000 / u128::from(tenant.weight)
}

/// Updates what a node offers of a pool after it has served a claim, until the node reports it
/// itself.
fn taken(stand: &mut PoolOffer, source: Source) {
    let ready = &mut stand.ready;
    let from = match source {
        Source::Hot if ready.running > 0 => &mut ready.running,
        Source::Hot => &mut ready.warm,
        _ => &mut ready.sleeping,
    };
    *from = from.saturating_sub(1);
    stand.leases = stand.leases.saturating_sub(1);
}
