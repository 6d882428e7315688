//! There is at most one leader, and a deposed one's writes fail.

use crate::support::{on_both_engines, put, soon, text};
use futures::StreamExt;
use mvm_store::{Election, Error, Expect, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const TTL: Duration = Duration::from_secs(2);

on_both_engines!(
    candidates_lead_one_after_another,
    a_dead_leader_is_followed,
    a_deposed_leader_is_fenced,
);

async fn candidates_lead_one_after_another(store: Arc<dyn Store>) {
    let leading = Arc::new(AtomicU32::new(0));
    let mut candidates = tokio::task::JoinSet::new();
    for candidate in 0..5 {
        let (election, leading) = (Election::new(store.clone(), "leader"), leading.clone());
        let store = store.clone();
        candidates.spawn(async move {
            let name = format!("c{candidate}");
            let leadership = election.campaign(name.as_bytes(), TTL).await.expect("campaign");
            assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two lead");
            let writes = vec![leadership.fence(), put("who", &name, Expect::Any)];
            store.commit(writes).await.expect("the leader may write");
            tokio::task::yield_now().await;
            assert!(leadership.is_held());
            leading.fetch_sub(1, Ordering::SeqCst);
            let since = leadership.since();
            leadership.resign().await.expect("resign");
            since
        });
    }
    let mut since = soon(candidates.join_all()).await;
    since.sort_unstable();
    since.dedup();
    assert_eq!(since.len(), 5, "each has a revision of its own");
}

async fn a_dead_leader_is_followed(store: Arc<dyn Store>) {
    let election = Election::new(store.clone(), "leader");
    let mut observed = election.observe();
    assert_eq!(soon(observed.next()).await.expect("told").expect("told"), None);
    let first = election.campaign(b"first", TTL).await.expect("campaign");
    let leader = soon(observed.next()).await.expect("told").expect("told").expect("one leads");
    assert_eq!((leader.candidate.as_slice(), leader.since), (&b"first"[..], first.since()));
    let waiting = tokio::spawn({
        let election = election.clone();
        async move { election.campaign(b"second", TTL).await }
    });
    // As if its process had died: nothing keeps the session alive.
    drop(first);
    let second = soon(waiting).await.expect("task").expect("campaign");
    assert_eq!(soon(observed.next()).await.expect("told").expect("told"), None);
    let leader = soon(observed.next()).await.expect("told").expect("told").expect("one leads");
    assert_eq!((leader.candidate.as_slice(), leader.since), (&b"second"[..], second.since()));
}

async fn a_deposed_leader_is_fenced(store: Arc<dyn Store>) {
    let election = Election::new(store.clone(), "leader");
    let first = election.campaign(b"first", TTL).await.expect("campaign");
    let record = store.get("elections/leader").await.expect("get").expect("there");
    store.commit(vec![first.fence(), put("x", "first", Expect::Any)]).await.expect("leads");
    // The session ends behind its holder's back, as by an operator, or when the store cannot be
    // reached.
    store.end_session(record.session.expect("held")).await.expect("end");
    let second = soon(election.campaign(b"second", TTL)).await.expect("campaign");
    assert!(second.since() > first.since());
    let writes = vec![first.fence(), put("x", "stale", Expect::Any)];
    match store.commit(writes).await.expect_err("deposed") {
        Error::Conflict { key, found, .. } => {
            assert_eq!((key.as_str(), found), ("elections/leader", second.since()));
        }
        other => panic!("{other}"),
    }
    soon(first.lost()).await;
    assert!(!first.is_held() && second.is_held());
    store.commit(vec![second.fence(), put("x", "second", Expect::Any)]).await.expect("leads");
    assert_eq!(text(&*store, "x").await.as_deref(), Some("second"));
}
