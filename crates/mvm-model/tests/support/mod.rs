//! Helpers of the property tests.

use proptest::test_runner::{Config, RngSeed};

/// Returns `usual` cases, which are the same in every run. `PROPTEST_RNG_SEED` selects other cases,
/// and `PROPTEST_CASES` more.
#[allow(dead_code, reason = "not every test needs all of these")]
pub fn cases(usual: u32) -> Config {
    let set = |name: &str| std::env::var_os(name).is_some();
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if !set("PROPTEST_CASES") {
        config.cases = usual;
    }
    if !set("PROPTEST_RNG_SEED") {
        config.rng_seed = RngSeed::Fixed(0x006d_766d);
    }
    config
}

/// Returns the pool `ci/runners`, never built and never scaled.
#[allow(dead_code, reason = "not every test needs all of these")]
pub fn pool() -> mvm_model::Pool {
    mvm_model::Pool {
        reference: "ci/runners".parse().expect("a pool"),
        flake_ref: "/flake".to_owned(),
        profile: "small".to_owned(),
        override_inputs: Default::default(),
        stale: false,
        kernel: None,
        resources: Default::default(),
        caches: Vec::new(),
        recycle: Default::default(),
        egress: Default::default(),
        cpu_model: Default::default(),
        prewarm: None,
        runtime_policy: Default::default(),
        desired: None,
        revisions: Vec::new(),
        current: None,
        created_at: mvm_model::Timestamp::EPOCH,
    }
}

/// Returns an unused instance of pool `ci/runners` in `state`, of revision `r1`.
#[allow(dead_code, reason = "not every test needs all of these")]
pub fn instance(number: u32, state: mvm_model::State) -> mvm_model::Instance {
    mvm_model::Instance {
        id: mvm_model::InstanceId::from_number(number),
        pool: "ci/runners".parse().expect("a pool"),
        state,
        intent: None,
        goal: None,
        reason: None,
        paused: None,
        processor: None,
        revision: mvm_model::Digest::of("r1"),
        resources: mvm_model::Resources::default(),
        cpu_model: Default::default(),
        caches: Vec::new(),
        address: std::net::Ipv4Addr::from(0x0af0_1402 + number % 200),
        mac: mvm_model::Mac::from_bytes([0; 6]),
        created_at: mvm_model::Timestamp::EPOCH,
        state_since: mvm_model::Timestamp::EPOCH,
        lease: None,
        leases_served: 0,
        way_up: None,
        template: None,
        dormant: false,
    }
}

/// Returns a lease for `purpose`.
#[allow(dead_code, reason = "not every test needs all of these")]
pub fn lease(purpose: mvm_model::lease::Purpose) -> mvm_model::Lease {
    mvm_model::Lease {
        id: mvm_model::LeaseId::from_number(0x0123_4567),
        holder: "uid:0".to_owned(),
        purpose,
        since: mvm_model::Timestamp::EPOCH,
        expires_at: mvm_model::Timestamp::from_millis(1),
        longest_until: None,
    }
}
