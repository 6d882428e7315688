//! The target that `MVM_FUZZ_TARGET` names, for cargo-fuzz.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TARGET: LazyLock<mvm_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("MVM_FUZZ_TARGET").unwrap_or_default();
    let known = mvm_fuzz::TARGETS.map(|target| target.name);
    let named = mvm_fuzz::TARGETS.into_iter().find(|target| target.name == name);
    named.unwrap_or_else(|| panic!("MVM_FUZZ_TARGET must be one of {}", known.join(", ")))
});

fuzz_target!(|bytes: &[u8]| {
    let _ = (TARGET.read)(bytes);
});
