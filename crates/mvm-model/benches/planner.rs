//! One tick of the planner: `cargo bench -p mvm-model`.

use divan::Bencher;
use mvm_model::network::mac_of;
use mvm_model::plan::{Failures, plan};
use mvm_model::pool::RevisionEntry;
use mvm_model::{Counts, Instance, InstanceId, Pool, State};

fn main() {
    divan::main();
}

fn pool(each: u32) -> Pool {
    let entry = RevisionEntry { number: 1, digest: "r1".to_owned(), built_at: 0 };
    Pool {
        reference: "ci/runners".parse().expect("a reference"),
        flake_ref: "/flake".to_owned(),
        profile: "small".to_owned(),
        override_inputs: Default::default(),
        stale: false,
        kernel: None,
        resources: Default::default(),
        recycle: Default::default(),
        prewarm: None,
        runtime_policy: Default::default(),
        desired: Some(Counts { running: each, warm: each, sleeping: each }),
        revisions: vec![entry],
        current: Some(1),
        created_at: 0,
    }
}

fn instance(number: u32) -> Instance {
    let states = [State::Running, State::Warm, State::Sleeping, State::Stopped];
    let address = std::net::Ipv4Addr::from(0x0a00_0002 + number);
    Instance {
        id: InstanceId::from_number(number),
        pool: "ci/runners".parse().expect("a reference"),
        state: states[number as usize % states.len()],
        intent: None,
        goal: None,
        reason: None,
        template: None,
        dormant: false,
        revision: "r1".to_owned(),
        resources: Default::default(),
        address,
        mac: mac_of(1, address),
        created_at: u64::from(number),
        state_since: u64::from(number),
        lease: None,
        leases_served: 0,
    }
}

/// Too few of all, so that everything is looked at and something is to be done.
#[divan::bench(args = [100, 1000, 10_000])]
fn tick(bencher: Bencher, count: u32) {
    let pool = pool(count / 3 + 10);
    let instances: Vec<Instance> = (0..count).map(instance).collect();
    let instances: Vec<&Instance> = instances.iter().collect();
    bencher.bench(|| plan(&pool, &instances, Failures::default(), 4, 1_000_000));
}
