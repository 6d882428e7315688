//! Placement under any sequence of nodes that come, die, fill up and drain: limits hold, nothing
//! moves without need, and all that fits is placed.

mod support;

use mvm_model::admission::Quotas;
use mvm_model::fleet::{
    Capacity, Duty, FleetNode, FleetPool, FleetState, FleetTenant, NodeStatus, Placement,
    PoolStatus, Preference, Rules, Share, Spread, node_document, place,
};
use mvm_model::{Counts, Mib, Name, PoolRef, Resources, Timestamp};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

const GRACE_S: u64 = 60;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn counts(running: u32, warm: u32, sleeping: u32) -> Counts {
    Counts { running, warm, sleeping }
}

fn shape(vcpus: u32, mem_mib: u64) -> Resources {
    Resources { vcpus, mem_mib: Mib(mem_mib), data_disk_mib: Mib(0), scratch_disk_mib: Mib(1000) }
}

fn plenty() -> Quotas {
    Quotas {
        max_vcpus: 10_000,
        max_mem_mib: Mib(10_000_000),
        max_running: 1000,
        max_warm: 1000,
        max_pools: 100,
        max_instances_per_pool: 1000,
        max_disk_gib: 100_000,
        max_queued_jobs: 100,
    }
}

fn tenant(index: u16, pools: Vec<FleetPool>) -> FleetTenant {
    FleetTenant {
        tenant_id: name(&format!("t{index}")),
        network: mvm_model::network::TenantNetwork {
            tenant_net_id: index,
            ipv4_subnet: format!("10.{index}.0.0/24").parse().unwrap(),
            allow_public_subnet: false,
        },
        quotas: plenty(),
        weight: 1,
        pools,
    }
}

fn pool(index: usize, resources: Resources, desired_counts: Counts, placement: Rules) -> FleetPool {
    FleetPool {
        pool_id: name(&format!("p{index}")),
        flake_ref: "/flake".into(),
        profile: "small".into(),
        override_inputs: Default::default(),
        caches: Vec::new(),
        instance_resources: resources,
        recycle: Default::default(),
        egress: Default::default(),
        cpu_model: Default::default(),
        prewarm: None,
        revision: None,
        runtime_policy: Default::default(),
        desired_counts,
        placement,
    }
}

fn fleet(tenants: Vec<FleetTenant>) -> FleetState {
    let fleet_id = name("f");
    let state = FleetState { schema_version: 1, fleet_id, node_grace_s: GRACE_S, tenants };
    state.validate().unwrap();
    state
}

fn node(index: usize, zone: Option<&str>, vcpus: u64, mem_mib: u64) -> (Name, FleetNode) {
    let node_id = name(&format!("n{index:03}"));
    let labels = zone.map(|zone| ("zone".to_owned(), zone.to_owned())).into_iter().collect();
    let status = NodeStatus {
        node_id: node_id.clone(),
        version: "1".into(),
        capacity: Capacity { vcpus, mem_mib: Mib(mem_mib), disk_gib: 500 },
        labels,
        cpu_model: String::new(),
        simulated: true,
        images: BTreeSet::new(),
        pools: BTreeMap::new(),
        document: None,
        pending: 0,
        failure: None,
        failure_code: None,
        newest_event: 0,
    };
    (
        node_id,
        FleetNode { status: status.into(), duty: Duty::Open, lost_since: None, settled: false },
    )
}

/// Returns a pool's counts on each node of a placement.
fn placed(placement: &Placement, pool: &PoolRef) -> BTreeMap<Name, Counts> {
    let share = |(node, share): (&Name, &Share)| Some((node.clone(), *share.pools.get(pool)?));
    placement.nodes.iter().filter_map(share).collect()
}

fn total(placement: &Placement, pool: &PoolRef) -> Counts {
    let mut sum = Counts::default();
    for counts in placed(placement, pool).values() {
        sum.running += counts.running;
        sum.warm += counts.warm;
        sum.sleeping += counts.sleeping;
    }
    sum
}

fn rules() -> Rules {
    Rules::default()
}

