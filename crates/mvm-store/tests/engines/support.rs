//! The engines, and shorthands.

use mvm_store::testing::EtcdCluster;
use mvm_store::{Expect, Record, SqliteStore, Store, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// How long anything may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Runs each of the named functions on both engines.
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (store, _dir) = crate::support::sqlite();
                super::$name(store).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (store, _cluster) = crate::support::etcd().await;
                super::$name(store).await;
            })*
        }
    };
}
pub(crate) use on_both_engines;

pub fn sqlite() -> (Arc<dyn Store>, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("dir");
    (Arc::new(SqliteStore::open(&dir.path().join("fleet.db")).expect("open")), dir)
}

/// Keeps alive the cluster that tests share, without giving access to it: what one test does to a
/// whole cluster, such as a compaction, all others would see.
pub struct Shared(Arc<EtcdCluster>);

/// Returns a store with a prefix of its own in a cluster that tests running at the same time share.
pub async fn etcd() -> (Arc<dyn Store>, Shared) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("test/{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let shared = Shared(shared_cluster());
    (Arc::new(shared.0.store(&prefix).await), shared)
}

fn shared_cluster() -> Arc<EtcdCluster> {
    static SHARED: Mutex<Weak<EtcdCluster>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().expect("lock");
    if let Some(cluster) = shared.upgrade() {
        return cluster;
    }
    let cluster = Arc::new(EtcdCluster::start(1));
    *shared = Arc::downgrade(&cluster);
    cluster
}

/// Returns the answer, which must come in time.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("it takes too long")
}

pub fn put(key: &str, value: &str, expect: Expect) -> Write {
    Write::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), expect }
}

pub fn delete(key: &str, expect: Expect) -> Write {
    Write::Delete { key: key.to_owned(), expect }
}

pub fn check(key: &str, expect: Expect) -> Write {
    Write::Check { key: key.to_owned(), expect }
}

pub async fn text(store: &dyn Store, key: &str) -> Option<String> {
    let record: Option<Record> = store.get(key).await.expect("get");
    record.map(|record| String::from_utf8(record.value).expect("text"))
}

pub async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list(prefix).await.expect("list").into_iter().map(|record| record.key).collect()
}
