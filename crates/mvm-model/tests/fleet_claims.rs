//! Claims under any sequence of events: no claim gets two machines, no machine gets two claims,
//! claims are served in the order of their arrival, and none waits forever.

mod support;

use mvm_model::fleet::{
    Capacity, ClaimDenied, Claims, Grant, Limits, NodeOffer, Outcome, PoolOffer, Source,
};
use mvm_model::{Counts, LeaseId, Mib, Name, PoolRef, Resources, Timestamp};
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

const LIMITS: Limits = Limits { per_node: 4, per_tenant: 8, total: 20 };

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn claim(number: u64) -> LeaseId {
    LeaseId::of_claim(number)
}

fn shape() -> Resources {
    Resources { vcpus: 1, mem_mib: Mib(512), ..Resources::default() }
}

fn stand(warm: u32, sleeping: u32, template: bool, leases: u32) -> PoolOffer {
    let ready = Counts { running: 0, warm, sleeping };
    PoolOffer { ready, shape: shape(), template, built: template, leases }
}

fn room(pools: &[(&str, PoolOffer)]) -> NodeOffer {
    let capacity = Capacity { vcpus: 64, mem_mib: Mib(65536), disk_gib: 100 };
    let pools = pools.iter().map(|(pool, stand)| (pool.parse().unwrap(), *stand)).collect();
    NodeOffer { open: true, capacity, free: capacity, leased: 0, pools }
}

fn grants(claims: &mut Claims) -> Vec<Grant> {
    std::iter::from_fn(|| claims.next_grant()).collect()
}

#[test]
fn the_soonest_then_the_least_loaded_and_a_burst_spreads() {
    let mut claims = Claims::new(Limits { per_node: 16, per_tenant: 100, total: 100 });
    let pool: PoolRef = "ci/a".parse().unwrap();
    claims.set_node(&name("n1"), room(&[("ci/a", stand(0, 2, true, 9))]));
    claims.set_node(&name("n2"), room(&[("ci/a", stand(2, 0, true, 9))]));
    claims.set_node(&name("n3"), room(&[("ci/a", stand(2, 0, false, 9))]));
    for id in 0..8 {
        claims.submit(claim(id), &pool, time(1000)).unwrap();
    }
    let made: Vec<(String, Source)> =
        grants(&mut claims).into_iter().map(|g| (g.node.to_string(), g.source)).collect();
    let of = |node: &str, source| (node.to_owned(), source);
    assert_eq!(made[..4].iter().filter(|m| **m == of("n2", Source::Hot)).count(), 2);
    assert_eq!(made[..4].iter().filter(|m| **m == of("n3", Source::Hot)).count(), 2);
    assert!(made[0].0 != made[1].0, "a burst spreads");
    assert_eq!(made[4..6], [of("n1", Source::Sleeping), of("n1", Source::Sleeping)]);
    assert!(made[6..].iter().all(|m| m.1 == Source::Clone), "{made:?}");
    // A draining or lost node gets no claims.
    claims.close_node(&name("n1"));
    claims.close_node(&name("n2"));
    claims.submit(claim(8), &pool, time(1000)).unwrap();
    assert_eq!(claims.next_grant(), None);
}

#[test]
fn a_queue_has_bounds_and_deadlines() {
    let mut claims = Claims::new(LIMITS);
    let pool: PoolRef = "ci/a".parse().unwrap();
    for id in 0..8 {
        claims.submit(claim(id), &pool, time(100 + id)).unwrap();
    }
    assert_eq!(claims.submit(claim(9), &pool, time(1000)), Err(ClaimDenied::TenantFull));
    assert_eq!(claims.submit(claim(1), &pool, time(1000)), Err(ClaimDenied::Known));
    for (tenant, ids) in [("x", 10..18), ("y", 20..24)] {
        let pool = format!("{tenant}/a").parse().unwrap();
        for id in ids {
            claims.submit(claim(id), &pool, time(1000)).unwrap();
        }
    }
    assert_eq!(
        claims.submit(claim(29), &"y/a".parse().unwrap(), time(1000)),
        Err(ClaimDenied::Full)
    );
    assert_eq!(claims.next_deadline(), Some(time(100)));
    assert_eq!(claims.expire(time(101)), [claim(0), claim(1)]);
    assert!(claims.cancel(claim(2)) && !claims.cancel(claim(2)));
    assert_eq!(claims.waiting(), 17);
}

