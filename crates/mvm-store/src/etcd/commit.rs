//! Transactions that take effect exactly once, even if answers are lost.
//!
//! Every transaction also writes a marker: a small record apart from the others, used by one
//! transaction at a time, on condition that it is as the transaction before left it. If the answer
//! is lost, a second transaction asks whether the marker was written, and writes it itself if not:
//! then the first one can never take effect any more, however long it was on its way, and may be
//! sent again. A commit still costs one write of the cluster, as it would without a marker.

use super::cluster::{Cluster, Failure};
use super::keys::{Keys, kv, revision_of};
use crate::{Error, Expect, Result, Write};
use backon::Retryable;
use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Markers vanish this long after their lease was granted, and are used for half of that, so nobody
/// has to tidy up after a process that died.
const LEASE: Duration = Duration::from_secs(24 * 3600);

pub struct Commits {
    cluster: Arc<Cluster>,
    keys: Keys,
    /// Prefix of the markers' keys.
    prefix: String,
    free: Mutex<Vec<Marker>>,
    era: tokio::sync::Mutex<Option<Era>>,
    /// Makes the markers' keys and values unique.
    count: AtomicU64,
}

/// A lease with its markers. Its id is never given twice, so that no other process uses the same
/// keys.
#[derive(Clone, Copy)]
struct Era {
    lease: i64,
    begun: Instant,
}

struct Marker {
    key: String,
    /// Revision of its last change; 0 if it was not written yet.
    revision: i64,
    era: Era,
}

impl Commits {
    pub fn new(cluster: Arc<Cluster>, keys: Keys, prefix: String) -> Commits {
        let (free, era, count) = Default::default();
        Commits { cluster, keys, prefix, free, era, count }
    }

    pub async fn commit(&self, writes: &[Write]) -> Result<u64> {
        let begun = Instant::now();
        let mut marker = self.marker().await?;
        let mut delays = backon::BackoffBuilder::build(self.cluster.backoff());
        loop {
            let value = self.count.fetch_add(1, Ordering::Relaxed).to_string();
            let transaction = self.transaction(writes, &marker, &value);
            let failure = match self.send(transaction).await {
                Ok(answer) => match self.outcome(&answer, writes, &mut marker) {
                    Some(outcome) => {
                        self.release(marker);
                        return outcome;
                    }
                    // Somebody removed the marker, so nothing was written.
                    None => {
                        marker = self.marker().await?;
                        continue;
                    }
                },
                Err(failure) => failure,
            };
            let cause = match failure {
                Failure::Refused(error) => {
                    self.release(marker);
                    return Err(refused(error, writes));
                }
                Failure::Unsent(cause) => cause,
                Failure::Lost(cause) => {
                    if let Some(revision) = self.settle(&mut marker, &value, &cause).await? {
                        self.release(marker);
                        return Ok(revision);
                    }
                    cause
                }
            };
            match delays.next() {
                Some(delay) if begun.elapsed() < self.cluster.options.patience => {
                    tokio::time::sleep(delay).await;
                }
                _ => {
                    self.release(marker);
                    return Err(self.cluster.unreachable(cause));
                }
            }
        }
    }

    /// Returns a marker that no transaction uses now.
    async fn marker(&self) -> Result<Marker> {
        let fresh = |era: &Era| era.begun.elapsed() < LEASE / 2;
        let free = || self.free.lock().pop();
        while let Some(marker) = free() {
            if fresh(&marker.era) {
                return Ok(marker);
            }
        }
        let mut current = self.era.lock().await;
        let era = match current.filter(fresh) {
            Some(era) => era,
            None => {
                let begun = Instant::now();
                let lease = grant(&self.cluster, LEASE).await?;
                *current.insert(Era { lease, begun })
            }
        };
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let key = format!("{}{:x}/{number}", self.prefix, era.lease);
        Ok(Marker { key, revision: 0, era })
    }

    /// Makes a marker available again. Only one whose revision is known may be reused, so a commit
    /// with unknown outcome drops its marker.
    fn release(&self, marker: Marker) {
        self.free.lock().push(marker);
    }

    async fn send(&self, transaction: Txn) -> Result<TxnResponse, Failure> {
        let member = self.cluster.member();
        self.cluster
            .attempt(member, |client| async move { kv(&client).txn(transaction).await })
            .await
    }

    fn transaction(&self, writes: &[Write], marker: &Marker, value: &str) -> Txn {
        let keys_only = || Some(GetOptions::new().with_keys_only());
        let mut conditions = vec![is_at(marker.key.as_bytes(), marker.revision)];
        let mut otherwise = vec![TxnOp::get(marker.key.as_bytes(), keys_only())];
        for (key, revision) in conditions_of(writes) {
            let key = self.keys.of(key);
            conditions.push(is_at(&key, revision));
            otherwise.push(TxnOp::get(key, keys_only()));
        }
        let mut then = vec![put_marker(marker, value)];
        then.extend(Write::effects(writes).into_iter().filter_map(|write| self.effect(write)));
        Txn::new().when(conditions).and_then(then).or_else(otherwise)
    }

