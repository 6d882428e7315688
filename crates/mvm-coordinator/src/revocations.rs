//! Revoked certificates: every coordinator takes the list when its store has it, and the leader
//! sends it to all nodes in reach. A node that was missed fetches it by itself.

use crate::state::ClusterState;
use futures::StreamExt;
use mvm_api::types::RevocationList;
use mvm_api::{Client, paths};
use mvm_identity::tls::Credentials;
use mvm_model::Name;
use mvm_server::signer::{LIST, list_of};
use mvm_store::{Followed, follow};
use std::sync::Arc;
use std::time::Duration;

/// How many nodes get the list at once, and how long each has to answer.
const AT_ONCE: usize = 64;
const ANSWER: Duration = Duration::from_secs(5);
/// How long to wait before a store that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Takes every new list and sends it on; never returns.
pub(crate) async fn run(fleet: Arc<ClusterState>, credentials: Arc<Credentials>) {
    loop {
        let mut followed = follow(fleet.store.clone(), LIST);
        while let Some(item) = followed.next().await {
            let newest = match item {
                Ok(Followed::All { records, .. }) => records.last().map(|r| list_of(&r.value)),
                Ok(Followed::Changed(changes)) => {
                    changes.iter().rev().find_map(|c| c.value.as_deref().map(list_of))
                }
                Err(error) => {
                    tracing::warn!("what is revoked cannot be followed: {error}");
                    None
                }
            };
            match newest {
                Some(Ok(crl)) => take(&fleet, &credentials, crl).await,
                Some(Err(problem)) => tracing::error!("{problem}"),
                None => {}
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn take(fleet: &Arc<ClusterState>, credentials: &Credentials, crl: String) {
    if let Err(problem) = credentials.revoke(&crl) {
        return tracing::error!("a list of revoked certificates is not taken: {problem}");
    }
    if !fleet.leads() {
        return;
    }
    let list = RevocationList { crl };
    let nodes: Vec<(Name, Client)> = {
        let view = fleet.view();
        let reached = view.nodes.iter().filter(|(_, known)| known.reached);
        reached.filter_map(|(name, known)| Some((name.clone(), known.client.http()?))).collect()
    };
    let send = |(node, client): (Name, Client)| {
        let list = &list;
        async move {
            let sent = client.put::<serde_json::Value>(paths::AGENT_CRL, list);
            match tokio::time::timeout(ANSWER, sent).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::info!(%node, "fetches what is revoked: {error}"),
                Err(_) => tracing::info!(%node, "fetches what is revoked: it does not answer"),
            }
        }
    };
    futures::stream::iter(nodes.into_iter().map(send)).buffer_unordered(AT_ONCE).count().await;
}
