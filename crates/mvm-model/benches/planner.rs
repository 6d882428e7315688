//! One tick of the planner: `cargo bench -p mvm-model`.

#[path = "../tests/support/mod.rs"]
mod support;

use divan::Bencher;
use mvm_model::plan::{Failures, plan};
use mvm_model::{Counts, Digest, Instance, Pool, State, Timestamp};

fn main() {
    divan::main();
}

fn pool(each: u32) -> Pool {
    let counts = Counts { running: each, warm: each, sleeping: each };
    let mut pool = Pool { desired: Some(counts), ..support::pool() };
    pool.record_build(Digest::of("r1"), Timestamp::EPOCH);
    pool
}

fn instance(number: u32) -> Instance {
    let states = [State::Running, State::Warm, State::Sleeping, State::Stopped];
    let created_at = Timestamp::from_millis(number.into());
    let state = states[number as usize % states.len()];
    Instance { created_at, state_since: created_at, ..support::instance(number, state) }
}

/// Measures one plan for a pool with too few instances of each temperature, so that every instance
/// is looked at and there is work to do.
#[divan::bench(args = [100, 1000, 10_000])]
fn tick(bencher: Bencher, count: u32) {
    let pool = pool(count / 3 + 10);
    let instances: Vec<Instance> = (0..count).map(instance).collect();
    let instances: Vec<&Instance> = instances.iter().collect();
    bencher.bench(|| {
        plan(&pool, &instances, Failures::default(), 4, Timestamp::from_millis(1_000_000))
    });
}