#[test]
fn packs_spreads_and_prefers() {
    let reference: PoolRef = "t1/p0".parse().unwrap();
    let one = |rules: Rules| {
        fleet(vec![tenant(1, vec![pool(0, shape(1, 1024), counts(0, 4, 2), rules)])])
    };
    let mut nodes: BTreeMap<Name, FleetNode> =
        (0..4).map(|i| node(i, Some(if i < 2 { "a" } else { "b" }), 16, 65536)).collect();
    let on = |document: &FleetState, nodes: &BTreeMap<Name, FleetNode>| {
        let placement = place(document, nodes, &Placement::default(), time(0));
        assert!(placement.unplaced.is_empty(), "{:?}", placement.unplaced);
        let spots = placed(&placement, &reference);
        spots.into_iter().map(|(n, c)| (n.to_string(), c.total())).collect::<Vec<_>>()
    };
    assert_eq!(on(&one(rules()), &nodes), [("n000".to_owned(), 6)], "tightly");
    let spread = |key: &str| Some(Spread { key: key.into(), max_skew: 1 });
    let even = on(&one(Rules { spread: spread("zone"), ..rules() }), &nodes);
    assert_eq!(even, [("n000".to_owned(), 3), ("n002".to_owned(), 3)]);
    let each = on(&one(Rules { spread: spread("node"), ..rules() }), &nodes);
    assert_eq!(each.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [2, 2, 1, 1]);
    let labels: BTreeMap<_, _> = [("zone".to_owned(), vec!["b".to_owned()])].into();
    let liked = Rules { prefer: vec![Preference { labels: labels.clone(), weight: 1 }], ..rules() };
    assert_eq!(on(&one(liked), &nodes), [("n002".to_owned(), 6)]);
    let required = Rules { require: labels, max_per_node: Some(3), ..rules() };
    assert_eq!(on(&one(required), &nodes), [("n002".to_owned(), 3), ("n003".to_owned(), 3)]);
    // A node that has the image need not build it.
    let revision = Some("r1".to_owned());
    let status = PoolStatus { revision, ..PoolStatus::default() };
    let n3 = Arc::make_mut(&mut nodes.get_mut(&name("n003")).unwrap().status);
    n3.pools.insert(reference.clone(), status);
    n3.images.insert("r1".into());
    assert_eq!(on(&one(rules()), &nodes), [("n003".to_owned(), 6)]);
    let few = Rules { min_nodes: 3, ..rules() };
    let present = on(&one(few), &nodes);
    assert_eq!(present.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [0, 0, 6], "only there");
}

#[test]
fn headroom_stays_free_and_what_does_not_fit_is_told() {
    let rules = Rules { headroom_percent: 50, ..rules() };
    let document = fleet(vec![tenant(1, vec![pool(0, shape(2, 1024), counts(0, 7, 1), rules)])]);
    let mut nodes: BTreeMap<Name, FleetNode> = (0..2).map(|i| node(i, None, 8, 65536)).collect();
    nodes.get_mut(&name("n001")).unwrap().duty = Duty::Cordoned;
    let placement = place(&document, &nodes, &Placement::default(), time(0));
    let told = placement.unplaced[0].to_string();
    let expected =
        "t1/p0: no node for 0 running, 5 warm, 0 sleeping: 1 cordoned, 1 without free vCPUs";
    assert_eq!(told, expected);
    assert_eq!(total(&placement, &"t1/p0".parse().unwrap()), counts(0, 2, 1));
}

#[test]
fn a_dead_node_is_made_up_for_after_the_grace_time_and_comes_back_to_what_the_spread_needs() {
    let spread = Some(Spread { key: "node".into(), max_skew: 1 });
    let rules = Rules { spread, ..rules() };
    let document = fleet(vec![tenant(1, vec![pool(0, shape(1, 512), counts(0, 6, 6), rules)])]);
    let mut nodes: BTreeMap<Name, FleetNode> = (0..3).map(|i| node(i, None, 32, 65536)).collect();
    let first = place(&document, &nodes, &Placement::default(), time(0));
    let dead = name("n001");
    nodes.get_mut(&dead).unwrap().lost_since = Some(time(1000));
    let grace = time(1000) + Duration::from_secs(GRACE_S);
    let within = place(&document, &nodes, &first, grace - Duration::from_millis(1));
    assert_eq!(within.nodes, first.nodes, "it may come back");
    let after = place(&document, &nodes, &within, grace);
    let reference = "t1/p0".parse().unwrap();
    assert!(!placed(&after, &reference).contains_key(&dead));
    assert_eq!(total(&after, &reference), counts(0, 6, 6));
    for (node, share) in &first.nodes {
        let kept = after.nodes.get(node).and_then(|share| share.pools.get(&reference));
        assert!(*node == dead || kept.unwrap().warm >= share.pools[&reference].warm);
    }
    nodes.get_mut(&dead).unwrap().lost_since = None;
    let back = place(&document, &nodes, &after, grace + Duration::from_secs(1));
    assert_eq!(total(&back, &reference), counts(0, 6, 6));
    let here = placed(&back, &reference)[&dead].total();
    assert_eq!(here, 4, "as many as the spread needs, and no more");
    assert_eq!(place(&document, &nodes, &back, grace + Duration::from_secs(2)), back);
}

