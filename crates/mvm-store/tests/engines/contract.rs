//! Transactions, conditions and lists.

use crate::support::{check, delete, keys, on_both_engines, put, soon, text};
use mvm_model::Code;
use mvm_store::{Error, Expect, Range, Store};
use std::sync::Arc;

on_both_engines!(
    conditions_decide,
    a_conflict_writes_nothing,
    the_last_write_of_a_key_counts,
    a_counter_loses_no_increment,
    pages_give_everything_once,
);

async fn conditions_decide(store: Arc<dyn Store>) {
    let first = store.commit(vec![put("a", "1", Expect::Absent)]).await.expect("absent");
    let record = store.get("a").await.expect("get").expect("there");
    assert_eq!((record.revision, record.session), (first, None));
    let found = |error: Error| match error {
        Error::Conflict { key, found, .. } => (key, found),
        other => panic!("{other}"),
    };
    let refused =
        store.commit(vec![put("a", "2", Expect::Absent)]).await.expect_err("there is one");
    assert_eq!(found(refused), ("a".to_owned(), first));
    let refused =
        store.commit(vec![delete("a", Expect::Revision(first + 1))]).await.expect_err("other");
    assert_eq!(found(refused), ("a".to_owned(), first));
    let refused = store.commit(vec![delete("b", Expect::Revision(first))]).await.expect_err("none");
    assert_eq!(found(refused), ("b".to_owned(), 0));
    let second = store.commit(vec![put("a", "2", Expect::Revision(first))]).await.expect("same");
    assert!(second > first);
    store
        .commit(vec![check("a", Expect::Revision(second)), put("b", "1", Expect::Any)])
        .await
        .expect("the check holds");
    let refused = store
        .commit(vec![put("b", "2", Expect::Any), check("a", Expect::Absent)])
        .await
        .expect_err("the check does not hold");
    assert_eq!(found(refused), ("a".to_owned(), second));
    store.commit(vec![delete("c", Expect::Any)]).await.expect("nothing to remove");
    store.commit(vec![delete("a", Expect::Revision(second))]).await.expect("same");
    assert_eq!((text(&*store, "a").await, text(&*store, "b").await), (None, Some("1".to_owned())));
    assert!(store.revision().await.expect("revision") > second);
}

async fn a_conflict_writes_nothing(store: Arc<dyn Store>) {
    store.commit(vec![put("taken", "x", Expect::Any)]).await.expect("put");
    let writes = vec![
        put("one", "1", Expect::Absent),
        put("taken", "2", Expect::Absent),
        put("three", "3", Expect::Any),
    ];
    assert_eq!(store.commit(writes).await.expect_err("conflict").code(), Code::StoreConflict);
    assert_eq!(keys(&*store, "").await, ["taken"]);
    assert_eq!(text(&*store, "taken").await.as_deref(), Some("x"));
}

async fn the_last_write_of_a_key_counts(store: Arc<dyn Store>) {
    // Both conditions are about the state before the transaction.
    let writes = vec![put("a", "1", Expect::Absent), put("a", "2", Expect::Absent)];
    store.commit(writes).await.expect("absent before");
    assert_eq!(text(&*store, "a").await.as_deref(), Some("2"));
    let writes = vec![put("a", "3", Expect::Any), delete("a", Expect::Any)];
    store.commit(writes).await.expect("commit");
    assert_eq!(text(&*store, "a").await, None);
}

async fn a_counter_loses_no_increment(store: Arc<dyn Store>) {
    const TASKS: u64 = 6;
    const EACH: u64 = 15;
    store.commit(vec![put("count", "0", Expect::Absent)]).await.expect("begin");
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            for turn in 0..EACH {
                loop {
                    let record = store.get("count").await.expect("get").expect("there");
                    let count: u64 =
                        String::from_utf8_lossy(&record.value).parse().expect("number");
                    let writes = vec![
                        put("count", &(count + 1).to_string(), Expect::Revision(record.revision)),
                        put(&format!("done/{task}/{turn}"), "", Expect::Absent),
                    ];
                    match store.commit(writes).await {
                        Ok(_) => break,
                        Err(Error::Conflict { key, .. }) => assert_eq!(key, "count"),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
    }
    soon(tasks.join_all()).await;
    assert_eq!(text(&*store, "count").await, Some((TASKS * EACH).to_string()));
    assert_eq!(keys(&*store, "done/").await.len() as u64, TASKS * EACH);
}

async fn pages_give_everything_once(store: Arc<dyn Store>) {
    // More records than the etcd engine requests at once.
    const ALL: usize = 4321;
    let key = |n: usize| format!("instances/{n:06}");
    for chunk in (0..ALL).collect::<Vec<_>>().chunks(100) {
        let writes = chunk.iter().map(|n| put(&key(*n), &n.to_string(), Expect::Absent)).collect();
        store.commit(writes).await.expect("fill");
    }
    let beside = vec![put("instance", "", Expect::Any), put("instances0", "", Expect::Any)];
    let revision = store.commit(beside).await.expect("beside");
    let whole = store.range(Range::all("instances/")).await.expect("all");
    assert!(whole.revision >= revision && whole.next.is_none());
    let expected: Vec<String> = (0..ALL).map(key).collect();
    assert_eq!(whole.records.iter().map(|r| r.key.clone()).collect::<Vec<_>>(), expected);
    let mut range = Range { limit: Some(1000), ..Range::all("instances/") };
    let mut paged = Vec::new();
    loop {
        let page = store.range(range.clone()).await.expect("page");
        assert!(page.records.len() <= 1000);
        paged.extend(page.records);
        let Some(next) = page.next else { break };
        range.from = next;
    }
    assert_eq!(paged, whole.records);
    let rest = store.list_from("instances/", &key(4300)).await.expect("rest");
    assert_eq!(rest.len(), ALL - 4300);
    let last = store.last("instances/").await.expect("last").expect("there");
    assert_eq!(last.key, key(ALL - 1));
    let exactly = Range { limit: Some(ALL), ..Range::all("instances/") };
    let exactly = store.range(exactly).await.expect("page");
    assert_eq!((exactly.records.len(), exactly.next), (ALL, None));
}
