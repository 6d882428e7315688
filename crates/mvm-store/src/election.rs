//! Elects one leader at a time: the process whose session holds the election's record leads, and
//! the record vanishes with that session.
//!
//! A leader's own clock tells it in time that its session may have ended, but a process can be held
//! up between that check and a write. So a leader's writes carry [`Leadership::fence`]: the store
//! refuses them once another process holds the record.

use crate::{Error, Expect, Followed, Result, Session, Store, Write, follow};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Pause between two tries while the store does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// An election: the store, and the key of the leader's record.
#[derive(Clone)]
pub struct Election {
    store: Arc<dyn Store>,
    key: String,
}

/// The leader of an election, as observers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The value that the leader passed to [`Election::campaign`].
    pub candidate: Vec<u8>,
    /// The store's revision at which it became leader: higher than that of every leader before.
    pub since: u64,
}

/// The proof of leading. When dropped, the leader's session is no longer kept alive;
/// [`Leadership::resign`] ends the leadership at once.
pub struct Leadership {
    session: Arc<Session>,
    key: String,
    since: u64,
    held: watch::Receiver<bool>,
    guard: JoinHandle<()>,
}

impl Election {
    /// Makes the election of that name, whose record is `elections/NAME`.
    pub fn new(store: Arc<dyn Store>, name: &str) -> Election {
        Election { store, key: format!("elections/{name}") }
    }

    /// Waits until there is no leader and becomes it; also waits while the store cannot be reached.
    /// Observers see `candidate`; after this process has died, its leadership lasts for `ttl`.
    pub async fn campaign(&self, candidate: &[u8], ttl: Duration) -> Result<Leadership> {
        loop {
            match self.attempt(candidate, ttl).await {
                Ok(Some(leadership)) => return Ok(leadership),
                Ok(None) => {}
                Err(error) if error.is_transient() => {
                    tracing::warn!(key = self.key, %error, "the campaign is tried again");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until there is no leader; returns `None` if another process was faster.
    async fn attempt(&self, candidate: &[u8], ttl: Duration) -> Result<Option<Leadership>> {
        if let Some(record) = self.store.get(&self.key).await? {
            gone(&*self.store, &self.key, record.revision).await?;
        }
        let session = Session::open(self.store.clone(), ttl).await?;
        match self.take(candidate, &session).await? {
            Some(since) if session.is_live() => Ok(Some(self.lead(session, since))),
            _ => {
                session.close().await?;
                Ok(None)
            }
        }
    }

    /// Reports the leader, now and at every change; `None` means that there is none.
    pub fn observe(&self) -> BoxStream<'static, Result<Option<Leader>>> {
        let key = self.key.clone();
        let leaders = follow(self.store.clone(), &self.key).filter_map(move |followed| {
            let leader = followed.map(|followed| leader(&key, followed)).transpose();
            async move { leader }
        });
        Box::pin(leaders)
    }

    /// Tries to write the record; returns its revision, or `None` if another process holds it.
    async fn take(&self, candidate: &[u8], session: &Session) -> Result<Option<u64>> {
        let write = Write::Hold {
            key: self.key.clone(),
            value: candidate.to_vec(),
            expect: Expect::Absent,
            session: session.id(),
        };
        match self.store.commit(vec![write]).await {
            Ok(since) => Ok(Some(since)),
            Err(Error::Conflict { .. } | Error::SessionEnded(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lead(&self, session: Session, since: u64) -> Leadership {
        let (said, held) = watch::channel(true);
        let session = Arc::new(session);
        let guard = tokio::spawn({
            let (store, key, session) = (self.store.clone(), self.key.clone(), session.clone());
            async move {
                tokio::select! {
                    () = session.ended() => {}
                    // A watch that fails proves nothing, so only the session's end counts.
                    Ok(()) = gone(&*store, &key, since) => {}
                }
                said.send_replace(false);
            }
        });
        Leadership { session, key: self.key.clone(), since, held, guard }
    }
}

impl Leadership {
    /// Returns the store's revision at which the leadership began: higher than that of every leader
    /// before.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// Returns whether the leadership is not known to be lost.
    pub fn is_held(&self) -> bool {
        *self.held.borrow() && self.session.is_live()
    }

    /// Waits until the leadership is lost, or may be because the store was not reached in time.
    pub async fn lost(&self) {
        let mut held = self.held.clone();
        let _ = held.wait_for(|held| !held).await;
    }

    /// Returns the write that every transaction of a leader must contain: it makes the transaction
    /// fail with a conflict once this leadership is lost.
    pub fn fence(&self) -> Write {
        Write::Check { key: self.key.clone(), expect: Expect::Revision(self.since) }
    }

    /// Ends the leadership at once, for another process to take over.
    pub async fn resign(&self) -> Result<()> {
        self.session.store().end_session(self.session.id()).await
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.guard.abort();
    }
}

/// Returns once the record at `key` is no longer as it was written at `revision`.
async fn gone(store: &dyn Store, key: &str, revision: u64) -> Result<()> {
    loop {
        let mut watch = store.watch(key, revision).await?;
        while let Some(changes) = watch.next().await {
            match changes {
                Ok(changes) if changes.iter().all(|change| change.key != key) => {}
                Ok(_) => return Ok(()),
                Err(Error::Compacted { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        if store.get(key).await?.is_none_or(|record| record.revision != revision) {
            return Ok(());
        }
    }
}

/// Returns what an item says about the record at `key`: `Some(None)` if it is gone, `None` if the
/// item is about other records.
fn leader(key: &str, followed: Followed) -> Option<Option<Leader>> {
    match followed {
        Followed::All { records, .. } => {
            let record = records.into_iter().find(|record| record.key == key);
            Some(record.map(|r| Leader { candidate: r.value, since: r.revision }))
        }
        Followed::Changed(changes) => {
            let change = changes.into_iter().find(|change| change.key == key)?;
            let since = change.revision;
            Some(change.value.map(|candidate| Leader { candidate, since }))
        }
    }
}