#[test]
fn a_drained_node_keeps_its_pools_for_as_long_as_it_has_jobs_of_them() {
    let document = fleet(vec![tenant(1, vec![pool(0, shape(1, 512), counts(0, 2, 2), rules())])]);
    let reference: PoolRef = "t1/p0".parse().unwrap();
    let mut nodes: BTreeMap<Name, FleetNode> = (0..2).map(|i| node(i, None, 32, 65536)).collect();
    let first = place(&document, &nodes, &Placement::default(), time(0));
    let drained = first.nodes.keys().next().unwrap().clone();
    let told = |placement: &Placement| node_document(&document, placement, &drained);
    // The node reports these numbers of jobs and of open jobs, before or after it got its document.
    let mut next = |before: &Placement, jobs: u32, open_jobs: u32, settled: bool| {
        let node = nodes.get_mut(&drained).unwrap();
        (node.duty, node.settled) = (Duty::Draining, settled);
        let (revision, before_it) = (Some("r1".to_owned()), PoolStatus::default());
        let status = PoolStatus { jobs, open_jobs, revision, ..before_it };
        Arc::make_mut(&mut node.status).pools.insert(reference.clone(), status);
        place(&document, &nodes, before, time(0))
    };
    // A report from before the node knew that it is drained does not count.
    let at_once = next(&first, 0, 0, true);
    let kept = &told(&at_once).tenants[0];
    assert_eq!(kept.pools[0].desired_counts, Counts::default());
    assert_eq!(kept.pools[0].revision.as_deref(), Some("r1"), "nothing is built");
    assert_eq!(kept.quotas, told(&first).tenants[0].quotas, "what waits there can run");
    let runs = next(&at_once, 3, 1, true);
    assert_eq!(told(&runs), told(&at_once));
    let ended = next(&runs, 3, 0, true);
    assert_eq!(told(&ended).tenants[0].pools, kept.pools);
    assert_eq!(told(&ended).tenants[0].quotas.max_running, 0);
    let by_hand = next(&ended, 4, 1, true);
    assert_eq!(told(&by_hand).tenants[0].quotas.max_running, 1);
    let forgotten = next(&ended, 0, 0, false);
    assert_eq!(told(&forgotten), told(&ended), "that may be of before");
    let over = next(&ended, 0, 0, true);
    assert!(told(&over).tenants.is_empty());
}

