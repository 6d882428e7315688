//! Records of which node makes a key's job, written before the node is asked. The node itself makes
//! sure that the key stands for one job (`mvm_server::Idempotency`).

use crate::records::put;
use crate::{Result, now, records};
use axum::http::StatusCode;
use mvm_model::{Millis, Name};
use mvm_store::{Error, Expect, Store, Write};
use serde::{Deserialize, Serialize};

/// The prefix of the records' keys in the store.
const PREFIX: &str = "placed/";
/// For how long a key's node is remembered, in ms: nodes remember keys for a day, and coordinators whose
/// clocks differ may differ by another.
const KEPT: Millis = 48 * 3600 * 1000;
/// One key in this many pays for the removal of those that nodes have forgotten.
const SWEEP: u8 = 64;

#[derive(Debug, Serialize, Deserialize)]
struct Placed {
    node: Name,
    /// When it was chosen, on the timeline of the coordinator that chose it.
    at: Millis,
}

/// Returns the node of a key, and whether it was chosen just now: the recorded one, else what
/// `choose` returns, which is recorded.
pub async fn node(
    store: &dyn Store,
    key: &str,
    choose: impl Fn() -> Result<Name>,
) -> Result<(Name, bool)> {
    let place = format!("{PREFIX}{key}");
    loop {
        if let Some(found) = store.get(&place).await? {
            return Ok((records::read::<Placed>(&place, &found.value)?.node, false));
        }
        let placed = Placed { node: choose()?, at: now() };
        match store.commit(vec![put(place.clone(), &placed, Expect::Absent)]).await {
            Ok(_) => {
                let drawn = u8::from_str_radix(key.get(..2).unwrap_or_default(), 16);
                if drawn.is_ok_and(|drawn| drawn % SWEEP == 0) {
                    sweep(store, now()).await?;
                }
                return Ok((placed.node, true));
            }
            Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Notes the node's answer. A node that has refused made nothing: the next request may go to
/// another.
pub async fn answered(store: &dyn Store, key: &str, status: StatusCode) -> Result<()> {
    // With these two the node says that it knows the key.
    let known = matches!(status, StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY);
    if status.is_client_error() && !known {
        free(store, key).await?;
    }
    Ok(())
}

/// Forgets the key's node, which has made nothing: the next request may go to another.
pub async fn free(store: &dyn Store, key: &str) -> Result<()> {
    let freed = Write::Delete { key: format!("{PREFIX}{key}"), expect: Expect::Any };
    store.commit(vec![freed]).await.map(drop).map_err(crate::Error::from)
}

async fn sweep(store: &dyn Store, now: Millis) -> Result<()> {
    for record in store.list(PREFIX).await? {
        let placed: Placed = records::read(&record.key, &record.value)?;
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
            async |name| node(&store, "ab", choose(name)).await.expect("a node").0.to_string();
        assert_eq!(ask("n1").await, "n1");
        for status in [200, 409, 422, 500, 503] {
            let status = StatusCode::from_u16(status).expect("a status");
            answered(&store, "ab", status).await.expect("noted");
            assert_eq!(ask("n2").await, "n1", "{status}: it may be there");
        }
        answered(&store, "ab", StatusCode::TOO_MANY_REQUESTS).await.expect("noted");
        assert_eq!(ask("n2").await, "n2");
    }

    #[tokio::test]
    async fn what_nodes_have_forgotten_is_forgotten() {
        let store = SqliteStore::in_memory().expect("a store");
        for key in ["ab", "cd"] {
            node(&store, key, choose("n1")).await.expect("a node");
        }
        sweep(&store, now() + KEPT / 2).await.expect("swept");
        assert_eq!(store.list(PREFIX).await.expect("listed").len(), 2);
        sweep(&store, now() + KEPT + 1000).await.expect("swept");
        assert_eq!(store.list(PREFIX).await.expect("listed").len(), 0);
    }
}
