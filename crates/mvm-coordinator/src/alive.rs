//! Telling the other coordinators which nodes are in reach: records that vanish with this one.
//!
//! A node is alive as long as any coordinator reaches it. Written is only what changes, however many
//! nodes beat however often; and all of it hangs on one session, so that a coordinator that dies
//! takes its word with it.

use crate::fleet::Fleet;
use crate::leader::ANSWER;
use crate::records::ALIVE;
use crate::{Result, stored};
use mvm_model::Name;
use mvm_store::{Expect, Session, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// So many are written at once.
const BATCH: usize = 100;
/// How long is waited before a store that failed is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// What is to be told.
#[derive(Default)]
pub(crate) struct Alive {
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Default)]
struct Book {
    reached: BTreeSet<Name>,
    /// What the store does not say yet.
    pending: BTreeMap<Name, bool>,
}

impl Alive {
    /// This coordinator reaches the node, or does not.
    pub fn set(&self, node: &Name, reached: bool) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match reached {
            true => book.reached.insert(node.clone()),
            false => book.reached.remove(node),
        };
        if changed {
            book.pending.insert(node.clone(), reached);
            self.changed.notify_one();
        }
    }

    /// Everything is to be told again.
    fn all_again(&self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.pending = book.reached.iter().map(|node| (node.clone(), true)).collect();
    }

    fn take(&self) -> Vec<(Name, bool)> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        while taken.len() < BATCH {
            let Some(one) = book.pending.pop_first() else { break };
            taken.push(one);
        }
        taken
    }

    /// These are still to be told, unless something newer is.
    fn put_back(&self, taken: Vec<(Name, bool)>) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, reached) in taken {
            book.pending.entry(node).or_insert(reached);
        }
    }
}

/// Tells until this coordinator is to end; then its word goes at once.
pub(crate) async fn run(fleet: &Arc<Fleet>) {
    loop {
        let session = match Session::open(fleet.store.clone(), fleet.options.ttl).await {
            Ok(session) => session,
            Err(error) => {
                tracing::warn!("no session of the store: {error}");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let _under_way = fleet.ending.wait_for_this();
        fleet.alive.all_again();
        while session.is_live() {
            if fleet.ending.has_begun() {
                return take_back(session).await;
            }
            let taken = fleet.alive.take();
            if taken.is_empty() {
                tokio::select! {
                    () = fleet.alive.changed.notified() => {}
                    () = session.ended() => {}
                    () = fleet.ending.begun() => {}
                }
                continue;
            }
            if let Err(problem) = tell(fleet, &session, &taken).await {
                tracing::warn!("cannot tell which nodes are in reach: {problem}");
                fleet.alive.put_back(taken);
                tokio::time::sleep(AGAIN).await;
            }
        }
        tracing::warn!("the session of the store has ended; opening another");
    }
}

async fn take_back(session: Session) {
    match tokio::time::timeout(ANSWER, session.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("cannot take back which nodes are in reach: {error}"),
        Err(_) => tracing::warn!("cannot take back which nodes are in reach: no answer"),
    }
}

async fn tell(fleet: &Fleet, session: &Session, taken: &[(Name, bool)]) -> Result<()> {
    let write = |(node, reached): &(Name, bool)| {
        let key = format!("{ALIVE}{node}/{}", fleet.options.name);
        match reached {
            true => {
                let (value, session) = (b"{}".to_vec(), session.id());
                Write::Hold { key, value, expect: Expect::Any, session }
            }
            false => Write::Delete { key, expect: Expect::Any },
        }
    };
    fleet.store.commit(taken.iter().map(write).collect()).await.map(drop).map_err(stored)
}
