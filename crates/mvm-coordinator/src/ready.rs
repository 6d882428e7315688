//! Whether a coordinator knows what it is asked about. One that has just been started has read nothing
//! of the store yet and reaches no node: its lists would be empty, and nothing would be found.

use crate::fleet::Fleet;
use crate::records::{ALIVE, DOCUMENT, NODES, SHARES};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mvm_api::{Problem, paths};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// What is read of the store before anything is answered.
const READ: [&str; 4] = [ALIVE, DOCUMENT, NODES, SHARES];
/// How long the links to the nodes may take after that; a node may be dead.
const LINKS: Duration = Duration::from_secs(2);
/// How long a request waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far a coordinator is with reading.
pub(crate) struct Ready {
    read: watch::Sender<BTreeSet<&'static str>>,
    done: watch::Sender<bool>,
}

impl Default for Ready {
    fn default() -> Ready {
        Ready { read: watch::channel(BTreeSet::new()).0, done: watch::channel(false).0 }
    }
}

impl Ready {
    /// All records below this prefix are known.
    pub fn has_read(&self, prefix: &str) {
        if let Some(prefix) = READ.into_iter().find(|one| *one == prefix) {
            self.read.send_if_modified(|read| read.insert(prefix));
        }
    }

    /// Waits until all that is answered from is known. Errors: `not_ready`.
    async fn wait(&self) -> Result<(), Problem> {
        let mut done = self.done.subscribe();
        match timeout(PATIENCE, done.wait_for(|done| *done)).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let detail =
                    "this coordinator has just been started, and has not read the store yet";
                Err(Problem::new(503, "not_ready", detail).hint("try again in some seconds"))
            }
        }
    }
}

/// Has the coordinator answer as soon as the store is read and the nodes are reached.
pub(crate) async fn run(fleet: &Arc<Fleet>) {
    let mut read = fleet.ready.read.subscribe();
    let all_read = read.wait_for(|read| read.len() == READ.len()).await.is_ok();
    if all_read {
        let _ = timeout(LINKS, reached(fleet)).await;
        fleet.ready.done.send_replace(true);
    }
}

/// Waits until every node is in reach.
async fn reached(fleet: &Fleet) {
    let mut news = fleet.news.subscribe();
    let all = || {
        let view = fleet.view();
        view.nodes.values().all(|known| known.reached)
    };
    while !all() && news.changed().await.is_ok() {}
}

/// Stands before what is answered from the fleet's state.
pub(crate) async fn layer(
    State(fleet): State<Arc<Fleet>>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    // What the coordinator says of itself, and what the authority does.
    let own = matches!(route, paths::COORDINATOR | "/openapi.json") || route.starts_with("/v1/ca/");
    match if own { Ok(()) } else { fleet.ready.wait().await } {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tests::lonely;
    use futures::FutureExt;

    #[tokio::test]
    async fn nothing_is_answered_before_the_store_is_read() {
        let fleet = lonely().await;
        let mut asked = std::pin::pin!(fleet.ready.wait());
        for prefix in READ {
            assert!(asked.as_mut().now_or_never().is_none(), "{prefix} is not read yet");
            fleet.ready.has_read(prefix);
        }
        fleet.ready.has_read("elections/");
        run(&fleet).await;
        assert!(asked.await.is_ok());
    }
}