#[test]
fn a_tenants_weight_is_its_part() {
    let mut claims = Claims::new(Limits { per_node: 100, per_tenant: 100, total: 1000 });
    claims.set_weight(&name("big"), 3);
    let pools = [("big/a", stand(100, 0, true, 100)), ("small/a", stand(100, 0, true, 100))];
    claims.set_node(&name("n1"), room(&pools));
    for id in 0..40 {
        claims.submit(claim(2 * id), &"small/a".parse().unwrap(), time(1000)).unwrap();
        claims.submit(claim(2 * id + 1), &"big/a".parse().unwrap(), time(1000)).unwrap();
    }
    let first: Vec<Grant> = std::iter::from_fn(|| claims.next_grant()).take(40).collect();
    let big = first.iter().filter(|grant| grant.pool.tenant == name("big")).count();
    assert!((29..=31).contains(&big), "{big} of 40");
}

/// An event.
#[derive(Clone, Debug)]
enum Event {
    Submit { tenant: u8, pool: u8, patience: Duration },
    Next,
    Answer(Index, u8),
    End(Index),
    Cancel(Index),
    Tell(u8),
    Close(u8),
    Wait(Duration),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let index = any::<Index>;
    prop::collection::vec(
        prop_oneof![
            6 => (0u8..3, 0u8..2, 1u64..5000)
                .prop_map(|(tenant, pool, patience)| Event::Submit { tenant, pool, patience: Duration::from_millis(patience) }),
            8 => Just(Event::Next),
            6 => (index(), 0u8..4).prop_map(|(claim, how)| Event::Answer(claim, how)),
            3 => index().prop_map(Event::End),
            1 => index().prop_map(Event::Cancel),
            3 => (0u8..4).prop_map(Event::Tell),
            1 => (0u8..4).prop_map(Event::Close),
            2 => (0u64..1000).prop_map(|ms| Event::Wait(Duration::from_millis(ms))),
        ],
        1..150,
    )
}

/// One pool on one simulated node, as it really is.
#[derive(Clone, Copy, Debug, Default)]
struct PoolState {
    warm: u32,
    sleeping: u32,
    leased: u32,
}

/// The number of leases that a tenant's share of the quotas allows on a node.
const LEASES: u32 = 3;

struct SimulatedFleet {
    claims: Claims,
    /// By node and pool.
    real: BTreeMap<(Name, PoolRef), PoolState>,
    /// The grants that a node has not answered yet, by claim.
    flying: BTreeMap<LeaseId, Grant>,
    held: BTreeMap<LeaseId, Grant>,
    /// The waiting claims with their deadlines, in the order of their arrival.
    waiting: Vec<(LeaseId, PoolRef, Timestamp)>,
    gone: BTreeSet<LeaseId>,
    now: Timestamp,
    made: u64,
}

fn pools() -> Vec<PoolRef> {
    ["t0", "t1", "t2"]
        .iter()
        .flat_map(|t| ["a", "b"].map(|p| format!("{t}/{p}").parse().unwrap()))
        .collect()
}

fn node(index: u8) -> Name {
    name(&format!("n{index}"))
}

impl SimulatedFleet {
    fn new() -> SimulatedFleet {
        let mut real = BTreeMap::new();
        for index in 0..4u8 {
            for (at, pool) in pools().into_iter().enumerate() {
                if (at + usize::from(index)) % 2 == 0 {
                    real.insert((node(index), pool), PoolState { warm: 1, sleeping: 1, leased: 0 });
                }
            }
        }
        let (flying, held, waiting, gone) = Default::default();
        let claims = Claims::new(LIMITS);
        let mut model =
            SimulatedFleet { claims, real, flying, held, waiting, gone, now: time(0), made: 0 };
        (0..4).for_each(|index| model.tell(index));
        model
    }

    /// Lets the node report its real state.
    fn tell(&mut self, index: u8) {
        let node = node(index);
        let mine = self.real.iter().filter(|((at, _), _)| *at == node);
        let pools: BTreeMap<PoolRef, PoolOffer> = mine
            .map(|((_, pool), real)| {
                let leases = LEASES.saturating_sub(real.leased);
                (pool.clone(), stand(real.warm, real.sleeping, true, leases))
            })
            .collect();
        let room = NodeOffer { pools, ..room(&[]) };
        self.claims.set_node(&node, room);
    }

