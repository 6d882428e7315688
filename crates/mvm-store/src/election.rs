//! One leader at a time: who holds the election's record leads, and the record vanishes with the
//! leader's session.
//!
//! A leader's own clock tells it in time that its session may have ended, but a process can be held
//! up between that check and a write. So a leader's writes carry [`Leadership::fence`]: the store
//! refuses them once the record is another's.

use crate::{Error, Expect, Followed, Result, Session, Store, Write, follow};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Between two tries while the store does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// An election: the store, and the key of the record that the leader holds.
#[derive(Clone)]
pub struct Election {
    store: Arc<dyn Store>,
    key: String,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// What the leader said of itself.
    pub candidate: Vec<u8>,
    /// Since this revision of the store: higher than that of every leader before.
    pub since: u64,
}

/// The proof of leading. Dropped, the leader's session is kept no longer; [`Leadership::resign`]
/// makes place at once.
pub struct Leadership {
    session: Arc<Session>,
    key: String,
    since: u64,
    held: watch::Receiver<bool>,
    guard: JoinHandle<()>,
}

impl Election {
    /// The election of that name: its record is `elections/NAME`.
    pub fn new(store: Arc<dyn Store>, name: &str) -> Election {
        Election { store, key: format!("elections/{name}") }
    }

    /// Waits until the place is free, and takes it; a store that cannot be reached is waited for.
    /// `candidate` is what observers are told; `ttl` is how long the place stays taken after this
    /// process has died.
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

    /// Waits until the place is free; none if another was faster.
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

    /// Who leads, now and at every change; none: the place is free.
    pub fn observe(&self) -> BoxStream<'static, Result<Option<Leader>>> {
        let key = self.key.clone();
        let leaders = follow(self.store.clone(), &self.key).filter_map(move |followed| {
            let leader = followed.map(|followed| leader(&key, followed)).transpose();
            async move { leader }
        });
        Box::pin(leaders)
    }

    /// The revision of the record if it is ours now.
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
                    // A watch that fails tells nothing: the session does.
                    Ok(()) = gone(&*store, &key, since) => {}
                }
                said.send_replace(false);
            }
        });
        Leadership { session, key: self.key.clone(), since, held, guard }
    }
}

impl Leadership {
    /// Since this revision of the store: higher than that of every leader before.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// Whether it is not known to be lost.
    pub fn is_held(&self) -> bool {
        *self.held.borrow() && self.session.is_live()
    }

    /// Waits until it is lost, or can have been lost because the store was not reached in time.
    pub async fn lost(&self) {
        let mut held = self.held.clone();
        let _ = held.wait_for(|held| !held).await;
    }

    /// Belongs into every transaction of a leader: makes it fail with a conflict once this
    /// leadership is lost.
    pub fn fence(&self) -> Write {
        Write::Check { key: self.key.clone(), expect: Expect::Revision(self.since) }
    }

    /// Makes place for another at once: soon after, this one is lost.
    pub async fn resign(&self) -> Result<()> {
        self.session.store().end_session(self.session.id()).await
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.guard.abort();
    }
}

/// Returns when the record at `key` is not any more as it was written at `revision`.
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

/// What that says of the record at `key`; none: nothing.
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
