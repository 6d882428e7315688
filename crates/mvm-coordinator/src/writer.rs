//! The leader's writes of claims: many that come at the same time are one transaction.

use crate::leadership::Lead;
use crate::{Error, Result};
use mvm_store::{Expect, Store, Write};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How many writes one transaction has at most; etcd takes 128.
const BATCH: usize = 100;
/// How long the record of a claim that has ended stays.
const SWEEP: Duration = Duration::from_secs(1);

enum Order {
    Put(Write, Done),
    /// A key to remove; nobody waits for it.
    Delete(String),
}

/// Who waits for a write. The outcome of a transaction is told to many.
type Done = oneshot::Sender<Result<(), Arc<mvm_store::Error>>>;

/// A write, and who waits for it.
type Put = (Write, Done);

/// Writes for one leadership, in a task that ends with it.
#[derive(Clone)]
pub(crate) struct Writer {
    orders: mpsc::UnboundedSender<Order>,
    /// Transactions so far.
    commits: Arc<AtomicU64>,
}

impl Writer {
    pub fn start(store: Arc<dyn Store>, lead: Arc<Lead>) -> Writer {
        let (orders, queue) = mpsc::unbounded_channel();
        let commits = Arc::new(AtomicU64::new(0));
        let task = Task { store, lead, queue, commits: commits.clone(), ended: Vec::new() };
        tokio::spawn(task.run());
        Writer { orders, commits }
    }

    /// Writes a record; returns when it is durable.
    pub async fn put(&self, write: Write) -> Result<()> {
        let (done, outcome) = oneshot::channel();
        let _ = self.orders.send(Order::Put(write, done));
        Ok(outcome.await.map_err(|_| Error::Succeeded)??)
    }

    /// Removes a record a moment later.
    pub fn delete(&self, key: String) {
        let _ = self.orders.send(Order::Delete(key));
    }

    /// Returns the number of transactions so far.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

struct Task {
    store: Arc<dyn Store>,
    lead: Arc<Lead>,
    queue: mpsc::UnboundedReceiver<Order>,
    commits: Arc<AtomicU64>,
    /// Keys of claims that have ended and may still be written down.
    ended: Vec<String>,
}

impl Task {
    async fn run(mut self) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                order = self.queue.recv() => match order {
                    Some(order) => order,
                    None => return,
                },
                _ = sweep.tick() => {
                    self.sweep().await;
                    continue;
                }
                () = self.lead.lost() => return,
            };
            let mut puts = Vec::new();
            self.take(first, &mut puts);
            while puts.len() < BATCH {
                let Ok(order) = self.queue.try_recv() else { break };
                self.take(order, &mut puts);
            }
            if !puts.is_empty() {
                self.write(puts).await;
            }
        }
    }

    fn take(&mut self, order: Order, puts: &mut Vec<Put>) {
        match order {
            Order::Put(write, done) => puts.push((self.replacing(write), done)),
            Order::Delete(key) => self.ended.push(key),
        }
    }

    /// Makes a put take the place of a delete of its key that is still to come, so that the delete
    /// does not remove what is written now.
    fn replacing(&mut self, write: Write) -> Write {
        let ended = self.ended.len();
        self.ended.retain(|key| key != write.condition().0);
        match write {
            Write::Put { key, value, expect: Expect::Absent } if self.ended.len() < ended => {
                Write::Put { key, value, expect: Expect::Any }
            }
            write => write,
        }
    }

    async fn write(&mut self, puts: Vec<Put>) {
        let (writes, done): (Vec<Write>, Vec<_>) = puts.into_iter().unzip();
        // Claims that have ended go along where there is room. A transaction names each key once: a
        // claim that is put here and has ended since is deleted later.
        let put: BTreeSet<&str> = writes.iter().map(|write| write.condition().0).collect();
        let ended = self.ended.iter().filter(|key| !put.contains(key.as_str()));
        let ended: Vec<String> = ended.take(BATCH.saturating_sub(put.len())).cloned().collect();
        let deletes = ended.iter().cloned().map(delete);
        match self.commit(writes.iter().cloned().chain(deletes).collect()).await {
            // One of the puts does not fit: each is written by itself, so that it fails alone. The
            // deletes wait for the next transaction.
            Err(mvm_store::Error::Conflict { .. }) if writes.len() > 1 => {
                for (write, done) in writes.into_iter().zip(done) {
                    let outcome = self.commit(vec![write]).await.map_err(Arc::new);
                    let _ = done.send(outcome);
                }
            }
            outcome => {
                if outcome.is_ok() {
                    self.removed(ended);
                }
                let outcome = outcome.map_err(Arc::new);
                for done in done {
                    let _ = done.send(outcome.clone());
                }
            }
        }
    }

    /// Removes the records of claims that have ended; those that the store did not take stay listed.
    async fn sweep(&mut self) {
        while !self.ended.is_empty() {
            let some: Vec<String> = self.ended.iter().take(BATCH).cloned().collect();
            let writes = some.iter().cloned().map(delete).collect();
            if let Err(error) = self.commit(writes).await {
                return tracing::warn!("cannot remove claims that have ended: {error}");
            }
            self.removed(some);
        }
    }

    /// Forgets keys whose records are durably gone.
    fn removed(&mut self, keys: Vec<String>) {
        let keys: BTreeSet<String> = keys.into_iter().collect();
        self.ended.retain(|key| !keys.contains(key));
    }

    async fn commit(&self, mut writes: Vec<Write>) -> mvm_store::Result<()> {
        writes.push(self.lead.fence());
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.store.commit(writes).await.map(drop)
    }
}