    fn step(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Submit { tenant, pool, patience } => {
                self.made += 1;
                let pool: PoolRef =
                    format!("t{tenant}/{}", ["a", "b"][usize::from(*pool)]).parse().unwrap();
                let (id, deadline) = (claim(self.made), self.now + *patience);
                let mine = self.waiting.iter().filter(|(_, p, _)| p.tenant == pool.tenant).count();
                // A claim that a node has refused waits in its old place, whatever the bounds.
                match self.claims.submit(id, &pool, deadline) {
                    Ok(()) => self.waiting.push((id, pool, deadline)),
                    Err(ClaimDenied::TenantFull) => prop_assert!(mine >= LIMITS.per_tenant),
                    Err(ClaimDenied::Full) => prop_assert!(self.waiting.len() >= LIMITS.total),
                    Err(ClaimDenied::Known) => prop_assert!(false),
                }
            }
            Event::Next => {
                self.next()?;
            }
            Event::Answer(index, how) => {
                let flying: Vec<LeaseId> = self.flying.keys().copied().collect();
                if !flying.is_empty() {
                    self.answer(flying[index.index(flying.len())], *how);
                }
            }
            Event::End(index) => {
                let held: Vec<LeaseId> = self.held.keys().copied().collect();
                if !held.is_empty() {
                    self.end(held[index.index(held.len())]);
                }
            }
            Event::Cancel(index) => {
                if !self.waiting.is_empty() {
                    let (id, _, _) = self.waiting.remove(index.index(self.waiting.len()));
                    prop_assert!(self.claims.cancel(id));
                    self.gone.insert(id);
                }
            }
            Event::Tell(index) => self.tell(*index),
            Event::Close(index) => self.claims.close_node(&node(*index)),
            Event::Wait(time) => {
                self.now += *time;
                let late: BTreeSet<LeaseId> = self.claims.expire(self.now).into_iter().collect();
                let should = self.waiting.iter().filter(|(_, _, deadline)| *deadline <= self.now);
                let should: BTreeSet<LeaseId> = should.map(|(id, _, _)| *id).collect();
                prop_assert_eq!(&late, &should);
                self.waiting.retain(|(id, _, _)| !late.contains(id));
                self.gone.extend(late);
            }
        }
        prop_assert_eq!(self.claims.waiting(), self.waiting.len());
        self.no_stray_is_somebodys()
    }

    /// Checks that a claim that is under way or held is never taken for a stray, and that an ended
    /// one is.
    fn no_stray_is_somebodys(&self) -> Result<(), TestCaseError> {
        for index in 0..4u8 {
            let node = node(index);
            let known = self.flying.iter().chain(&self.held);
            let (here, there): (Vec<_>, Vec<_>) = known.partition(|(_, g)| g.node == node);
            let ids = |of: Vec<(&LeaseId, &Grant)>| -> Vec<LeaseId> {
                of.into_iter().map(|(id, _)| *id).collect()
            };
            let (here, there) = (ids(here), ids(there));
            let told = |ids: &[LeaseId]| self.claims.strays(&node, ids.iter().copied());
            prop_assert_eq!(told(&here), Vec::<LeaseId>::new());
            prop_assert_eq!(told(&there), there);
            let gone: Vec<LeaseId> = self.gone.iter().copied().collect();
            prop_assert_eq!(told(&gone), gone);
        }
        Ok(())
    }

    fn next(&mut self) -> Result<bool, TestCaseError> {
        let Some(grant) = self.claims.next_grant() else { return Ok(false) };
        // Only a waiting claim is granted, so that no claim gets two machines.
        let at = self.waiting.iter().position(|(id, _, _)| *id == grant.claim);
        prop_assert!(at.is_some(), "{} does not wait", grant.claim);
        // The granted claim is the first of its pool.
        let first = self.waiting.iter().find(|(_, pool, _)| *pool == grant.pool).unwrap();
        prop_assert_eq!(&first.0, &grant.claim);
        self.waiting.remove(at.unwrap());
        let there = |g: &&Grant| g.node == grant.node;
        prop_assert!(self.flying.values().filter(there).count() < LIMITS.per_node as usize);
        prop_assert!(self.real.contains_key(&(grant.node.clone(), grant.pool.clone())));
        let in_use = |tenant: &Name| {
            let all = self.flying.values().chain(self.held.values());
            all.filter(|grant| grant.pool.tenant == *tenant).count() as u64
        };
        let (_, known) = self.claims.of_tenant(&grant.pool.tenant);
        prop_assert_eq!(known, in_use(&grant.pool.tenant) + 1);
        self.flying.insert(grant.claim, grant);
        Ok(true)
    }

    /// Answers a grant as a real node would: the node serves it if it can.
    fn answer(&mut self, id: LeaseId, how: u8) {
        let grant = self.flying.remove(&id).unwrap();
        let real = self.real.get_mut(&(grant.node.clone(), grant.pool.clone())).unwrap();
        if how == 3 {
            self.claims.settle(id, Outcome::Failed);
            self.gone.insert(id);
        } else if real.leased >= LEASES || how == 2 {
            self.claims.settle(id, Outcome::Refused);
            // The claim waits in its old place.
            let at = self.waiting.iter().position(|(other, _, _)| *other > id);
            let entry = (id, grant.pool.clone(), Timestamp::MAX);
            self.waiting.insert(at.unwrap_or(self.waiting.len()), entry);
        } else {
            match real {
                PoolState { warm: 1.., .. } => real.warm -= 1,
                PoolState { sleeping: 1.., .. } => real.sleeping -= 1,
                _ => {}
            }
            real.leased += 1;
            self.claims.settle(id, Outcome::Served);
            self.held.insert(id, grant);
        }
    }

    fn end(&mut self, id: LeaseId) {
        let grant = self.held.remove(&id).unwrap();
        let real = self.real.get_mut(&(grant.node, grant.pool)).unwrap();
        (real.leased, real.warm) = (real.leased - 1, 1);
        self.claims.end(id);
    }
}

