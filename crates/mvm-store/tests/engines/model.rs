//! Compares any history of transactions with a map.

use crate::support::{check, delete, put};
use mvm_store::{Error, Expect, Range, Store, Write};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A condition, in terms of what the model knows.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Any,
    Absent,
    AsItIs,
    AsItNeverWas,
}

#[derive(Clone, Debug)]
struct Step {
    /// Each write: 0 put, 1 delete, 2 check; then the key and the condition.
    writes: Vec<(u8, u8, Wanted)>,
    value: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let wanted = prop_oneof![
        4 => Just(Wanted::Any),
        1 => Just(Wanted::Absent),
        3 => Just(Wanted::AsItIs),
        1 => Just(Wanted::AsItNeverWas),
    ];
    (prop::collection::vec((0..3u8, 0..5u8, wanted), 1..4), any::<u8>())
        .prop_map(|(writes, value)| Step { writes, value })
}

type Model = BTreeMap<String, (String, u64)>;

/// Returns the write, and whether its condition holds.
fn write(model: &Model, (kind, key, wanted): (u8, u8, Wanted), value: u8) -> (Write, bool) {
    let key = format!("{}/{key}", if key < 3 { "a" } else { "b" });
    let found = model.get(&key).map(|(_, revision)| *revision);
    let (expect, holds) = match (wanted, found) {
        (Wanted::Any, _) => (Expect::Any, true),
        (Wanted::Absent, found) => (Expect::Absent, found.is_none()),
        (Wanted::AsItIs, Some(revision)) => (Expect::Revision(revision), true),
        (Wanted::AsItIs, None) => (Expect::Absent, true),
        (Wanted::AsItNeverWas, _) => (Expect::Revision(1 << 40), false),
    };
    let write = match kind {
        0 => put(&key, &value.to_string(), expect),
        1 => delete(&key, expect),
        _ => check(&key, expect),
    };
    (write, holds)
}

async fn behaves_like_a_map(store: &dyn Store, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let failed = |error: Error| TestCaseError::fail(error.to_string());
    let mut model = Model::new();
    let mut last = store.revision().await.map_err(failed)?;
    for step in steps {
        let made: Vec<_> = step.writes.iter().map(|w| write(&model, *w, step.value)).collect();
        let holds = made.iter().all(|(_, holds)| *holds);
        let writes: Vec<Write> = made.into_iter().map(|(write, _)| write).collect();
        match store.commit(writes.clone()).await {
            Ok(revision) => {
                prop_assert!(holds && revision >= last);
                last = revision;
                for write in writes {
                    match write {
                        Write::Put { key, value, .. } => {
                            let value = String::from_utf8_lossy(&value).into_owned();
                            model.insert(key, (value, revision));
                        }
                        Write::Delete { key, .. } => drop(model.remove(&key)),
                        _ => {}
                    }
                }
            }
            Err(Error::Conflict { .. }) => prop_assert!(!holds),
            Err(error) => return Err(failed(error)),
        }
        for prefix in ["", "a/", "b/1", "c"] {
            let listing = store.range(Range::all(prefix)).await.map_err(failed)?;
            prop_assert!(listing.revision >= last);
            let listed: Model = listing
                .records
                .into_iter()
                .map(|r| (r.key, (String::from_utf8_lossy(&r.value).into_owned(), r.revision)))
                .collect();
            let expected: Model = model
                .iter()
                .filter(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            prop_assert_eq!(listed, expected);
        }
    }
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
}

fn run(cases: u32, case: impl Fn(Vec<Step>) -> Result<(), TestCaseError>) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let steps = prop::collection::vec(step(), 1..25);
    proptest::test_runner::TestRunner::new(config).run(&steps, case).expect("every history");
}

#[test]
fn sqlite_behaves_like_a_map() {
    let runtime = runtime();
    run(40, |steps| {
        let (store, _dir) = crate::support::sqlite();
        runtime.block_on(behaves_like_a_map(&*store, steps))
    });
}

#[test]
fn etcd_behaves_like_a_map() {
    let runtime = runtime();
    let (_first, _cluster) = runtime.block_on(crate::support::etcd());
    run(20, |steps| {
        runtime.block_on(async {
            // Each history gets a prefix of its own, so that none sees another's records.
            let (store, _cluster) = crate::support::etcd().await;
            behaves_like_a_map(&*store, steps).await
        })
    });
}
