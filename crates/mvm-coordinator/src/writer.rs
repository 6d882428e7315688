//! The leader's writes of claims: many that come at the same time are one transaction.

use crate::fleet::Lead;
use crate::{Result, stored};
use mvm_store::{Error, Expect, Store, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// So many writes are one transaction at most; etcd takes 128.
const BATCH: usize = 100;
/// How long a claim that has ended stays written down.
const SWEEP: Duration = Duration::from_secs(1);

enum Order {
    Put(Write, oneshot::Sender<Result<()>>),
    /// Nobody waits for it.
    Delete(String),
}

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

    /// Writes it; returns when it is durable.
    pub async fn put(&self, write: Write) -> Result<()> {
        let (done, outcome) = oneshot::channel();
        let _ = self.orders.send(Order::Put(write, done));
        outcome.await.unwrap_or_else(|_| Err(crate::desk::succeeded()))
    }

    /// Removes it some time.
    pub fn delete(&self, key: String) {
        let _ = self.orders.send(Order::Delete(key));
    }

    /// Transactions so far.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

struct Task {
    store: Arc<dyn Store>,
    lead: Arc<Lead>,
    queue: mpsc::UnboundedReceiver<Order>,
    commits: Arc<AtomicU64>,
    /// Keys of claims that have ended.
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

    fn take(&mut self, order: Order, puts: &mut Vec<(Write, oneshot::Sender<Result<()>>)>) {
        match order {
            Order::Put(write, done) => puts.push((write, done)),
            Order::Delete(key) => self.ended.push(key),
        }
    }

    async fn write(&mut self, puts: Vec<(Write, oneshot::Sender<Result<()>>)>) {
        let (writes, done): (Vec<Write>, Vec<_>) = puts.into_iter().unzip();
        // What has ended goes along where there is room.
        let mut all = writes.clone();
        let room = BATCH.saturating_sub(all.len()).min(self.ended.len());
        all.extend(self.ended.drain(..room).map(delete));
        match self.commit(all).await {
            // One of them does not fit: each by itself, so that it fails alone.
            Err(Error::Conflict { .. }) if writes.len() > 1 => {
                for (write, done) in writes.into_iter().zip(done) {
                    let outcome = self.commit(vec![write]).await.map_err(stored);
                    let _ = done.send(outcome);
                }
            }
            outcome => {
                let outcome = outcome.map_err(stored);
                for done in done {
                    let _ = done.send(outcome.clone());
                }
            }
        }
    }

    async fn sweep(&mut self) {
        while !self.ended.is_empty() {
            let some: Vec<String> = self.ended.drain(..self.ended.len().min(BATCH)).collect();
            let writes = some.iter().cloned().map(delete).collect();
            if let Err(error) = self.commit(writes).await {
                tracing::warn!("cannot remove claims that have ended: {error}");
                return self.ended.extend(some);
            }
        }
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
