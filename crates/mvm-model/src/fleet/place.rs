//! Splits a fleet's totals over its nodes.
//!
//! Whatever is placed stays where it is as long as it may: nothing moves because another node would
//! be a little better, because some instances are in use, or because a node came back. Missing
//! instances go to preferred nodes, then to those that have the image, then to the fullest that
//! still has space.

use super::node::FleetNode;
use super::placement::{Placement, Unplaced};
use super::placement_board::{Board, Item, UnfitReason};
use super::quota_split::split_quotas;
use super::retained_pools::keep_records;
use super::{FleetPool, FleetState};
use crate::name::{Name, PoolRef};
use crate::pool::Counts;
use crate::state::Temperature;
use crate::timestamp::Timestamp;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The counts of one pool by the index of the site.
pub(super) type Spots = BTreeMap<usize, Counts>;

/// Splits the document's totals over the nodes. `previous` is the last decision: only what must
/// move moves. Deterministic.
pub fn place(
    document: &FleetState,
    nodes: &BTreeMap<Name, FleetNode>,
    previous: &Placement,
    now: Timestamp,
) -> Placement {
    let mut board = Board::new(document, nodes, now);
    let items: Vec<Item<'_>> = (document.tenants.iter().enumerate())
        .flat_map(|(tenant, t)| t.pools.iter().map(move |pool| Item { tenant, pool }))
        .collect();
    let references: Vec<PoolRef> = document.pools().map(|(t, pool)| t.reference(pool)).collect();
    let mut spots = before(&board, &references, previous);
    // Existing instances of all pools come first: nothing new may displace them.
    for (item, spots) in items.iter().zip(&mut spots) {
        keep(&mut board, *item, spots);
    }
    let mut fillings: Vec<Filling<'_>> = (items.iter().zip(&references).zip(&spots))
        .map(|((item, reference), spots)| Filling::new(&board, *item, reference, spots))
        .collect();
    // Moving one pool's instance away may free the place that another pool needs.
    while (fillings.iter_mut().zip(&mut spots))
        .fold(false, |moved, (filling, spots)| filling.level(&mut board, spots) || moved)
    {}
    let mut short = Vec::new();
    for (index, mut filling) in fillings.into_iter().enumerate() {
        filling.sort(&board);
        let missing = filling.fill(&mut board, &mut spots[index]);
        filling.seed(&board, &mut spots[index]);
        if missing != Counts::default() || spots[index].is_empty() {
            short.push((index, missing, filling));
        }
    }
    // The reasons are computed once everything is placed.
    let explain = |(index, counts, filling): (usize, Counts, Filling<'_>)| {
        let why = filling.explain(&board, &spots[index], counts);
        Unplaced { pool: references[index].clone(), counts, why }
    };
    let unplaced = short.into_iter().map(explain).collect();
    let mut placement = Placement { nodes: BTreeMap::new(), unplaced };
    for (reference, spots) in references.iter().zip(&spots) {
        for (at, counts) in spots {
            let share = placement.nodes.entry(board.sites[*at].name.clone()).or_default();
            share.pools.insert(reference.clone(), *counts);
        }
    }
    split_quotas(document, &mut placement);
    keep_records(document, nodes, previous, &mut placement);
    placement
}

/// Returns the previous decision by pool and site.
fn before(board: &Board<'_>, references: &[PoolRef], previous: &Placement) -> Vec<Spots> {
    let index: BTreeMap<&PoolRef, usize> =
        references.iter().enumerate().map(|(i, r)| (r, i)).collect();
    let mut spots = vec![Spots::new(); references.len()];
    for (at, site) in board.sites.iter().enumerate() {
        let Some(share) = previous.nodes.get(site.name) else { continue };
        for (pool, counts) in &share.pools {
            if let Some(pool) = index.get(pool) {
                spots[*pool].insert(at, *counts);
            }
        }
    }
    spots
}

