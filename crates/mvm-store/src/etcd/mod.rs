//! The engine of a fleet: etcd, below a prefix of its own, so that fleets can share a cluster.

mod cluster;
mod commit;
mod watch;

use crate::{Error, Listing, Range, Record, Result, SessionId, Store, Watch, Write};
use async_trait::async_trait;
use cluster::Cluster;
use commit::Commits;
use etcd_client::{Client, GetOptions, GetResponse, KeyValue, KvClient, SortOrder, SortTarget};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How many records are requested at once when a whole list is read.
const PAGE: usize = 2000;

/// How often a list is started again because its revision was compacted meanwhile.
const RELISTS: u32 = 3;

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// The members, each as `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// Prefix of all keys, such as `mvm/FLEET`: nothing outside it is read or written.
    pub prefix: String,
    /// Which certificates to trust and to present; `None` means unencrypted, for tests on loopback
    /// only.
    pub tls: Option<EtcdTls>,
    /// How long one member may take to answer.
    pub request_timeout: Duration,
    /// How long all tries together may take until the cluster counts as unreachable.
    pub patience: Duration,
}

/// PEM files, read at every new connection.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// The authority that signed the members' certificates.
    pub authority: PathBuf,
    /// The certificate to present.
    pub certificate: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
}

impl EtcdOptions {
    /// Makes options with the usual times: 3 s per request, 15 s in all.
    pub fn new(endpoints: Vec<String>, prefix: &str, tls: Option<EtcdTls>) -> EtcdOptions {
        EtcdOptions {
            endpoints,
            prefix: prefix.trim_end_matches('/').to_owned(),
            tls,
            request_timeout: Duration::from_secs(3),
            patience: Duration::from_secs(15),
        }
    }
}

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

/// Translates between a record's key and its key in etcd.
#[derive(Clone)]
struct Keys {
    records: String,
}

impl Keys {
    fn of(&self, key: &str) -> Vec<u8> {
        [self.records.as_bytes(), key.as_bytes()].concat()
    }

    fn back(&self, key: &[u8]) -> String {
        let key = key.strip_prefix(self.records.as_bytes()).unwrap_or(key);
        String::from_utf8_lossy(key).into_owned()
    }

    fn record(&self, kv: &KeyValue) -> Record {
        Record {
            key: self.back(kv.key()),
            value: kv.value().to_vec(),
            revision: kv.mod_revision() as u64,
            session: (kv.lease() != 0).then(|| SessionId(kv.lease() as u64)),
        }
    }
}

/// Returns the first key after all that begin with `prefix`, which is text and so has no byte 255.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Returns a client without a limit on answers: lists can exceed the default one.
fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(usize::MAX)
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> u64 {
    header.map_or(0, |header| header.revision() as u64)
}
