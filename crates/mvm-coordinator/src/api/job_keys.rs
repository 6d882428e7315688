//! Records of which node makes a key's job, written before the node is asked. The node itself makes
//! sure that the key stands for one job (`mvm_server::Idempotency`).

use crate::records::put;
use crate::{Result, records};
use axum::http::StatusCode;
use mvm_model::{Name, Timestamp};
use mvm_store::{Error, Expect, Store, Write};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The prefix of the records' keys in the store.
const PREFIX: &str = "placed/";
/// For how long a key's node is remembered: nodes remember keys for a day, and coordinators whose
/// clocks differ may differ by another.
const KEPT: Duration = Duration::from_secs(48 * 3600);
/// One key in this many pays for the removal of those that nodes have forgotten.
const SWEEP: u8 = 64;

#[derive(Debug, Serialize, Deserialize)]
struct KeyRecord {
    node: Name,
    /// When it was chosen, on the timeline of the coordinator that chose it.
    at: Timestamp,
    /// How many requests with the key were sent to the node before the last one.
    #[serde(default)]
    before: u32,
}

/// The place of a key, as one request found or made it.
pub struct KeyAssignment {
    /// The node that makes the key's job.
    pub node: Name,
    /// Whether the node was chosen for this request.
    pub first: bool,
    /// The record's key, and its revision after this request has noted itself there.
    record: (String, u64),
}

/// Returns the place of a key: the recorded one, else what `choose` returns, which is recorded as
/// chosen `now`. The record says that one more request goes there.
pub async fn node(
    store: &dyn Store,
    key: &str,
    now: Timestamp,
    choose: impl Fn() -> Result<Name>,
) -> Result<KeyAssignment> {
    let at = format!("{PREFIX}{key}");
    loop {
        let (placed, expect) = match store.get(&at).await? {
            Some(found) => {
                let KeyRecord { node, at, before } = records::read(&at, &found.value)?;
                let before = before.saturating_add(1);
                (KeyRecord { node, at, before }, Expect::Revision(found.revision))
            }
            None => (KeyRecord { node: choose()?, at: now, before: 0 }, Expect::Absent),
        };
        let first = matches!(expect, Expect::Absent);
        match store.commit(vec![put(at.clone(), &placed, expect)]).await {
            Ok(revision) => {
                let drawn = u8::from_str_radix(key.get(..2).unwrap_or_default(), 16);
                if first && drawn.is_ok_and(|drawn| drawn % SWEEP == 0) {
                    sweep(store, now).await?;
                }
                return Ok(KeyAssignment { node: placed.node, first, record: (at, revision) });
            }
            Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl KeyAssignment {
    /// Notes the node's answer. A node that has refused made nothing: the next request may go to
    /// another.
    pub async fn answered(self, store: &dyn Store, status: StatusCode) -> Result<()> {
        // With these two the node says that it knows the key.
        let known = matches!(status, StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY);
        match status.is_client_error() && !known {
            true => self.free(store).await,
            false => Ok(()),
        }
    }

    /// Forgets the node, which has made nothing of this request, so that the next request may go to
    /// another. Where another request with the key was sent to the node since, the node may make
    /// something of that one: the place stays.
    pub async fn free(self, store: &dyn Store) -> Result<()> {
        let (key, revision) = self.record;
        let freed = Write::Delete { key, expect: Expect::Revision(revision) };
        match store.commit(vec![freed]).await {
            Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

async fn sweep(store: &dyn Store, now: Timestamp) -> Result<()> {
    for record in store.list(PREFIX).await? {
        let placed: KeyRecord = records::read(&record.key, &record.value)?;
        if placed.at + KEPT < now {
            let delete = Write::Delete { key: record.key, expect: Expect::Any };
            store.commit(vec![delete]).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_store::SqliteStore;

    fn choose(name: &'static str) -> impl Fn() -> Result<Name> {
        move || Ok(name.parse()?)
    }

    #[tokio::test]
    async fn a_key_stays_with_its_node_until_that_refuses_it() {
        let store = SqliteStore::in_memory().expect("a store");
        let ask =
            async |name| node(&store, "ab", Timestamp::EPOCH, choose(name)).await.expect("a place");
        let mut place = ask("n1").await;
        assert_eq!((place.node.as_str(), place.first), ("n1", true));
        for status in [200, 409, 422, 500, 503] {
            let status = StatusCode::from_u16(status).expect("a status");
            place.answered(&store, status).await.expect("noted");
            place = ask("n2").await;
            assert_eq!(
                (place.node.as_str(), place.first),
                ("n1", false),
                "{status}: it may be there"
            );
        }
        place.answered(&store, StatusCode::TOO_MANY_REQUESTS).await.expect("noted");
        assert_eq!(ask("n2").await.node.as_str(), "n2");
    }

    #[tokio::test]
    async fn a_node_that_is_asked_again_meanwhile_keeps_the_key() {
        let store = SqliteStore::in_memory().expect("a store");
        let ask =
            async |name| node(&store, "ab", Timestamp::EPOCH, choose(name)).await.expect("a place");
        let lost = ask("n1").await;
        // The client did not wait for the outcome of its first request, and the node takes this one.
        let made = ask("n2").await;
        lost.free(&store).await.expect("noted");
        assert_eq!(ask("n2").await.node.as_str(), "n1", "the job of the second request is there");
        made.answered(&store, StatusCode::OK).await.expect("noted");
    }

    #[tokio::test]
    async fn what_nodes_have_forgotten_is_forgotten() {
        let store = SqliteStore::in_memory().expect("a store");
        let begun = Timestamp::from_millis(1);
        for key in ["ab", "cd"] {
            node(&store, key, begun, choose("n1")).await.expect("a node");
        }
        sweep(&store, begun + KEPT / 2).await.expect("swept");
        assert_eq!(store.list(PREFIX).await.expect("listed").len(), 2);
        sweep(&store, begun + KEPT + Duration::from_secs(1)).await.expect("swept");
        assert_eq!(store.list(PREFIX).await.expect("listed").len(), 0);
    }
}