/// Keeps what may stay, up to the wanted counts.
fn keep(board: &mut Board<'_>, item: Item<'_>, spots: &mut Spots) {
    let rules = &item.pool.placement;
    spots.retain(|at, _| {
        let site = &board.sites[*at];
        let spread = rules.spread.as_ref().is_none_or(|s| site.node.label(&s.key).is_some());
        site.keeps && spread && site.node.fits(&rules.require)
    });
    if let Some(most) = rules.max_per_node {
        spots.values_mut().for_each(|counts| *counts = cut(*counts, most));
    }
    trim(board, item.pool, spots);
    for (at, counts) in spots {
        for temperature in Temperature::ALL {
            let kept = counts.of_mut(temperature);
            if *kept > 0 {
                *kept = (*kept).min(board.room(*at, item, temperature, true).unwrap_or(0));
                board.put(*at, item, temperature, *kept);
            }
        }
    }
}

/// Cuts the counts to at most `most` together; the coldest go first.
fn cut(mut counts: Counts, most: u32) -> Counts {
    for temperature in Temperature::ALL.into_iter().rev() {
        let above = counts.total().saturating_sub(most.into());
        let count = counts.of_mut(temperature);
        *count -= u32::try_from(above).unwrap_or(u32::MAX).min(*count);
    }
    counts
}

/// Removes the surplus: from the largest part of the spread, and there from closed nodes first,
/// then from less preferred ones and those with few.
fn trim(board: &Board<'_>, pool: &FleetPool, spots: &mut Spots) {
    let zone_of = |at: usize| -> Option<&str> {
        let spread = pool.placement.spread.as_ref()?;
        board.sites[at].node.label(&spread.key)
    };
    for temperature in Temperature::ALL {
        let have: u64 = spots.values().map(|counts| u64::from(counts.of(temperature))).sum();
        let mut surplus = have.saturating_sub(pool.desired_counts.of(temperature).into());
        if surplus == 0 {
            continue;
        }
        let mut order: Vec<usize> =
            spots.iter().filter(|(_, c)| c.of(temperature) > 0).map(|(at, _)| *at).collect();
        order.sort_by_key(|at| {
            let site = &board.sites[*at];
            (site.closed.is_none(), site.liking(pool), spots[at].total(), Reverse(site.name))
        });
        let mut zones: BTreeMap<Option<&str>, u64> = BTreeMap::new();
        for (at, counts) in spots.iter() {
            *zones.entry(zone_of(*at)).or_default() += u64::from(counts.of(temperature));
        }
        while surplus > 0 {
            let has = |at: &&usize| spots[*at].of(temperature) > 0;
            let Some(at) =
                (order.iter().filter(has)).min_by_key(|at| Reverse(zones[&zone_of(**at)]))
            else {
                break;
            };
            let at = *at;
            let Some(counts) = spots.get_mut(&at) else { break };
            let count = counts.of_mut(temperature);
            let less = match pool.placement.spread {
                Some(_) => 1,
                None => surplus.min((*count).into()),
            };
            *count -= u32::try_from(less).unwrap_or(*count);
            surplus -= less;
            zones.entry(zone_of(at)).and_modify(|n| *n -= less);
        }
    }
}

/// One part of the spread; without a spread there is only one.
#[derive(Default)]
struct Zone {
    /// The pool's counts there.
    counts: Counts,
    /// Its nodes that accept new instances, the best first.
    sites: Vec<usize>,
    /// Index of the first of them that still has space.
    next: usize,
}

impl Zone {
    /// Returns how many instances of this temperature it has, and how many in all.
    fn key(&self, temperature: Temperature) -> (u64, u64) {
        (self.counts.of(temperature).into(), self.counts.total())
    }
}

/// One pool whose missing instances are being placed.
struct Filling<'a> {
    item: Item<'a>,
    zones: Vec<Zone>,
    skew: u64,
    /// The nodes that have the image.
    local: BTreeSet<usize>,
    /// How many nodes are excluded, and why.
    unfit: BTreeMap<UnfitReason, u32>,
}

