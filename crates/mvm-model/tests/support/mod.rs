//! What the property tests share.

use proptest::test_runner::{Config, RngSeed};

/// So many cases, the same ones at every run; `PROPTEST_RNG_SEED` goes looking elsewhere, and
/// `PROPTEST_CASES` for longer.
pub fn cases(usual: u32) -> Config {
    let set = |name: &str| std::env::var_os(name).is_some();
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if !set("PROPTEST_CASES") {
        config.cases = usual;
    }
    if !set("PROPTEST_RNG_SEED") {
        config.rng_seed = RngSeed::Fixed(0x6d76_6d);
    }
    config
}
