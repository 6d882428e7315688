//! The records of the node. Every change is durable before it can be read, and readers never wait
//! for a disk.
//!
//! Locks are taken in this order, so that no two tasks wait for each other: the turn of a pool's
//! template or of a fleet's claim, then an instance's gate (`slot.rs`), then the turn of links or
//! of caches, then the turn of the records. While the turn of the records is held, a gate may be
//! tried, but never waited for. The locks that `locked` takes (slots, holders, samples) are held
//! for a few instructions, and nothing else is locked meanwhile. A change of the records holds
//! their turn across the commit to disk. A read takes the snapshot of the last commit, and no lock.

mod event_log;
mod in_force;
mod record_set;
mod transaction;

pub(crate) use event_log::EventLog;
#[cfg(test)]
pub(crate) use event_log::key as event_key;
pub(crate) use in_force::InForce;
pub(crate) use record_set::{RecordSet, no_job, not_built};
pub(crate) use transaction::Transaction;

use crate::Result;
use crate::stages::stage;
use mvm_clock::Clock;
use mvm_model::event::Event;
use mvm_model::{Instance, InstanceId};
use mvm_store::Store;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{Mutex, broadcast, watch};

/// The records, which are only accessed through this type, and the clock by which they are changed.
pub(crate) struct Records {
    store: Arc<dyn Store>,
    clock: Clock,
    events: EventLog,
    /// The records as of the last commit. Locked only while an `Arc` is cloned or a change is made
    /// in memory.
    current: RwLock<Arc<RecordSet>>,
    /// Held by a change of the records, from its decision to the end of its commit.
    turn: Mutex<()>,
    /// The number of commits so far.
    generation: watch::Sender<u64>,
}

impl Records {
    /// Reads all records from the store, to change them by this clock.
    pub async fn open(store: Arc<dyn Store>, clock: Clock) -> Result<Records> {
        let current = RecordSet::load(store.as_ref()).await?;
        let events = EventLog::open(store.as_ref()).await?;
        let current = RwLock::new(Arc::new(current));
        Ok(Records {
            store,
            clock,
            events,
            current,
            turn: Mutex::default(),
            generation: watch::Sender::new(0),
        })
    }

    /// Calls `look` with the records as of the last commit.
    pub fn read<T>(&self, look: impl FnOnce(&RecordSet) -> T) -> T {
        look(&self.snapshot())
    }

    /// Calls `look` with the records while nothing changes them: waits for a commit that is under
    /// way, and none begins before `look` has returned. For callers with a side effect that no
    /// change may overtake.
    pub async fn alone<T>(&self, look: impl FnOnce(&RecordSet) -> T) -> T {
        let _turn = self.turn.lock().await;
        look(&self.snapshot())
    }

    /// Decides and changes in one step. `decide` sees the present records and adds changes to the
    /// transaction. The changes are durable before they can be read, and no other change can come
    /// in between.
    pub async fn change<T>(
        &self,
        decide: impl FnOnce(&RecordSet, &mut Transaction) -> Result<T>,
    ) -> Result<T> {
        let changed = async {
            let _turn = self.turn.lock().await;
            let records = self.snapshot();
            let mut changes = Transaction::default();
            let value = decide(&records, &mut changes)?;
            if changes.is_empty() {
                return Ok(value);
            }
            let (writes, mut sealed) = changes.seal(&records, &self.events, &self.clock);
            drop(records);
            self.store.commit(writes).await?;
            self.publish(|records| sealed.apply(records));
            self.events.publish(sealed.events);
            self.generation.send_modify(|generation| *generation += 1);
            Ok(value)
        };
        stage!("record", changed).await
    }

    /// Changes the record of one instance.
    pub async fn update(&self, id: InstanceId, change: impl FnOnce(&mut Instance)) -> Result<()> {
        self.change(|records, changes| {
            let mut instance = records.by_id(id)?.clone();
            change(&mut instance);
            changes.put_instance(instance);
            Ok(())
        })
        .await
    }

    /// Returns a receiver that is notified of every commit from now on.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Returns the number of commits so far.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Notifies the subscribers although nothing was committed.
    #[cfg(test)]
    pub fn touch(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Returns the store, for records that are not the node's own.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Returns the node's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns the log of events.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Returns the stored events after `since`, oldest first.
    pub async fn events_after(&self, since: u64) -> Result<Vec<Event>> {
        self.events.after(self.store.as_ref(), since).await
    }

    /// Returns the number of the last event; 0 where there is none.
    pub fn newest_event(&self) -> u64 {
        self.events.next_id() - 1
    }

    /// Returns a receiver of every event from now on.
    pub fn follow_events(&self) -> broadcast::Receiver<Event> {
        self.events.follow()
    }

    fn snapshot(&self) -> Arc<RecordSet> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the records in memory. The caller holds the turn. The records are copied only if
    /// they are being read at this moment.
    fn publish(&self, change: impl FnOnce(&mut RecordSet)) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(records) = Arc::get_mut(&mut current) {
            return change(records);
        }
        let shared = current.clone();
        drop(current);
        let mut next = RecordSet::clone(&shared);
        change(&mut next);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_api::fleet::Leader;
    use mvm_store::SqliteStore;
    use tokio::runtime::Handle;

    fn leader(epoch: u64) -> Leader {
        Leader { fleet_id: "fleet".parse().expect("a name"), epoch }
    }

    async fn lead(records: &Records, epoch: u64) {
        let done = records.change(|_, changes| {
            changes.put_leader(leader(epoch));
            Ok(())
        });
        done.await.expect("a change");
    }

    fn epoch(records: &RecordSet) -> Option<u64> {
        records.leader.as_ref().map(|leader| leader.epoch)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_reads_sees_one_moment_and_keeps_nobody_from_changing() {
        let store = Arc::new(SqliteStore::in_memory().expect("a store"));
        let records = Records::open(store.clone(), Clock::system()).await.expect("records");
        let mut changed = records.subscribe();
        lead(&records, 1).await;
        let runtime = Handle::current();
        records.read(|old| {
            std::thread::scope(|scope| {
                let change = scope.spawn(|| runtime.block_on(lead(&records, 2)));
                change.join().expect("a change while somebody reads");
            });
            assert_eq!((epoch(old), records.read(epoch)), (Some(1), Some(2)));
        });
        lead(&records, 3).await;
        assert_eq!((records.read(epoch), *changed.borrow_and_update()), (Some(3), 3));
        // A commit to disk holds the turn.
        assert_eq!(records.alone(|_| records.read(epoch)).await, Some(3));
        let again = Records::open(store, Clock::system()).await.expect("records");
        assert_eq!(again.read(epoch), Some(3), "it was durable");
    }

    #[tokio::test]
    async fn what_is_refused_or_changes_nothing_is_not_told() {
        let store = Arc::new(SqliteStore::in_memory().expect("a store"));
        let records = Records::open(store, Clock::system()).await.expect("records");
        let changed = records.subscribe();
        assert!(records.change(|_, _| Ok(())).await.is_ok());
        let refused = records.change(|records, changes| {
            changes.put_leader(leader(1));
            records.job(mvm_model::JobId::from_number(1)).map(drop)
        });
        assert!(refused.await.is_err());
        assert_eq!((records.read(epoch), changed.has_changed().ok()), (None, Some(false)));
    }
}