proptest! {
    #![proptest_config(support::cases(400))]

    #[test]
    fn any_history_serves_each_claim_once_and_lets_none_starve(history in events()) {
        let mut model = SimulatedFleet::new();
        for event in &history {
            // A refused claim keeps its deadline, which this model does not follow.
            if let (Event::Wait(_), true) =
                (event, model.waiting.iter().any(|(_, _, d)| *d == Timestamp::MAX))
            {
                continue;
            }
            model.step(event)?;
        }
        // From now on nodes work and jobs end, so all waiting claims are served.
        for _ in 0..200 {
            (0..4).for_each(|index| model.tell(index));
            while model.next()? {}
            for id in model.flying.keys().copied().collect::<Vec<_>>() {
                model.answer(id, 0);
            }
            while model.next()? {}
            for id in model.held.keys().copied().collect::<Vec<_>>() {
                model.end(id);
            }
        }
        let left: Vec<_> = model.waiting.iter().map(|(id, ..)| id).collect();
        prop_assert!(left.is_empty(), "{:?} wait for ever", left);
        prop_assert_eq!(model.flying.len() + model.held.len(), 0);
    }

    /// Of the tenants that could be served, the one with the fewest machines comes first. However
    /// many claims the others submit before it, a tenant without a machine waits for at most one
    /// claim of each.
    #[test]
    fn no_tenant_is_put_behind_anothers_burst(burst in 1usize..60, held in 0usize..30) {
        let mut claims = Claims::new(Limits { per_node: 1000, per_tenant: 1000, total: 10_000 });
        let pools: Vec<(String, PoolOffer)> =
            (0..4).map(|t| (format!("t{t}/a"), stand(500, 0, true, 500))).collect();
        let pools: Vec<(&str, PoolOffer)> = pools.iter().map(|(p, s)| (p.as_str(), *s)).collect();
        claims.set_node(&name("n1"), room(&pools));
        let pool = |t: usize| format!("t{t}/a").parse::<PoolRef>().unwrap();
        for id in 0..held as u64 {
            claims.submit(claim(1 + id), &pool(0), time(1)).unwrap();
        }
        for grant in grants(&mut claims) {
            claims.settle(grant.claim, Outcome::Served);
        }
        for id in 0..burst as u64 {
            for tenant in 0..3 {
                claims.submit(claim(1000 + 3 * id + tenant as u64), &pool(tenant), time(1)).unwrap();
            }
        }
        claims.submit(claim(0), &pool(3), time(1)).unwrap();
        let order = grants(&mut claims);
        let late = order.iter().position(|grant| grant.claim == claim(0)).unwrap();
        prop_assert!(late <= 3, "{}th", late);
        // The other tenants take turns.
        let mut served = [held, 0, 0];
        for grant in order.iter().filter(|grant| grant.claim != claim(0)) {
            let tenant = (0..3).find(|t| pool(*t) == grant.pool).unwrap();
            let least = (0..3)
                .filter(|t| served[*t] - if *t == 0 { held } else { 0 } < burst)
                .map(|t| served[t])
                .min()
                .unwrap();
            prop_assert_eq!(served[tenant], least);
            served[tenant] += 1;
        }
    }
}