/// An event in a fleet.
#[derive(Clone, Debug)]
enum Event {
    Die(Index),
    Return(Index),
    Drain(Index),
    Cordon(Index),
    Open(Index),
    Remove(Index),
    Add(Option<&'static str>, u64),
    Lease(Index, Index, u32),
    Scale(Index, Counts),
    /// A node now has these numbers of jobs and instances of a pool.
    Work(Index, Index, u32, u32),
    /// A node reports that it has carried out its document.
    Settle(Index),
    Wait(Duration),
}

fn any_counts() -> impl Strategy<Value = Counts> {
    (0u32..4, 0u32..8, 0u32..8).prop_map(|(r, w, s)| counts(r, w, s))
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let spread = prop::option::weighted(0.4, (select(vec!["zone", "node"]), 1u32..4));
    let require = prop::option::weighted(0.2, select(vec!["a", "b"]));
    let most = prop::option::weighted(0.3, 1u32..6);
    (spread, require, 0u8..60, 1u32..4, most).prop_map(
        |(spread, require, headroom_percent, min_nodes, max_per_node)| Rules {
            require: require
                .map(|zone| ("zone".to_owned(), vec![zone.to_owned()]))
                .into_iter()
                .collect(),
            prefer: Vec::new(),
            spread: spread.map(|(key, max_skew)| Spread { key: key.to_owned(), max_skew }),
            headroom_percent,
            min_nodes,
            max_per_node,
        },
    )
}

fn any_fleet() -> impl Strategy<Value = FleetState> {
    let pool = (1u32..4, select(vec![512u64, 1024, 3000]), any_counts(), any_rules());
    let tenants = prop::collection::vec(prop::collection::vec(pool, 1..3), 1..4);
    tenants.prop_map(|tenants| {
        let tenants = tenants.into_iter().enumerate().map(|(index, pools)| {
            let pools =
                pools.into_iter().enumerate().map(|(index, (vcpus, mem, counts, rules))| {
                    pool_of(index, vcpus, mem, counts, rules)
                });
            tenant(index as u16 + 1, pools.collect())
        });
        fleet(tenants.collect())
    })
}

fn pool_of(index: usize, vcpus: u32, mem: u64, counts: Counts, rules: Rules) -> FleetPool {
    pool(index, shape(vcpus, mem), counts, rules)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let index = any::<Index>;
    let zone = select(vec![Some("a"), Some("b"), Some("c"), None]);
    prop::collection::vec(
        prop_oneof![
            2 => index().prop_map(Event::Die),
            2 => index().prop_map(Event::Return),
            1 => index().prop_map(Event::Drain),
            1 => index().prop_map(Event::Cordon),
            2 => index().prop_map(Event::Open),
            1 => index().prop_map(Event::Remove),
            3 => (zone, 2u64..24).prop_map(|(zone, vcpus)| Event::Add(zone, vcpus)),
            2 => (index(), index(), 0u32..6).prop_map(|(n, p, l)| Event::Lease(n, p, l)),
            2 => (index(), any_counts()).prop_map(|(p, counts)| Event::Scale(p, counts)),
            2 => (index(), index(), 0u32..3, 0u32..2).prop_map(|(n, p, j, i)| Event::Work(n, p, j, i)),
            2 => index().prop_map(Event::Settle),
            2 => (0u64..90_000).prop_map(|ms| Event::Wait(Duration::from_millis(ms))),
        ],
        1..40,
    )
}

struct SimulatedFleet {
    document: FleetState,
    nodes: BTreeMap<Name, FleetNode>,
    placement: Placement,
    now: Timestamp,
    made: usize,
}

impl SimulatedFleet {
    fn apply(&mut self, event: &Event) {
        let names: Vec<Name> = self.nodes.keys().cloned().collect();
        let pools: Vec<PoolRef> = self.document.pools().map(|(t, p)| t.reference(p)).collect();
        let now = self.now;
        let mut with = |index: &Index, change: &dyn Fn(&mut FleetNode)| {
            if let Some(name) = (!names.is_empty()).then(|| index.get(&names)) {
                change(self.nodes.get_mut(name).unwrap());
            }
        };
        match event {
            Event::Die(index) => with(index, &|n| n.lost_since = n.lost_since.or(Some(now))),
            Event::Return(index) => with(index, &|n| n.lost_since = None),
            Event::Drain(index) => with(index, &|n| n.duty = Duty::Draining),
            Event::Cordon(index) => with(index, &|n| n.duty = Duty::Cordoned),
            Event::Open(index) => with(index, &|n| n.duty = Duty::Open),
            Event::Remove(index) => {
                if !names.is_empty() {
                    self.nodes.remove(index.get(&names));
                }
            }
            Event::Add(zone, vcpus) => {
                self.made += 1;
                let (name, node) = node(self.made, *zone, *vcpus, vcpus * 1500);
                self.nodes.insert(name, node);
            }
            Event::Lease(index, pool, leased) => {
                let pool = pool.get(&pools).clone();
                let leased = *leased;
                with(index, &|n| {
                    Arc::make_mut(&mut n.status).pools.entry(pool.clone()).or_default().leased =
                        leased;
                });
            }
            Event::Scale(index, counts) => {
                let pools = self.document.tenants.iter_mut().flat_map(|t| &mut t.pools);
                let mut pools: Vec<&mut FleetPool> = pools.collect();
                let at = index.index(pools.len());
                pools[at].desired_counts = *counts;
            }
            Event::Work(index, pool, jobs, instances) => {
                let pool = pool.get(&pools).clone();
                with(index, &|n| {
                    let status =
                        Arc::make_mut(&mut n.status).pools.entry(pool.clone()).or_default();
                    (status.jobs, status.open_jobs) = (*jobs, jobs / 2);
                    status.instances = *instances;
                });
            }
            Event::Settle(index) => with(index, &|n| n.settled = n.lost_since.is_none()),
            Event::Wait(time) => self.now += *time,
        }
    }

