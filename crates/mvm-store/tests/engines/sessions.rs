//! Records that vanish with their session.

use crate::support::{on_both_engines, put, soon, text};
use futures::StreamExt;
use mvm_model::Code;
use mvm_store::{Expect, Session, SessionId, Store, Write};
use std::sync::Arc;
use std::time::Duration;

/// Short, but no shorter than etcd allows.
const TTL: Duration = Duration::from_secs(2);

on_both_engines!(
    records_vanish_with_their_session,
    a_kept_session_lives,
    a_closed_session_ends_at_once,
    a_record_can_leave_its_session,
);

fn hold(key: &str, session: SessionId) -> Write {
    let value = b"here".to_vec();
    Write::Hold { key: key.to_owned(), value, expect: Expect::Any, session }
}

async fn removed(store: &dyn Store, key: &str) {
    soon(async {
        let listing = store.range(mvm_store::Range::all(key)).await.expect("list");
        if listing.records.is_empty() {
            return;
        }
        let mut watch = store.watch(key, listing.revision).await.expect("watch");
        while watch.next().await.expect("more").expect("changes")[0].value.is_some() {}
    })
    .await;
    assert_eq!(text(store, key).await, None);
}

async fn records_vanish_with_their_session(store: Arc<dyn Store>) {
    let session = store.open_session(TTL).await.expect("open");
    let held = vec![hold("nodes/a", session), put("stays", "1", Expect::Any)];
    store.commit(held).await.expect("hold");
    assert_eq!(store.get("nodes/a").await.expect("get").expect("there").session, Some(session));
    removed(&*store, "nodes/a").await;
    assert_eq!(text(&*store, "stays").await.as_deref(), Some("1"));
    let late = store.keep_session(session).await.expect_err("too late");
    assert_eq!(late.code(), Code::SessionEnded);
    let writes = vec![put("other", "1", Expect::Any), hold("nodes/a", session)];
    assert_eq!(store.commit(writes).await.expect_err("too late").code(), Code::SessionEnded);
    assert_eq!(text(&*store, "other").await, None);
    store.end_session(session).await.expect("ending twice is no error");
}

async fn a_kept_session_lives(store: Arc<dyn Store>) {
    let session = Session::open(store.clone(), TTL).await.expect("open");
    store.commit(vec![hold("nodes/a", session.id())]).await.expect("hold");
    tokio::time::sleep(TTL * 3).await;
    assert!(session.is_live());
    assert_eq!(text(&*store, "nodes/a").await.as_deref(), Some("here"));
    drop(session);
    removed(&*store, "nodes/a").await;
}

async fn a_closed_session_ends_at_once(store: Arc<dyn Store>) {
    let session = Session::open(store.clone(), Duration::from_secs(3600)).await.expect("open");
    let id = session.id();
    store.commit(vec![hold("nodes/a", id), hold("nodes/b", id)]).await.expect("hold");
    session.close().await.expect("close");
    assert!(store.list("nodes/").await.expect("list").is_empty());
    // A session that another process ends is reported as ended.
    let session = Session::open(store.clone(), TTL).await.expect("open");
    store.end_session(session.id()).await.expect("end");
    soon(session.ended()).await;
    assert!(!session.is_live());
}

async fn a_record_can_leave_its_session(store: Arc<dyn Store>) {
    let session = store.open_session(TTL).await.expect("open");
    store.commit(vec![hold("a", session), hold("b", session)]).await.expect("hold");
    store.commit(vec![put("a", "mine", Expect::Any)]).await.expect("put");
    store.end_session(session).await.expect("end");
    assert_eq!(text(&*store, "a").await.as_deref(), Some("mine"));
    assert_eq!(text(&*store, "b").await, None);
}

#[tokio::test]
async fn sessions_of_a_file_live_on_and_end_when_it_is_opened_again() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("fleet.db");
    let store = mvm_store::SqliteStore::open(&path).expect("open");
    let session = store.open_session(TTL).await.expect("open");
    store.commit(vec![hold("nodes/a", session)]).await.expect("hold");
    drop(store);
    let store = soon(async {
        loop {
            match mvm_store::SqliteStore::open(&path) {
                Ok(store) => return store,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    store.keep_session(session).await.expect("it lives on");
    removed(&store, "nodes/a").await;
    let next = store.open_session(TTL).await.expect("open");
    assert!(next > session, "an id is never used twice");
}
