//! A fleet of 1,000 nodes and 100,000 instances: `cargo bench -p mvm-model --bench fleet`.

use divan::Bencher;
use mvm_model::fleet::{
    Capacity, Claims, Duty, FleetNode, FleetState, Limits, NodeOffer, NodeStatus, Outcome,
    Placement, PoolOffer, Spread, node_document, place,
};
use mvm_model::{Counts, LeaseId, Mib, Name, PoolRef, Resources, Timestamp};
use std::collections::BTreeMap;

fn main() {
    divan::main();
}

const NODES: u64 = 1000;
const TENANTS: u64 = 50;

/// Returns 50 tenants with two pools of 1,000 instances each, every second pool spread over zones.
fn document() -> FleetState {
    let text = include_str!("../../../examples/fleet.json");
    let mut document = FleetState::parse(text.as_bytes()).expect("the example");
    let mut tenant = document.tenants.remove(0);
    let mut pool = tenant.pools.remove(0);
    pool.placement = Default::default();
    pool.instance_resources = Resources { vcpus: 1, mem_mib: Mib(512), ..Resources::default() };
    pool.desired_counts = Counts { running: 0, warm: 300, sleeping: 700 };
    let spread = Spread { key: "zone".into(), max_skew: 8 };
    let quotas = &mut tenant.quotas;
    (quotas.max_vcpus, quotas.max_mem_mib, quotas.max_warm) = (10_000, Mib(10_000_000), 1000);
    (quotas.max_running, quotas.max_instances_per_pool, quotas.max_disk_gib) =
        (2000, 4000, 100_000);
    for index in 0..TENANTS {
        let mut tenant = tenant.clone();
        tenant.tenant_id = format!("t{index}").parse().expect("a name");
        tenant.network.tenant_net_id = index as u16;
        tenant.network.ipv4_subnet = format!("10.{index}.0.0/16").parse().expect("a subnet");
        for name in ["a", "b"] {
            let mut pool = pool.clone();
            pool.pool_id = name.parse().expect("a name");
            pool.placement.spread = (name == "b").then(|| spread.clone());
            tenant.pools.push(pool);
        }
        document.tenants.push(tenant);
    }
    document.validate().expect("a document");
    document
}

fn nodes() -> BTreeMap<Name, FleetNode> {
    let node = |index| {
        let node_id: Name = format!("n{index:04}").parse().expect("a name");
        let status = NodeStatus {
            node_id: node_id.clone(),
            version: String::new(),
            capacity: Capacity { vcpus: 64, mem_mib: Mib(65_536), disk_gib: 4000 },
            labels: [("zone".to_owned(), format!("z{}", index % 8))].into(),
            cpu_model: String::new(),
            simulated: true,
            images: Default::default(),
            pools: Default::default(),
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
    };
    (0..NODES).map(node).collect()
}

#[divan::bench]
fn place_from_nothing(bencher: Bencher) {
    let (document, nodes) = (document(), nodes());
    let placement = place(&document, &nodes, &Placement::default(), Timestamp::EPOCH);
    assert!(placement.unplaced.is_empty(), "{}", placement.unplaced[0]);
    bencher.bench(|| place(&document, &nodes, &Placement::default(), Timestamp::EPOCH));
}

#[divan::bench]
fn place_again_unchanged(bencher: Bencher) {
    let (document, nodes) = (document(), nodes());
    let placement = place(&document, &nodes, &Placement::default(), Timestamp::EPOCH);
    bencher.bench(|| place(&document, &nodes, &placement, Timestamp::EPOCH));
}

#[divan::bench]
fn place_ten_dead_nodes_elsewhere(bencher: Bencher) {
    let (document, mut nodes) = (document(), nodes());
    let placement = place(&document, &nodes, &Placement::default(), Timestamp::EPOCH);
    nodes
        .values_mut()
        .step_by(97)
        .take(10)
        .for_each(|node| node.lost_since = Some(Timestamp::EPOCH));
    bencher.bench(|| place(&document, &nodes, &placement, Timestamp::from_millis(1_000_000)));
}

#[divan::bench]
fn all_documents(bencher: Bencher) {
    let (document, nodes) = (document(), nodes());
    let placement = place(&document, &nodes, &Placement::default(), Timestamp::EPOCH);
    let all = || nodes.keys().map(|n| node_document(&document, &placement, n)).collect::<Vec<_>>();
    bencher.bench(all);
}

/// Measures 1,000 claims of 50 tenants, each for a pool that is on every node.
#[divan::bench]
fn a_thousand_claims(bencher: Bencher) {
    let mut claims = Claims::new(Limits { per_node: 16, per_tenant: 1000, total: 10_000 });
    let shape = Resources::default();
    let ready = Counts { running: 0, warm: 3, sleeping: 7 };
    let stand = PoolOffer { ready, shape, template: true, built: true, leases: 100 };
    let pools: Vec<PoolRef> =
        (0..TENANTS).map(|t| format!("t{t}/a").parse().expect("a pool")).collect();
    let capacity = Capacity { vcpus: 64, mem_mib: Mib(65_536), disk_gib: 1000 };
    for node in nodes().keys() {
        let pools = pools.iter().map(|pool| (pool.clone(), stand)).collect();
        let room = NodeOffer { open: true, capacity, free: capacity, leased: 0, pools };
        claims.set_node(node, room);
    }
    bencher.with_inputs(|| claims.clone()).bench_values(|mut claims| {
        for id in 0..1000 {
            let pool = &pools[id as usize % pools.len()];
            claims.submit(LeaseId::of_claim(id), pool, Timestamp::from_millis(1)).expect("room");
        }
        while let Some(grant) = claims.next_grant() {
            claims.settle(grant.claim, Outcome::Served);
            claims.end(grant.claim);
        }
        claims
    });
}