    /// Makes a new placement. Earlier reports of nodes say nothing about their new documents.
    fn place(&mut self) -> Placement {
        let before = self.placement.clone();
        self.placement = place(&self.document, &self.nodes, &before, self.now);
        self.nodes.values_mut().for_each(|node| node.settled = false);
        before
    }

    /// Checks that a pool stays on a node while it has jobs there, in addition to the node's other
    /// pools.
    fn check_kept(&self, before: &Placement) -> Result<(), TestCaseError> {
        for (name, share) in &before.nodes {
            let Some(node) = self.nodes.get(name) else { continue };
            let told = node_document(&self.document, &self.placement, name);
            for pool in share.pools.keys().chain(share.kept.keys()) {
                let jobs = node.status.pools.get(pool).map_or(0, |status| status.jobs);
                let named = told.pool(pool).is_some();
                prop_assert!(named || jobs == 0, "{name} loses {jobs} jobs of {pool}");
            }
        }
        Ok(())
    }

    fn given_up(&self, node: &FleetNode) -> bool {
        node.lost_since.is_some_and(|since| self.now >= since + Duration::from_secs(GRACE_S))
    }

    /// Checks the invariants.
    fn check(&self) -> Result<(), TestCaseError> {
        for (tenant, pool) in self.document.pools() {
            let reference = tenant.reference(pool);
            self.check_pool(pool, &reference)?;
        }
        for (name, share) in &self.placement.nodes {
            let node = self.nodes.get(name);
            prop_assert!(node.is_some(), "{name} is no node");
            let node = node.unwrap();
            let closed = node.duty == Duty::Draining || self.given_up(node);
            prop_assert!(!closed || share.pools.is_empty(), "{name} holds");
            let (mut vcpus, mut mem) = (0, Mib(0));
            for (reference, counts) in &share.pools {
                let shape = &self.document.pool(reference).unwrap().instance_resources;
                let hot = u64::from(counts.running + counts.warm);
                vcpus += hot * u64::from(shape.vcpus);
                mem += hot * shape.mem_mib;
            }
            let capacity = node.status.capacity;
            prop_assert!(vcpus <= capacity.vcpus && mem <= capacity.mem_mib, "{name} is too full");
            // Every node accepts its document.
            let document = node_document(&self.document, &self.placement, name);
            if let Err(fault) = document.validate() {
                return Err(TestCaseError::fail(format!("{name}: {fault}")));
            }
        }
        self.check_quotas()
    }

    fn check_pool(&self, pool: &FleetPool, reference: &PoolRef) -> Result<(), TestCaseError> {
        let spots = placed(&self.placement, reference);
        let sum = total(&self.placement, reference);
        let missing = self.placement.unplaced.iter().find(|u| u.pool == *reference);
        let missing = missing.map(|u| u.counts).unwrap_or_default();
        prop_assert_eq!(sum.running + missing.running, pool.desired_counts.running);
        prop_assert_eq!(sum.warm + missing.warm, pool.desired_counts.warm);
        prop_assert_eq!(sum.sleeping + missing.sleeping, pool.desired_counts.sleeping);
        for (name, counts) in &spots {
            let node = &self.nodes[name];
            prop_assert!(node.fits(&pool.placement.require));
            if let Some(most) = pool.placement.max_per_node {
                prop_assert!(counts.total() <= u64::from(most));
            }
        }
        Ok(())
    }

