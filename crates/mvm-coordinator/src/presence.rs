//! Telling the other coordinators which nodes are in reach: records that vanish with this one.
//!
//! A node is alive as long as any coordinator reaches it. Only changes are written, however many
//! nodes beat however often. All records hang on one session, so that those of a coordinator that
//! dies vanish with it.

use crate::records::ALIVE;
use crate::state::ClusterState;
use crate::{Error, Result};
use mvm_model::Name;
use mvm_store::{Expect, Session, Write};
use std::sync::Arc;
use std::time::Duration;

/// How long the store may take to answer when this coordinator ends.
const ANSWER: Duration = Duration::from_secs(2);
/// How long to wait before a store that failed is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Tells until this coordinator is to end; then its records go at once.
pub(crate) async fn run(fleet: &Arc<ClusterState>) {
    loop {
        let session = match Session::open(fleet.store.clone(), fleet.options.ttl).await {
            Ok(session) => session,
            Err(error) => {
                tracing::warn!("no session of the store: {error}");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let _under_way = fleet.lifecycle.shutdown.wait_for_this();
        fleet.nodes.reachability.all_again();
        while session.is_live() {
            if fleet.lifecycle.shutdown.has_begun() {
                return take_back(session).await;
            }
            let taken = fleet.nodes.reachability.take();
            if taken.is_empty() {
                tokio::select! {
                    () = fleet.nodes.reachability.changed() => {}
                    () = session.ended() => {}
                    () = fleet.lifecycle.shutdown.begun() => {}
                }
                continue;
            }
            if let Err(problem) = publish(fleet, &session, &taken).await {
                tracing::warn!("cannot tell which nodes are in reach: {problem}");
                fleet.nodes.reachability.put_back(taken);
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

async fn publish(fleet: &ClusterState, session: &Session, taken: &[(Name, bool)]) -> Result<()> {
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
    fleet.store.commit(taken.iter().map(write).collect()).await.map(drop).map_err(Error::from)
}