impl<'a> Filling<'a> {
    fn new(board: &Board<'_>, item: Item<'a>, reference: &PoolRef, spots: &Spots) -> Filling<'a> {
        let rules = &item.pool.placement;
        let (known, mut unfit) = (images(board, reference), BTreeMap::new());
        let key = rules.spread.as_ref().map(|spread| spread.key.as_str());
        let zone_of = |at: usize| key.map_or(Some(""), |key| board.sites[at].node.label(key));
        let mut zones: BTreeMap<&str, Zone> = BTreeMap::new();
        for (at, site) in board.sites.iter().enumerate() {
            let (reason, name) = match zone_of(at) {
                _ if site.closed.is_some() => (site.closed, ""),
                _ if !site.node.fits(&rules.require) => (Some(UnfitReason::Labels), ""),
                None => (Some(UnfitReason::SpreadLabel), ""),
                Some(name) => (None, name),
            };
            match reason {
                Some(reason) => *unfit.entry(reason).or_default() += 1,
                None => zones.entry(name).or_default().sites.push(at),
            }
        }
        for (at, counts) in spots {
            // If all nodes are closed, nothing can be levelled.
            if let Some(zone) = zones.get_mut(zone_of(*at).unwrap_or_default()) {
                zone.counts = zone.counts.plus(*counts);
            }
        }
        let has = |at: &usize| {
            let images = &board.sites[*at].node.status.images;
            spots.contains_key(at) || known.iter().any(|digest| images.contains(*digest))
        };
        let local = zones.values().flat_map(|zone| &zone.sites).copied().filter(has).collect();
        let skew = rules.spread.as_ref().map_or(u64::MAX, |spread| spread.max_skew.into());
        let zones = zones.into_values().collect();
        let mut filling = Filling { item, zones, skew, local, unfit };
        filling.sort(board);
        filling
    }

    /// Sorts the nodes of each zone, the best first.
    fn sort(&mut self, board: &Board<'_>) {
        let (pool, local) = (self.item.pool, &self.local);
        for zone in &mut self.zones {
            zone.sites.sort_by_cached_key(|at| {
                let site = &board.sites[*at];
                let (liking, fullness) = (site.liking(pool), site.fullness());
                (Reverse(liking), Reverse(local.contains(at)), Reverse(fullness), *at)
            });
        }
    }

    /// Moves what an uneven spread requires, and no more; returns whether anything moved.
    fn level(&mut self, board: &mut Board<'_>, spots: &mut Spots) -> bool {
        let mut moved = false;
        for temperature in Temperature::ALL {
            while self.skew < u64::MAX && self.level_one(board, spots, temperature) {
                moved = true;
            }
        }
        moved
    }

    /// Moves one instance of this temperature if that is necessary and possible.
    fn level_one(
        &mut self,
        board: &mut Board<'_>,
        spots: &mut Spots,
        temperature: Temperature,
    ) -> bool {
        let most =
            (0..self.zones.len()).max_by_key(|z| (self.zones[*z].key(temperature), Reverse(*z)));
        let least = (0..self.zones.len()).min_by_key(|z| (self.zones[*z].key(temperature), *z));
        let (Some(most), Some(least)) = (most, least) else { return false };
        if self.zones[most].key(temperature).0 - self.zones[least].key(temperature).0 <= self.skew {
            return false;
        }
        // The least preferred node that has one.
        let has = |at: &&usize| spots.get(at).is_some_and(|counts| counts.of(temperature) > 0);
        let from = self.zones[most].sites.iter().rev().find(has).copied();
        let fits = |at: &&usize| self.room(board, spots, **at, temperature).is_ok();
        let to = self.zones[least].sites.iter().find(fits).copied();
        let (Some(from), Some(to)) = (from, to) else { return false };
        board.take(from, self.item, temperature, 1);
        *spots.entry(from).or_default().of_mut(temperature) -= 1;
        self.put(board, spots, to, temperature, 1);
        *self.zones[most].counts.of_mut(temperature) -= 1;
        *self.zones[least].counts.of_mut(temperature) += 1;
        true
    }

    /// Places what is missing; returns what could not be placed.
    fn fill(&mut self, board: &mut Board<'_>, spots: &mut Spots) -> Counts {
        let mut missing = Counts::default();
        for temperature in Temperature::ALL {
            let have: u64 = spots.values().map(|counts| u64::from(counts.of(temperature))).sum();
            let want: u64 = self.item.pool.desired_counts.of(temperature).into();
            let left = self.fill_temperature(board, spots, temperature, want.saturating_sub(have));
            *missing.of_mut(temperature) = u32::try_from(left).unwrap_or(u32::MAX);
        }
        missing
    }

    fn fill_temperature(
        &mut self,
        board: &mut Board<'_>,
        spots: &mut Spots,
        temperature: Temperature,
        mut need: u64,
    ) -> u64 {
        if need == 0 {
            return 0;
        }
        self.zones.iter_mut().for_each(|zone| zone.next = 0);
        let mut open: BTreeSet<((u64, u64), usize)> = self
            .zones
            .iter()
            .enumerate()
            .map(|(index, zone)| (zone.key(temperature), index))
            .collect();
        // The fewest instances among the full zones: others must not get too far ahead of them.
        let mut floor = u64::MAX;
        while need > 0 {
            let Some(((count, _), index)) = open.pop_first() else { break };
            if count >= floor.min(count).saturating_add(self.skew) {
                break;
            }
            let Some(at) = self.zones[index].sites.get(self.zones[index].next).copied() else {
                floor = floor.min(count);
                continue;
            };
            match self.room(board, spots, at, temperature) {
                Err(_) => self.zones[index].next += 1,
                Ok(room) => {
                    // A spread is filled level by level; without one, a node gets as many as fit.
                    let most = if self.skew == u64::MAX { need } else { 1 };
                    let put = u32::try_from(most).unwrap_or(u32::MAX).min(room);
                    self.put(board, spots, at, temperature, put);
                    *self.zones[index].counts.of_mut(temperature) += put;
                    need -= u64::from(put);
                }
            }
            open.insert((self.zones[index].key(temperature), index));
        }
        need
    }

    /// Returns why each node accepts no more of what is missing.
    fn explain(
        self,
        board: &Board<'_>,
        spots: &Spots,
        missing: Counts,
    ) -> BTreeMap<UnfitReason, u32> {
        let mut reasons = self.unfit.clone();
        let temperature =
            Temperature::ALL.into_iter().find(|temperature| missing.of(*temperature) > 0);
        let Some(temperature) = temperature else { return reasons };
        for at in self.zones.iter().flat_map(|zone| &zone.sites) {
            let room = self.room(board, spots, *at, temperature);
            *reasons.entry(room.err().unwrap_or(UnfitReason::Skew)).or_default() += 1;
        }
        reasons
    }

    /// Puts the pool on as many nodes as it must be on, and on no more.
    fn seed(&self, board: &Board<'_>, spots: &mut Spots) {
        let least = self.item.pool.placement.min_nodes as usize;
        let held = spots.values().filter(|counts| counts.total() > 0).count();
        let mut idle = least.saturating_sub(held);
        spots.retain(|_, counts| {
            let kept = counts.total() > 0 || idle > 0;
            idle -= usize::from(counts.total() == 0 && kept);
            kept
        });
        let mut all: Vec<(usize, usize)> = Vec::new();
        for zone in &self.zones {
            all.extend(zone.sites.iter().copied().enumerate());
        }
        // The best node of each part of the spread comes first, then the second ones.
        all.sort();
        for (_, at) in all {
            if idle == 0 {
                return;
            }
            if !spots.contains_key(&at) && board.sites[at].closed.is_none() {
                spots.insert(at, Counts::default());
                idle -= 1;
            }
        }
    }

    fn room(
        &self,
        board: &Board<'_>,
        spots: &Spots,
        at: usize,
        temperature: Temperature,
    ) -> Result<u32, UnfitReason> {
        let here = spots.get(&at).map_or(0, Counts::total);
        let most = self.item.pool.placement.max_per_node.map_or(u64::MAX, u64::from);
        let left = u32::try_from(most.saturating_sub(here)).unwrap_or(u32::MAX);
        if left == 0 {
            return Err(UnfitReason::PerNode);
        }
        Ok(board.room(at, self.item, temperature, false)?.min(left))
    }

    fn put(
        &self,
        board: &mut Board<'_>,
        spots: &mut Spots,
        at: usize,
        temperature: Temperature,
        count: u32,
    ) {
        board.put(at, self.item, temperature, count);
        *spots.entry(at).or_default().of_mut(temperature) += count;
    }
}

/// Returns the digests of the pool's image on all nodes.
fn images<'a>(board: &Board<'a>, pool: &PoolRef) -> BTreeSet<&'a str> {
    let known = board.sites.iter().filter_map(|site| site.node.status.pools.get(pool));
    known.filter_map(|status| status.revision.as_deref()).collect()
}