fn delete(key: String) -> Write {
    Write::Delete { key, expect: Expect::Any }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::CLAIMS;
    use crate::state::ClusterState;
    use crate::state::tests::lonely;
    use futures::StreamExt;
    use mvm_model::Code;

    fn put(id: &str, expect: Expect) -> Write {
        Write::Put { key: key(id), value: b"{}".to_vec(), expect }
    }

    fn key(id: &str) -> String {
        format!("{CLAIMS}{id}")
    }

    async fn leading() -> (Arc<ClusterState>, Writer) {
        let fleet = lonely();
        let election = mvm_store::Election::new(fleet.store.clone(), "leader");
        let leadership = election.campaign(b"{}", Duration::from_secs(600)).await.expect("elected");
        let lead = Arc::new(Lead::new(leadership, fleet.options.fleet_id.clone()));
        let writer = Writer::start(fleet.store.clone(), lead);
        (fleet, writer)
    }

    async fn written(fleet: &ClusterState) -> Vec<String> {
        let records = fleet.store.list(CLAIMS).await.expect("a list");
        records.into_iter().map(|record| record.key).collect()
    }

    async fn write(fleet: &ClusterState, id: &str) {
        fleet.store.commit(vec![put(id, Expect::Any)]).await.expect("written");
    }

    /// Waits until the record is removed, which takes a sweep or two.
    async fn gone(fleet: &ClusterState, id: &str) {
        let revision = fleet.store.revision().await.expect("a revision");
        let mut changes = fleet.store.watch(&key(id), revision).await.expect("a watch");
        let gone = async {
            while fleet.store.get(&key(id)).await.expect("read").is_some() {
                changes.next().await;
            }
        };
        tokio::time::timeout(60 * SWEEP, gone).await.expect("its record is removed");
    }

    #[tokio::test]
    async fn what_has_ended_goes_also_where_its_batch_conflicts() {
        let (fleet, writer) = leading().await;
        for id in ["ended", "there"] {
            write(&fleet, id).await;
        }
        writer.delete(key("ended"));
        let (clash, fits) = tokio::join!(
            writer.put(put("there", Expect::Absent)),
            writer.put(put("new", Expect::Absent)),
        );
        assert_eq!(clash.expect_err("a conflict").code(), Code::StoreConflict);
        fits.expect("the other is written");
        gone(&fleet, "ended").await;
        assert_eq!(written(&fleet).await, [key("new"), key("there")]);
    }

    #[tokio::test]
    async fn what_has_ended_goes_also_where_the_only_put_conflicts() {
        let (fleet, writer) = leading().await;
        for id in ["ended", "there"] {
            write(&fleet, id).await;
        }
        writer.delete(key("ended"));
        let clash = writer.put(put("there", Expect::Absent)).await;
        assert_eq!(clash.expect_err("a conflict").code(), Code::StoreConflict);
        gone(&fleet, "ended").await;
        assert_eq!(written(&fleet).await, [key("there")]);
    }

    #[tokio::test]
    async fn an_id_that_is_used_again_is_not_removed_by_its_predecessors_end() {
        let (fleet, writer) = leading().await;
        for id in ["again", "other"] {
            write(&fleet, id).await;
        }
        writer.delete(key("again"));
        writer.put(put("again", Expect::Absent)).await.expect("its predecessor has ended");
        // Once this record is gone, a sweep has run.
        writer.delete(key("other"));
        gone(&fleet, "other").await;
        assert_eq!(written(&fleet).await, [key("again")]);
        writer.delete(key("again"));
        gone(&fleet, "again").await;
    }
}
