//! The tasks of a coordinator, all together.

use crate::state::ClusterState;
use crate::{leader, presence, registry};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long answers wait for the links to the nodes, of which one may be dead.
const LINKS: Duration = Duration::from_secs(2);

/// Follows the store, holds the links to the nodes, and leads when it is this coordinator's turn.
pub async fn run(state: &Arc<ClusterState>) {
    tokio::join!(
        registry::follow_nodes(state),
        registry::follow_alive(state),
        registry::follow_document(state),
        registry::follow_shares(state),
        registry::follow_leader(state),
        presence::run(state),
        leader::run(state),
        become_ready(state),
    );
}

/// Lets the coordinator answer as soon as the store is read and the nodes are reached.
async fn become_ready(state: &ClusterState) {
    if state.lifecycle.readiness.all_read().await {
        let _ = timeout(LINKS, all_reached(state)).await;
        state.lifecycle.readiness.finish();
    }
}

/// Waits until every node is in reach.
async fn all_reached(state: &ClusterState) {
    let mut news = state.nodes.news.subscribe();
    let all = || {
        let view = state.view();
        view.nodes.values().all(|known| known.reached)
    };
    while !all() && news.changed().await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::READ;
    use crate::state::tests::lonely;
    use futures::FutureExt;

    #[tokio::test]
    async fn nothing_is_answered_before_the_store_is_read() {
        let fleet = lonely();
        let mut asked = std::pin::pin!(fleet.lifecycle.readiness.wait());
        for prefix in READ {
            assert!(asked.as_mut().now_or_never().is_none(), "{prefix} is not read yet");
            fleet.lifecycle.readiness.has_read(prefix);
        }
        fleet.lifecycle.readiness.has_read("elections/");
        become_ready(&fleet).await;
        assert!(asked.await.is_ok());
    }
}
