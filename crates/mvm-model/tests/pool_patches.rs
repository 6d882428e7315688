//! Changes of a pool.

use mvm_model::pool::RevisionEntry;
use mvm_model::pool_patch::{PolicyPatch, UpdatePool};
use mvm_model::{Digest, Mib, Pool, Recycle, Timestamp};
use proptest::option;
use proptest::prelude::*;
use serde_json::json;

fn pool(built: bool) -> Pool {
    let mut pool: Pool = serde_json::from_value(json!({
        "reference": "ci/runners", "flake_ref": "/flake", "profile": "p", "created_at": 1,
        "resources": { "vcpus": 1, "mem_mib": 256, "data_disk_mib": 0 },
        "revisions": [], "recycle": "keep",
    }))
    .expect("a pool");
    if built {
        let RevisionEntry { number, .. } =
            pool.record_build(Digest::of("0123"), Timestamp::from_millis(2));
        assert_eq!(number, 1);
    }
    pool
}

fn text() -> impl Strategy<Value = Option<String>> {
    option::of(prop_oneof![
        Just(String::new()),
        Just("-x".to_owned()),
        Just("a\nb".to_owned()),
        "[a-z./]{1,12}",
    ])
}

fn patches() -> impl Strategy<Value = UpdatePool> {
    let mem_mib = option::of(prop_oneof![Just(0), Just(256), 64u64..4096, Just(u64::MAX)]);
    let vcpus = option::of(prop_oneof![Just(0), 1u32..16, Just(u32::MAX)]);
    let inputs = option::of(proptest::collection::btree_map("[a-z]{1,3}", "[a-z]{1,3}", 0..2));
    let linger_s = option::of(any::<u64>());
    let command = option::of("[a-z]{0,4}");
    (text(), text(), vcpus, mem_mib, inputs, linger_s, command).prop_map(
        |(flake_ref, profile, vcpus, mem_mib, override_inputs, linger_s, prewarm)| UpdatePool {
            flake_ref,
            profile,
            vcpus,
            mem_mib: mem_mib.map(Mib),
            override_inputs,
            prewarm,
            runtime_policy: PolicyPatch { linger_s, ..PolicyPatch::default() },
            ..UpdatePool::default()
        },
    )
}

#[test]
fn an_empty_patch_changes_nothing() {
    for built in [false, true] {
        assert_eq!(pool(built).apply(UpdatePool::default()).expect("applied"), pool(built));
    }
}

#[test]
fn an_empty_command_ends_the_prewarming() {
    let with = UpdatePool { prewarm: Some("make".to_owned()), ..UpdatePool::default() };
    let with = pool(true).apply(with).expect("applied");
    assert_eq!(with.prewarm.as_deref(), Some("make"));
    let without = UpdatePool { prewarm: Some(String::new()), ..UpdatePool::default() };
    assert_eq!(with.apply(without).expect("applied").prewarm, None);
}

proptest! {
    /// What a patch names is in force or refused, all else stays, and an image is stale exactly where
    /// its source has changed.
    #[test]
    fn a_patch_is_in_force_as_a_whole_or_refused(built: bool, patch in patches()) {
        let before = pool(built);
        let Ok(after) = before.apply(patch.clone()) else { return Ok(()) };
        prop_assert_eq!(&after.flake_ref, patch.flake_ref.as_ref().unwrap_or(&before.flake_ref));
        prop_assert_eq!(&after.profile, patch.profile.as_ref().unwrap_or(&before.profile));
        prop_assert!(!after.flake_ref.is_empty() && !after.flake_ref.starts_with('-'));
        prop_assert_eq!(after.resources.vcpus, patch.vcpus.unwrap_or(before.resources.vcpus));
        prop_assert_eq!(after.resources.mem_mib, patch.mem_mib.unwrap_or(before.resources.mem_mib));
        prop_assert!(after.resources.validate().is_ok() && after.runtime_policy.validate().is_ok());
        let same = after.flake_ref == before.flake_ref
            && after.profile == before.profile
            && after.override_inputs == before.override_inputs;
        prop_assert_eq!(after.stale, built && !same);
        prop_assert_eq!((after.recycle, after.current), (Recycle::Keep, before.current));
        // The same patch once more changes nothing.
        prop_assert_eq!(after.apply(patch).expect("applied before"), after);
    }
}