    fn check_quotas(&self) -> Result<(), TestCaseError> {
        for tenant in &self.document.tenants {
            // A pool that a node keeps only for its jobs does not count: it ends there.
            let id = &tenant.tenant_id;
            let holds = |share: &&Share| share.pools.keys().any(|pool| pool.tenant == *id);
            let parts =
                self.placement.nodes.values().filter(holds).filter_map(|s| s.quotas.get(id));
            let mut sum = [0u64; 5];
            for part in parts {
                let part = [
                    part.max_vcpus,
                    part.max_mem_mib.0,
                    part.max_running,
                    part.max_warm,
                    part.max_disk_gib,
                ];
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            let all = tenant.quotas;
            let all =
                [all.max_vcpus, all.max_mem_mib.0, all.max_running, all.max_warm, all.max_disk_gib];
            prop_assert!(
                sum.iter().zip(all).all(|(sum, all)| *sum <= all),
                "{:?} of {:?}",
                sum,
                all
            );
        }
        Ok(())
    }

    fn check_stable(&self) -> Result<(), TestCaseError> {
        let again = place(&self.document, &self.nodes, &self.placement, self.now);
        prop_assert_eq!(&again, &self.placement, "twice the same");
        Ok(())
    }
}

/// Returns how much one event has moved away from nodes that could have kept it.
fn moved(before: &Placement, after: &Placement, model: &SimulatedFleet) -> u64 {
    let mut moved = 0;
    for (name, share) in &before.nodes {
        let Some(node) = model.nodes.get(name) else { continue };
        if node.duty == Duty::Draining || model.given_up(node) {
            continue;
        }
        for (pool, counts) in &share.pools {
            let now = after.nodes.get(name).and_then(|s| s.pools.get(pool));
            moved += counts.total().saturating_sub(now.map_or(0, Counts::total));
        }
    }
    moved
}

proptest! {
    #![proptest_config(support::cases(300))]

    #[test]
    fn any_history_keeps_all_limits_and_moves_nothing_without_need(
        document in any_fleet(),
        history in events(),
    ) {
        let (placement, nodes) = Default::default();
        let mut model = SimulatedFleet { document, nodes, placement, now: time(0), made: 0 };
        for index in 0..4 {
            let zone = ["a", "b"][index % 2];
            model.apply(&Event::Add(Some(zone), 16));
        }
        for event in history {
            model.apply(&event);
            let before = model.place();
            model.check()?;
            model.check_kept(&before)?;
            model.check_stable()?;
            let spread = model.document.pools().any(|(_, p)| p.placement.spread.is_some());
            let moves = moved(&before, &model.placement, &model);
            match event {
                Event::Scale(..) => {}
                _ if spread => {}
                _ => prop_assert_eq!(moves, 0, "{:?} moved something", event),
            }
        }
        // When all nodes work again, all that fits is placed.
        for node in model.nodes.values_mut() {
            (node.lost_since, node.duty) = (None, Duty::Open);
            Arc::make_mut(&mut node.status).pools.clear();
        }
        for pool in model.document.tenants.iter_mut().flat_map(|tenant| &mut tenant.pools) {
            pool.placement.max_per_node = None;
        }
        for index in 0..30 {
            model.apply(&Event::Add(Some(["a", "b", "c"][index % 3]), 200));
        }
        model.place();
        model.check()?;
        model.check_stable()?;
        let left: Vec<String> = model.placement.unplaced.iter().map(ToString::to_string).collect();
        prop_assert!(left.is_empty(), "{:?}", left);
    }

    /// Quotas that are just sufficient are split so that every node can hold its document.
    #[test]
    fn tight_quotas_are_enough(document in any_fleet()) {
        let mut document = document;
        for tenant in &mut document.tenants {
            let mut quotas = Quotas { max_running: 0, max_warm: 0, max_vcpus: 0, max_mem_mib: Mib(0), max_instances_per_pool: 0, max_disk_gib: 0, max_pools: 9, max_queued_jobs: 9 };
            let mut disk = Mib(0);
            for pool in &tenant.pools {
                let (counts, shape) = (pool.desired_counts, pool.instance_resources);
                let hot = u64::from(counts.running + counts.warm);
                quotas.max_running += u64::from(counts.running);
                quotas.max_warm += u64::from(counts.warm);
                quotas.max_vcpus += hot * u64::from(shape.vcpus);
                quotas.max_mem_mib += hot * shape.mem_mib;
                disk += counts.total() * shape.disk_mib();
                quotas.max_instances_per_pool = quotas.max_instances_per_pool.max(counts.total());
            }
            quotas.max_disk_gib = disk.gib_rounded_up();
            tenant.quotas = quotas;
        }
        document.validate().unwrap();
        let nodes = (0..6).map(|i| node(i, Some(["a", "b", "c"][i % 3]), 64, 100_000)).collect();
        let (placement, made) = (place(&document, &nodes, &Placement::default(), time(0)), 6);
        let model = SimulatedFleet { document, nodes, placement, now: time(0), made };
        model.check()?;
    }
}
