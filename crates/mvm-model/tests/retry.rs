//! What a fleet's client does with each error.

use mvm_model::retry::{Fate, Next, fate, pause, retry};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Every code that docs/errors.md names.
fn codes() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let page = std::fs::read_to_string(page).expect("docs/errors.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let words = rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`'));
    let is_code =
        |w: &&str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    words.filter(is_code).map(str::to_owned).collect()
}

#[test]
fn each_documented_error_has_one_fate() {
    let of = |wanted: Fate| -> Vec<String> {
        codes().into_iter().filter(|code| fate(code) == wanted).collect()
    };
    assert_eq!(
        of(Fate::NotDone),
        [
            "agent_unreachable",
            "coordinator_unreachable",
            "leader_changed",
            "no_leader",
            "node_unreachable",
            "not_ready",
            "store_unreachable"
        ]
    );
    assert_eq!(
        of(Fate::Unknown),
        [
            "agent_silent",
            "claim_under_way",
            "connection_broken",
            "idempotency_key_in_use",
            "session_lost",
            "store_unknown"
        ]
    );
    // All others are answers: a quota that is exceeded is exceeded a second later.
    assert!(of(Fate::Final).len() > 60, "{:?}", of(Fate::Final));
}

#[test]
fn what_was_not_carried_out_is_asked_again_whatever_it_is() {
    let zero = Duration::ZERO;
    for repeatable in [false, true] {
        assert_eq!(retry("no_leader", repeatable, zero, PATIENCE), Next::Wait);
        assert_eq!(retry("quota_exceeded", repeatable, zero, PATIENCE), Next::Fail);
    }
    // What may have been carried out is asked again only where that does no harm.
    assert_eq!(retry("connection_broken", true, zero, PATIENCE), Next::Wait);
    assert_eq!(retry("connection_broken", false, zero, PATIENCE), Next::Fail);
}

proptest! {
    #[test]
    fn patience_ends(code in "[a-z_]{1,20}", repeatable: bool, over in 0_u64..1_000_000) {
        let elapsed = PATIENCE + Duration::from_millis(over);
        prop_assert_eq!(retry(&code, repeatable, elapsed, PATIENCE), Next::Fail);
        prop_assert_eq!(retry(&code, repeatable, Duration::ZERO, Duration::ZERO), Next::Fail);
    }

    #[test]
    fn what_may_be_repeated_waits_at_least_where_the_other_does(index: prop::sample::Index) {
        let codes: Vec<String> = codes().into_iter().collect();
        let code = index.get(&codes);
        if retry(code, false, Duration::ZERO, PATIENCE) == Next::Wait {
            prop_assert_eq!(retry(code, true, Duration::ZERO, PATIENCE), Next::Wait);
        }
    }

    #[test]
    fn pauses_grow_to_a_second(count: u32) {
        prop_assert!(pause(count) <= pause(count.saturating_add(1)));
        prop_assert!((100..=1000).contains(&(pause(count).as_millis() as u64)));
    }
}
