//! Watches report whole transactions without gaps, and say so when changes are gone.

use crate::support::{delete, keys, on_both_engines, put, soon};
use futures::StreamExt;
use mvm_model::Code;
use mvm_store::testing::EtcdCluster;
use mvm_store::{Expect, Followed, Store, Watch, follow};
use std::collections::BTreeMap;
use std::sync::Arc;

on_both_engines!(
    a_watch_tells_whole_transactions,
    a_watch_begins_in_the_past,
    list_and_watch_have_no_gap,
    a_follower_is_told_everything,
);

async fn next(watch: &mut Watch) -> Vec<(String, Option<String>)> {
    let changes = soon(watch.next()).await.expect("more").expect("changes");
    let revision = changes[0].revision;
    assert!(changes.iter().all(|change| change.revision == revision));
    let text = |value| String::from_utf8(value).expect("text");
    let mut told: Vec<_> =
        changes.into_iter().map(|change| (change.key, change.value.map(text))).collect();
    told.sort();
    told
}

fn said(key: &str, value: Option<&str>) -> (String, Option<String>) {
    (key.to_owned(), value.map(str::to_owned))
}

async fn a_watch_tells_whole_transactions(store: Arc<dyn Store>) {
    let now = store.revision().await.expect("revision");
    let mut watch = store.watch("a/", now).await.expect("watch");
    let writes = vec![
        put("a/1", "x", Expect::Any),
        put("b/1", "y", Expect::Any),
        put("a/2", "z", Expect::Any),
    ];
    store.commit(writes).await.expect("commit");
    assert_eq!(next(&mut watch).await, [said("a/1", Some("x")), said("a/2", Some("z"))]);
    store.commit(vec![put("b/2", "", Expect::Any)]).await.expect("commit");
    let writes = vec![delete("a/1", Expect::Any), delete("a/0", Expect::Any)];
    store.commit(writes).await.expect("commit");
    assert_eq!(next(&mut watch).await, [said("a/1", None)]);
}

async fn a_watch_begins_in_the_past(store: Arc<dyn Store>) {
    let first = store.commit(vec![put("a/1", "1", Expect::Any)]).await.expect("commit");
    store.commit(vec![put("a/2", "2", Expect::Any)]).await.expect("commit");
    store.commit(vec![delete("a/1", Expect::Any)]).await.expect("commit");
    let mut watch = store.watch("a/", first).await.expect("watch");
    assert_eq!(next(&mut watch).await, [said("a/2", Some("2"))]);
    assert_eq!(next(&mut watch).await, [said("a/1", None)]);
    let mut all = store.watch("a/", first - 1).await.expect("watch");
    assert_eq!(next(&mut all).await, [said("a/1", Some("1"))]);
}

/// Writers write all the time; every list with its watch must reach the same final state.
async fn list_and_watch_have_no_gap(store: Arc<dyn Store>) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..3 {
        let store = store.clone();
        writers.spawn(async move {
            for turn in 0..60 {
                let key = format!("k/{writer}/{}", turn % 7);
                let write = if turn % 3 == 2 {
                    delete(&key, Expect::Any)
                } else {
                    put(&key, &turn.to_string(), Expect::Any)
                };
                store.commit(vec![write]).await.expect("commit");
            }
        });
    }
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        readers.spawn(async move {
            let listing = store.range(mvm_store::Range::all("k/")).await.expect("list");
            let mut seen: BTreeMap<_, _> =
                listing.records.into_iter().map(|r| (r.key, (r.value, r.revision))).collect();
            let mut watch = store.watch("k/", listing.revision).await.expect("watch");
            let mut last = listing.revision;
            while !seen.contains_key("k/end") {
                for change in soon(watch.next()).await.expect("more").expect("changes") {
                    assert!(change.revision >= last, "{} after {last}", change.revision);
                    last = change.revision;
                    match change.value {
                        Some(value) => seen.insert(change.key, (value, change.revision)),
                        None => seen.remove(&change.key),
                    };
                }
            }
            seen
        });
        tokio::task::yield_now().await;
    }
    soon(writers.join_all()).await;
    store.commit(vec![put("k/end", "", Expect::Any)]).await.expect("end");
    let truth: BTreeMap<_, _> = store
        .list("k/")
        .await
        .expect("list")
        .into_iter()
        .map(|r| (r.key, (r.value, r.revision)))
        .collect();
    for seen in soon(readers.join_all()).await {
        assert_eq!(seen, truth);
    }
}

async fn a_follower_is_told_everything(store: Arc<dyn Store>) {
    store.commit(vec![put("f/1", "1", Expect::Any)]).await.expect("commit");
    let mut followed = follow(store.clone(), "f/");
    let Followed::All { records, .. } = soon(followed.next()).await.expect("all").expect("all")
    else {
        panic!("first comes everything");
    };
    assert_eq!(records.len(), 1);
    store.commit(vec![put("f/2", "2", Expect::Any)]).await.expect("commit");
    match soon(followed.next()).await.expect("more").expect("change") {
        Followed::Changed(changes) => assert_eq!(changes[0].key, "f/2"),
        Followed::All { .. } => panic!("nothing was missed"),
    }
    assert_eq!(keys(&*store, "f/").await.len(), 2);
}

/// The embedded engine keeps a few megabytes of changes: a watch further behind must list again.
#[tokio::test]
async fn a_slow_reader_of_sqlite_is_told_that_changes_are_gone() {
    let (store, _dir) = crate::support::sqlite();
    let mut watch = store.watch("", 0).await.expect("watch");
    let mut followed = follow(store.clone(), "");
    assert!(matches!(followed.next().await, Some(Ok(Followed::All { .. }))));
    for n in 0..20 {
        let value = "x".repeat(1 << 20);
        store.commit(vec![put(&format!("{n}"), &value, Expect::Any)]).await.expect("commit");
    }
    let error = watch.next().await.expect("told").expect_err("gone");
    assert_eq!(error.code(), Code::StoreCompacted);
    assert!(watch.next().await.is_none());
    match followed.next().await {
        Some(Ok(Followed::All { records, .. })) => assert_eq!(records.len(), 20),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_etcd_from_before_a_compaction_is_told_so() {
    let cluster = EtcdCluster::start(1);
    let store = cluster.store("test").await;
    let first = store.commit(vec![put("a", "1", Expect::Any)]).await.expect("commit");
    for n in 0..5 {
        store.commit(vec![put("a", &n.to_string(), Expect::Any)]).await.expect("commit");
    }
    cluster.compact(store.revision().await.expect("revision")).await;
    let mut watch = store.watch("a", first).await.expect("watch");
    let error = soon(watch.next()).await.expect("told").expect_err("gone");
    assert_eq!(error.code(), Code::StoreCompacted);
    assert!(watch.next().await.is_none());
}
