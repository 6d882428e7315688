//! Requests and answers are lost on the way: a commit takes effect once or not at all, and says
//! which.

use crate::support::{SOON, keys, put, soon};
use futures::StreamExt;
use mvm_model::Code;
use mvm_store::testing::{EtcdCluster, Loses, Proxy};
use mvm_store::{Error, EtcdOptions, EtcdStore, Expect, Store, Write};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

fn address(endpoint: &str) -> SocketAddr {
    endpoint.trim_start_matches("https://").parse().expect("address")
}

/// Returns a store that first talks to the member through the proxy, and then to those of `others`.
async fn through(
    cluster: &EtcdCluster,
    proxy: &Proxy,
    others: &[String],
    patience: Duration,
) -> Arc<EtcdStore> {
    let mut endpoints = vec![format!("https://{}", proxy.address())];
    endpoints.extend_from_slice(others);
    let request_timeout = Duration::from_millis(500);
    let options = EtcdOptions { endpoints, request_timeout, patience, ..cluster.options("t") };
    // The cluster may still be starting.
    cluster.store("t").await;
    Arc::new(EtcdStore::connect(options).await.expect("connect"))
}

/// Waits until the record exists, as seen past the proxy; returns its revision.
async fn arrives(store: &dyn Store, key: &str) -> u64 {
    soon(async {
        loop {
            if let Some(record) = store.get(key).await.expect("get") {
                return record.revision;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Counts how often each key below `prefix` was put.
async fn puts(store: &dyn Store, prefix: &str, end: &str) -> BTreeMap<String, u32> {
    store.commit(vec![put(end, "", Expect::Any)]).await.expect("end");
    let mut watch = store.watch("", 0).await.expect("watch");
    let mut puts = BTreeMap::new();
    loop {
        for change in soon(watch.next()).await.expect("more").expect("changes") {
            if change.key == end {
                return puts;
            }
            if change.key.starts_with(prefix) && change.value.is_some() {
                *puts.entry(change.key).or_default() += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_found_out() {
    let cluster = EtcdCluster::start(1);
    let direct = cluster.store("t").await;
    let proxy = Proxy::start(address(&cluster.endpoints()[0])).await;
    let store = through(&cluster, &proxy, &[], SOON).await;
    store.commit(vec![put("warm", "", Expect::Any)]).await.expect("a marker is there");
    for (key, expect) in [("absent", Expect::Absent), ("any", Expect::Any)] {
        proxy.set(Loses::Answers);
        let commit = tokio::spawn({
            let store = store.clone();
            async move { store.commit(vec![put(key, "1", expect)]).await }
        });
        let revision = arrives(&direct, key).await;
        proxy.set(Loses::Connections);
        tokio::task::yield_now().await;
        proxy.set(Loses::Nothing);
        let told = soon(commit).await.expect("task").expect("it happened");
        assert_eq!(told, revision);
    }
    let puts = puts(&direct, "a", "end").await;
    assert!(puts.values().all(|times| *times == 1) && puts.len() == 2, "{puts:?}");
}

/// The request waits on its way while the client asks elsewhere; then it arrives after all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_request_does_nothing() {
    let cluster = EtcdCluster::start(1);
    let direct = cluster.store("t").await;
    let endpoints = cluster.endpoints();
    for round in 0..5 {
        let proxy = Proxy::start(address(&endpoints[0])).await;
        let store = through(&cluster, &proxy, &endpoints, SOON).await;
        store.commit(vec![put("warm", "", Expect::Any)]).await.expect("a marker is there");
        let key = format!("late/{round}");
        proxy.set(Loses::Time);
        let revision = soon(store.commit(vec![put(&key, "1", Expect::Any)])).await.expect("commit");
        direct.commit(vec![put(&key, "2", Expect::Revision(revision))]).await.expect("another");
        proxy.set(Loses::Nothing);
        // Time for the held request to do its harm.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let record = direct.get(&key).await.expect("get").expect("there");
        assert_eq!(record.value, b"2", "the late request overwrote what came after it");
    }
    let puts = puts(&direct, "late/", "end").await;
    assert!(puts.values().all(|times| *times == 2) && puts.len() == 5, "{puts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_found_out_is_said() {
    let cluster = EtcdCluster::start(1);
    let direct = cluster.store("t").await;
    let proxy = Proxy::start(address(&cluster.endpoints()[0])).await;
    let store = through(&cluster, &proxy, &[], Duration::from_secs(1)).await;
    store.commit(vec![put("warm", "", Expect::Any)]).await.expect("a marker is there");
    proxy.set(Loses::Answers);
    let error = soon(store.commit(vec![put("a", "1", Expect::Any)])).await.expect_err("no answer");
    assert_eq!(error.code(), Code::StoreUnknown);
    proxy.set(Loses::Nothing);
    arrives(&direct, "a").await;
    soon(async { while store.commit(vec![put("b", "1", Expect::Any)]).await.is_err() {} }).await;
}

/// Many writers run while connections are cut, answers lost and requests held at random.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_true_under_random_losses() {
    const WRITERS: u32 = 4;
    const EACH: u32 = 25;
    let cluster = EtcdCluster::start(1);
    let direct: Arc<dyn Store> = Arc::new(cluster.store("t").await);
    let proxy = Proxy::start(address(&cluster.endpoints()[0])).await;
    let store = through(&cluster, &proxy, &[], Duration::from_secs(3)).await;
    direct.commit(vec![put("count", "0", Expect::Any)]).await.expect("begin");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (store, direct) = (store.clone(), direct.clone());
        writers.spawn(async move {
            let mut told = Vec::new();
            for turn in 0..EACH {
                let key = format!("k/{writer}/{turn}");
                // Read past the proxy, so that only commits go through it.
                let record = direct.get("count").await.expect("get").expect("there");
                let count: u32 = String::from_utf8_lossy(&record.value).parse().expect("number");
                let writes: Vec<Write> = vec![
                    put("count", &(count + 1).to_string(), Expect::Revision(record.revision)),
                    put(&key, "", Expect::Any),
                ];
                told.push((key, store.commit(writes).await));
            }
            told
        });
    }
    let breaker = tokio::spawn(async move {
        for turn in 0u64.. {
            let mode = [Loses::Answers, Loses::Connections, Loses::Time][turn as usize % 3];
            tokio::time::sleep(Duration::from_millis(40 + turn * 37 % 90)).await;
            proxy.set(mode);
            tokio::time::sleep(Duration::from_millis(10 + turn * 53 % 400)).await;
            proxy.set(Loses::Nothing);
        }
    });
    let told: Vec<(String, Result<u64, Error>)> =
        soon(writers.join_all()).await.into_iter().flatten().collect();
    breaker.abort();
    let count = direct.get("count").await.expect("get").expect("there");
    let count: usize = String::from_utf8_lossy(&count.value).parse().expect("number");
    let puts = puts(&*direct, "k/", "end").await;
    assert_eq!(count, puts.len());
    assert_eq!(keys(&*direct, "k/").await.len(), puts.len());
    for (key, outcome) in &told {
        let times = puts.get(key).copied().unwrap_or(0);
        match outcome {
            Ok(revision) => {
                let record = direct.get(key).await.expect("get").expect("there");
                assert_eq!((times, record.revision), (1, *revision), "{key}");
            }
            Err(Error::Unknown { .. }) => assert!(times <= 1, "{key}"),
            Err(Error::Conflict { .. } | Error::Unreachable { .. }) => {
                assert_eq!(times, 0, "{key}")
            }
            Err(error) => panic!("{key}: {error}"),
        }
    }
    assert!(told.iter().any(|(_, outcome)| outcome.is_ok()));
}
