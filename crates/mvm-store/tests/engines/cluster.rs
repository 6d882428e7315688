//! What a cluster must survive: members that die, hang and come back; strangers; limits.

use crate::support::{SOON, keys, put, soon, text};
use futures::StreamExt;
use mvm_model::Code;
use mvm_store::testing::{Authority, EtcdCluster};
use mvm_store::{EtcdOptions, EtcdStore, EtcdTls, Expect, Session, Store};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Writes `k/0`, `k/1` and so on, each once, until `stop` is set; counts them in `done`.
async fn write_all_the_time(store: Arc<dyn Store>, stop: Arc<AtomicBool>, done: Arc<AtomicU32>) {
    while !stop.load(Ordering::Relaxed) {
        let key = format!("k/{}", done.load(Ordering::Relaxed));
        store.commit(vec![put(&key, "", Expect::Absent)]).await.expect("commit");
        done.fetch_add(1, Ordering::Relaxed);
    }
}

async fn at_least(done: &AtomicU32, more: u32) {
    let goal = done.load(Ordering::Relaxed) + more;
    soon(async {
        while done.load(Ordering::Relaxed) < goal {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Each of three members in turn dies, comes back, hangs and goes on: no write fails or takes
/// effect twice, a watch that began before sees each once, and a session lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_of_three_may_die_or_hang() {
    let mut cluster = EtcdCluster::start(3);
    cluster.store("t").await;
    let options = EtcdOptions {
        request_timeout: Duration::from_secs(2),
        patience: SOON,
        ..cluster.options("t")
    };
    let store: Arc<dyn Store> = Arc::new(EtcdStore::connect(options).await.expect("connect"));
    let session = Session::open(store.clone(), Duration::from_secs(30)).await.expect("session");
    let now = store.revision().await.expect("revision");
    let mut watch = store.watch("k/", now).await.expect("watch");
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let writer = tokio::spawn(write_all_the_time(store.clone(), stop.clone(), done.clone()));
    let watcher = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|key| key != "k/end") {
            let changes = soon(watch.next()).await.expect("more").expect("changes");
            seen.extend(changes.into_iter().map(|change| change.key));
        }
        seen
    });
    for member in 0..3 {
        at_least(&done, 20).await;
        cluster.kill(member);
        at_least(&done, 20).await;
        cluster.restart(member);
        at_least(&done, 20).await;
        cluster.freeze(member);
        at_least(&done, 20).await;
        cluster.thaw(member);
    }
    stop.store(true, Ordering::Relaxed);
    soon(writer).await.expect("the writer");
    store.commit(vec![put("k/end", "", Expect::Absent)]).await.expect("commit");
    let seen = soon(watcher).await.expect("the watcher");
    assert!(session.is_live());
    let written = keys(&*store, "k/").await;
    assert_eq!(written.len() as u32, done.load(Ordering::Relaxed) + 1);
    let unique: BTreeSet<&String> = seen.iter().collect();
    assert_eq!((unique.len(), seen.len()), (written.len(), written.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_it_says_so_and_recovers() {
    let mut cluster = EtcdCluster::start(3);
    let patient = cluster.store("t").await;
    patient.commit(vec![put("a", "1", Expect::Any)]).await.expect("commit");
    let options = EtcdOptions {
        request_timeout: Duration::from_millis(500),
        patience: Duration::from_secs(1),
        ..cluster.options("t")
    };
    let store = EtcdStore::connect(options).await.expect("connect");
    for member in 0..3 {
        cluster.kill(member);
    }
    let error = soon(store.get("a")).await.expect_err("nobody is there");
    assert_eq!(error.code(), Code::StoreUnreachable);
    let error = soon(store.commit(vec![put("a", "2", Expect::Any)])).await.expect_err("nobody");
    assert!(error.is_transient(), "{error}");
    for member in 0..3 {
        cluster.restart(member);
    }
    assert_eq!(text(&patient, "a").await.as_deref(), Some("1"));
    patient.commit(vec![put("a", "3", Expect::Any)]).await.expect("commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_on_both_sides() {
    let cluster = EtcdCluster::start(1);
    let store = cluster.store("t").await;
    store.commit(vec![put("a", "1", Expect::Any)]).await.expect("commit");
    let dir = tempfile::tempdir().expect("dir");
    let foreign = Authority::new(dir.path());
    let (certificate, key) = foreign.sign("client", &[]);
    let ours = cluster.options("t").tls.expect("tls");
    let connect = |tls: EtcdTls| {
        let patience = Duration::from_secs(1);
        EtcdStore::connect(EtcdOptions { tls: Some(tls), patience, ..cluster.options("t") })
    };
    let stranger = EtcdTls { certificate, key, ..ours.clone() };
    assert!(soon(connect(stranger)).await.is_err(), "the cluster does not know our authority");
    let impostor = EtcdTls { authority: foreign.path(), ..ours.clone() };
    let error = soon(connect(impostor)).await.err().expect("we do not know its authority");
    assert!(error.to_string().contains("certificate"), "{error}");
    let absent = EtcdTls { key: dir.path().join("none"), ..ours };
    let error = soon(connect(absent)).await.err().expect("no key");
    assert!(error.to_string().contains("none"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleets_share_a_cluster() {
    let cluster = EtcdCluster::start(1);
    let (one, ten) = (cluster.store("fleet/1").await, cluster.store("fleet/10").await);
    one.commit(vec![put("a", "1", Expect::Absent)]).await.expect("commit");
    ten.commit(vec![put("a", "10", Expect::Absent)]).await.expect("commit");
    assert_eq!(text(&one, "a").await.as_deref(), Some("1"));
    assert_eq!(keys(&ten, "").await, ["a"]);
    let mut watch = ten.watch("", 0).await.expect("watch");
    let told = soon(watch.next()).await.expect("more").expect("changes");
    assert_eq!(told[0].value.as_deref(), Some(&b"10"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_whole() {
    let (store, _cluster) = crate::support::etcd().await;
    let many = (0..200).map(|n| put(&format!("k/{n}"), "", Expect::Any)).collect();
    assert_eq!(store.commit(many).await.expect_err("too many").code(), Code::StoreTooLarge);
    let large = "x".repeat(2 << 20);
    let error = store.commit(vec![put("k/large", &large, Expect::Any)]).await.expect_err("large");
    assert_eq!(error.code(), Code::StoreTooLarge);
    assert!(keys(&*store, "").await.is_empty());
    store.commit(vec![put("k/1", "", Expect::Any)]).await.expect("goes on");
}