    fn effect(&self, write: &Write) -> Option<TxnOp> {
        match write {
            Write::Put { key, value, .. } => {
                Some(TxnOp::put(self.keys.of(key), value.as_slice(), None))
            }
            Write::Hold { key, value, session, .. } => {
                let options = PutOptions::new().with_lease(session.0 as i64);
                Some(TxnOp::put(self.keys.of(key), value.as_slice(), Some(options)))
            }
            Write::Delete { key, .. } => Some(TxnOp::delete(self.keys.of(key), None)),
            Write::Check { .. } => None,
        }
    }

    /// Reads the answer; `None` means that the marker is not as it was left.
    fn outcome(
        &self,
        answer: &TxnResponse,
        writes: &[Write],
        marker: &mut Marker,
    ) -> Option<Result<u64>> {
        if answer.succeeded() {
            let revision = revision_of(answer.header());
            marker.revision = revision as i64;
            return Some(Ok(revision));
        }
        let mut found = answer.op_responses().into_iter().map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().map_or(0, |kv| kv.mod_revision()),
            _ => 0,
        });
        if found.next() != Some(marker.revision) {
            return None;
        }
        let mut failed =
            conditions_of(writes).zip(found).filter(|((_, wanted), found)| wanted != found);
        failed.next().map(|((key, wanted), found)| {
            let expected =
                if wanted == 0 { Expect::Absent } else { Expect::Revision(wanted as u64) };
            Err(Error::Conflict { key: key.to_owned(), expected, found: found as u64 })
        })
    }

    /// Returns the revision of the transaction that wrote this value into the marker; `None` means
    /// that it did not take effect and never will. Error: `store_unknown`.
    async fn settle(&self, marker: &mut Marker, value: &str, cause: &str) -> Result<Option<u64>> {
        let ask = || {
            let key = marker.key.as_bytes();
            let transaction = Txn::new()
                .when([Compare::value(key, CompareOp::Equal, value)])
                .and_then([TxnOp::get(key, None)])
                .or_else([put_marker(marker, "")]);
            self.send(transaction)
        };
        let asked = ask
            .retry(self.cluster.backoff())
            .when(|failure| !matches!(failure, Failure::Refused(_)))
            .await;
        let Ok(answer) = asked else {
            let (path, cause) = (self.cluster.name(), cause.to_owned());
            return Err(Error::Unknown { path, cause });
        };
        let (happened, now) = (answer.succeeded(), revision_of(answer.header()));
        let found = answer.op_responses().into_iter().next();
        let revision = match found {
            Some(TxnOpResponse::Get(found)) => {
                found.kvs().first().map_or(now, |kv| kv.mod_revision() as u64)
            }
            _ => now,
        };
        marker.revision = revision as i64;
        Ok(happened.then_some(revision))
    }
}

/// Grants a lease that ends `ttl`, rounded up to seconds, after it was last kept alive.
pub async fn grant(cluster: &Cluster, ttl: Duration) -> Result<i64> {
    let seconds = ttl.as_millis().div_ceil(1000).max(1) as i64;
    let granted =
        cluster.ask(|client| async move { client.lease_client().grant(seconds, None).await });
    Ok(granted.await?.id())
}

/// Returns the keys that conditions are about, with the revision that each must have; 0 means that
/// the key must not exist.
fn conditions_of(writes: &[Write]) -> impl Iterator<Item = (&str, i64)> {
    writes.iter().filter_map(|write| match write.condition() {
        (_, Expect::Any) => None,
        (key, Expect::Absent) => Some((key, 0)),
        (key, Expect::Revision(revision)) => Some((key, revision as i64)),
    })
}

fn is_at(key: &[u8], revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}

fn put_marker(marker: &Marker, value: &str) -> TxnOp {
    let options = PutOptions::new().with_lease(marker.era.lease);
    TxnOp::put(marker.key.as_bytes(), value, Some(options))
}

/// If a lease is missing, it is the session's.
fn refused(error: Error, writes: &[Write]) -> Error {
    let session = writes.iter().find_map(|write| match write {
        Write::Hold { session, .. } => Some(*session),
        _ => None,
    });
    match (error, session) {
        (Error::Engine { cause, .. }, Some(session)) if cause.contains("lease not found") => {
            Error::SessionEnded(session)
        }
        (error, _) => error,
    }
}
