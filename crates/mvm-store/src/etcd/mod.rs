//! The engine of a fleet: etcd, below a prefix of its own, so that fleets can share a cluster.

mod cluster;
mod commit;
mod keys;
mod options;
mod watch;

use crate::{Error, Listing, Range, Record, Result, SessionId, Store, Watch, Write};
use async_trait::async_trait;
use cluster::Cluster;
use commit::Commits;
use etcd_client::{GetOptions, GetResponse, SortOrder, SortTarget};
use keys::{Keys, end_of, kv, revision_of};
pub use options::{EtcdOptions, EtcdTls};
use std::sync::Arc;
use std::time::Duration;

/// How many records are requested at once when a whole list is read.
const PAGE: usize = 2000;

/// How often a list is started again because its revision was compacted meanwhile.
const RELISTS: u32 = 3;

/// A store in an etcd cluster. Cheap to share behind an `Arc`.
pub struct EtcdStore {
    cluster: Arc<Cluster>,
    keys: Keys,
    commits: Commits,
}

impl EtcdStore {
    /// Connects, and checks that the cluster answers. Errors: `store_unreachable`, `store_failed`.
    pub async fn connect(options: EtcdOptions) -> Result<EtcdStore> {
        if options.endpoints.is_empty() {
            let cause = "no member is named: give at least one as https://HOST:PORT".to_owned();
            return Err(Error::Engine { path: "etcd".to_owned(), cause });
        }
        let keys = Keys { records: format!("{}/r/", options.prefix) };
        let markers = format!("{}/c/", options.prefix);
        let cluster = Arc::new(Cluster::new(options));
        let commits = Commits::new(cluster.clone(), keys.clone(), markers);
        let store = EtcdStore { cluster, keys, commits };
        store.revision().await?;
        Ok(store)
    }

    async fn read(&self, key: Vec<u8>, options: GetOptions) -> Result<GetResponse> {
        self.cluster
            .ask(|client| {
                let (key, options) = (key.clone(), options.clone());
                async move { kv(&client).get(key, Some(options)).await }
            })
            .await
    }

    /// Returns at most `limit` records from `start` on, as of `revision`; 0 means as of now.
    async fn some(
        &self,
        range: &Range,
        start: &str,
        limit: usize,
        revision: u64,
    ) -> Result<Listing> {
        let options = GetOptions::new()
            .with_range(end_of(&self.keys.of(&range.prefix)))
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .with_revision(revision as i64);
        let found = self.read(self.keys.of(start), options).await?;
        let records: Vec<Record> = found.kvs().iter().map(|kv| self.keys.record(kv)).collect();
        // The smallest key that can follow.
        let next = records.last().filter(|_| found.more()).map(|last| format!("{}\0", last.key));
        let revision = if revision == 0 { revision_of(found.header()) } else { revision };
        Ok(Listing { records, revision, next })
    }

    async fn all(&self, range: &Range) -> Result<Listing> {
        let mut listing = self.some(range, range.start(), PAGE, 0).await?;
        while let Some(next) = listing.next.take() {
            let more = self.some(range, &next, PAGE, listing.revision).await?;
            listing.records.extend(more.records);
            listing.next = more.next;
        }
        Ok(listing)
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Record>> {
        let found = self.read(self.keys.of(key), GetOptions::new()).await?;
        Ok(found.kvs().first().map(|kv| self.keys.record(kv)))
    }

    async fn range(&self, range: Range) -> Result<Listing> {
        if let Some(limit) = range.limit {
            return self.some(&range, range.start(), limit.max(1), 0).await;
        }
        let mut tries = 0;
        loop {
            match self.all(&range).await {
                Err(Error::Compacted { .. }) if tries < RELISTS => tries += 1,
                other => return other,
            }
        }
    }

    async fn last(&self, prefix: &str) -> Result<Option<Record>> {
        let options = GetOptions::new()
            .with_range(end_of(&self.keys.of(prefix)))
            .with_sort(SortTarget::Key, SortOrder::Descend)
            .with_limit(1);
        let found = self.read(self.keys.of(prefix), options).await?;
        Ok(found.kvs().first().map(|kv| self.keys.record(kv)))
    }

    async fn revision(&self) -> Result<u64> {
        let found = self.read(self.keys.of(""), GetOptions::new().with_count_only()).await?;
        Ok(revision_of(found.header()))
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<u64> {
        self.commits.commit(&writes).await
    }

    async fn watch(&self, prefix: &str, after: u64) -> Result<Watch> {
        Ok(watch::watch(self.cluster.clone(), self.keys.clone(), prefix, after))
    }

    async fn open_session(&self, ttl: Duration) -> Result<SessionId> {
        // If the answer is lost, nobody keeps the session alive, and it ends.
        Ok(SessionId(commit::grant(&self.cluster, ttl).await? as u64))
    }

    async fn keep_session(&self, session: SessionId) -> Result<()> {
        let id = session.0 as i64;
        let kept = self.cluster.ask(|client| async move {
            match client.lease_client().keep_alive(id).await {
                Ok(_) => Ok(true),
                Err(etcd_client::Error::LeaseKeepAliveError(cause))
                    if cause.contains("not found") =>
                {
                    Ok(false)
                }
                Err(error) => Err(error),
            }
        });
        if kept.await? { Ok(()) } else { Err(Error::SessionEnded(session)) }
    }

    async fn end_session(&self, session: SessionId) -> Result<()> {
        let id = session.0 as i64;
        let ended = self.cluster.ask(|client| async move {
            match client.lease_client().revoke(id).await {
                Err(etcd_client::Error::GRpcStatus(status))
                    if status.code() == tonic::Code::NotFound =>
                {
                    Ok(())
                }
                other => other.map(|_| ()),
            }
        });
        ended.await
    }
}
