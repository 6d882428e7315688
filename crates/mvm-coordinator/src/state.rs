//! What a coordinator knows, and what its parts share.

use crate::claim_queue::ClaimQueue;
use crate::leadership::{Lead, Leadership};
use crate::locations::Locations;
use crate::node_client::{Connector, NodeClient, Refused};
use crate::reachability::Reachability;
use crate::readiness::Readiness;
use crate::records::DocumentRecord;
use crate::shutdown::Shutdown;
use crate::view::View;
use crate::{Error, Result, Thing};
use mvm_clock::Clock;
use mvm_model::fleet::{FleetState, Limits};
use mvm_model::{Name, PoolRef, Timestamp};
use mvm_store::Store;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};

/// How long to wait for a node whose link is being made again: links are tried again within that
/// time.
const COMES: Duration = Duration::from_secs(3);
/// How often it is checked whether a node is still in reach.
const LOOK: Duration = Duration::from_millis(500);

/// The options of a coordinator.
#[derive(Clone, Debug)]
pub struct Options {
    /// The fleet's name.
    pub fleet_id: Name,
    /// The coordinator's name, unique in the fleet.
    pub name: Name,
    /// Where others reach it.
    pub address: String,
    /// The kind of the store: `sqlite` or `etcd`.
    pub store: &'static str,
    /// How long it counts as there after it has died.
    pub ttl: Duration,
    /// How long a claim waits for a machine.
    pub patience: Duration,
    /// How many nodes are sent documents at once.
    pub pushes: usize,
    /// How many claims may wait and be under way.
    pub limits: Limits,
}

/// The state that the parts of a coordinator share: its options, what it knows, and whom it can
/// ask.
pub struct ClusterState {
    pub(crate) options: Options,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) claims: ClaimQueue,
    pub(crate) leadership: Leadership,
    pub(crate) nodes: Nodes,
    pub(crate) placing: Placing,
}

/// How far this coordinator's own life has come, and its time.
pub(crate) struct Lifecycle {
    pub clock: Clock,
    pub started_at: Timestamp,
    pub readiness: Readiness,
    pub shutdown: Shutdown,
}

/// What is known of the nodes.
pub(crate) struct Nodes {
    view: Mutex<View>,
    /// Changes whenever a node reports something.
    pub news: watch::Sender<()>,
    /// What other coordinators learn of it.
    pub reachability: Reachability,
    pub locations: Locations,
}

/// What the leader's planner waits for, and how much it does at once.
pub(crate) struct Placing {
    /// Held while a document is compared with the one in force and takes its place.
    pub applying: tokio::sync::Mutex<()>,
    /// Asks the leader to look at the placement again.
    pub replan: Notify,
    /// A permit for each node that is sent its document.
    pub pushes: Semaphore,
}

impl ClusterState {
    /// Returns the state of a coordinator that does nothing yet: see [`run`](crate::run).
    pub fn new(
        options: Options,
        store: Arc<dyn Store>,
        connector: Arc<dyn Connector>,
        clock: Clock,
    ) -> Arc<ClusterState> {
        let pushes = Semaphore::new(options.pushes.max(1));
        let (readiness, shutdown) = Default::default();
        let (view, reachability, locations) = Default::default();
        Arc::new(ClusterState {
            claims: ClaimQueue::new(options.limits),
            options,
            store,
            connector,
            lifecycle: Lifecycle { started_at: clock.now(), clock, readiness, shutdown },
            leadership: Leadership::default(),
            nodes: Nodes { view, news: watch::channel(()).0, reachability, locations },
            placing: Placing { applying: Default::default(), replan: Notify::new(), pushes },
        })
    }

    /// Returns this coordinator's clock. Times of its timeline mean something here only.
    pub(crate) fn clock(&self) -> &Clock {
        &self.lifecycle.clock
    }

    /// Returns what is known, locked to look at and to change.
    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        // Whole values only are put there: a holder that panicked leaves nothing half done.
        self.nodes.view.lock()
    }

    /// Returns our leadership while we lead.
    pub(crate) fn lead(&self) -> Option<Arc<Lead>> {
        self.leadership.ours()
    }

    /// Returns whether we lead, and have led since this leadership began.
    pub(crate) fn leads_as(&self, lead: &Arc<Lead>) -> bool {
        self.lead().is_some_and(|ours| Arc::ptr_eq(&ours, lead))
    }

    /// Begins to lead; with `None` the leadership ends.
    pub(crate) fn set_lead(&self, lead: Option<Arc<Lead>>) {
        self.leadership.set_ours(lead);
        for known in self.view().nodes.values_mut() {
            known.resolved = false;
            known.kick.notify_one();
        }
    }

    /// Returns whether this coordinator leads.
    pub fn leads(&self) -> bool {
        self.lead().is_some()
    }

    /// Returns the client of a node that is in reach; any other is [`Refused::Unreached`].
    pub(crate) fn node_client(
        &self,
        node: &Name,
    ) -> std::result::Result<Arc<dyn NodeClient>, Refused> {
        let view = self.view();
        let reached = view.nodes.get(node).filter(|known| known.reached);
        let client = reached.map(|known| known.client.clone());
        client.ok_or_else(|| Refused::Unreached(Error::OutOfReach(node.clone())))
    }

    /// Returns whether this coordinator's link to the node holds.
    pub(crate) fn reaches(&self, node: &Name) -> bool {
        self.view().nodes.get(node).is_some_and(|known| known.reached)
    }

    /// Returns whether no coordinator reaches the node; so it is with an unknown one.
    pub(crate) fn has_lost(&self, node: &Name) -> bool {
        let view = self.view();
        let known = view.nodes.get(node);
        known.is_none_or(|known| !known.reached && known.record.lost_since.is_some())
    }

    /// Waits until this coordinator does not reach the node; its connections may take longer to
    /// break.
    pub(crate) async fn unreached(&self, node: &Name) {
        while self.reaches(node) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits a moment for those of the nodes that only other coordinators reach, as this one will soon,
    /// and for those that were there just now: an agent that is replaced comes back.
    pub(crate) async fn await_nodes(&self, nodes: &[Name]) {
        let mut news = self.nodes.news.subscribe();
        let one_comes = || {
            let view = self.view();
            nodes.iter().any(|node| {
                let by_others = view.alive.get(node).is_some_and(|by| !by.is_empty());
                let absent = view.nodes.get(node).filter(|known| !known.reached);
                absent.is_some_and(|known| {
                    by_others || known.lost_at.is_some_and(|at| at.elapsed() < COMES)
                })
            })
        };
        let come = async { while one_comes() && news.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(COMES, come).await;
    }

    /// Returns the nodes that this coordinator reaches.
    pub(crate) fn reached(&self) -> Vec<Name> {
        let view = self.view();
        let reached = view.nodes.iter().filter(|(_, known)| known.reached);
        reached.map(|(name, _)| name.clone()).collect()
    }

    /// Returns the document in force. Errors: `not_found`.
    pub(crate) fn document(&self) -> Result<FleetState> {
        let view = self.view();
        let document = view.document.as_ref().map(|record| record.document.clone());
        document.ok_or(Error::NoDocument)
    }

    /// Refuses a pool that the fleet's document does not name.
    pub(crate) fn check_pool(&self, pool: &PoolRef) -> Result<()> {
        let known = |record: &DocumentRecord| record.document.pool(pool).is_some();
        if self.view().document.as_ref().is_some_and(known) {
            return Ok(());
        }
        Err(Error::Missing(Thing::Pool(pool.clone())))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Reaches nobody.
    pub struct Nowhere;

    impl Connector for Nowhere {
        fn node(&self, node: &Name, _: &str) -> Result<Arc<dyn NodeClient>> {
            Err(Error::OutOfReach(node.clone()))
        }

        fn coordinator(&self, address: &str) -> Result<mvm_api::Client> {
            Err(Error::ReachWithoutIdentity { address: address.to_owned() })
        }
    }

    /// Returns a coordinator without nodes that does nothing.
    pub fn lonely() -> Arc<ClusterState> {
        lonely_with(Arc::new(Nowhere))
    }

    /// Returns a coordinator that does nothing and reaches nodes by this connector.
    pub fn lonely_with(connector: Arc<dyn Connector>) -> Arc<ClusterState> {
        let store = mvm_store::SqliteStore::in_memory().expect("a store");
        one_of_several(Arc::new(store), connector, Clock::system())
    }

    /// Returns a coordinator of those that share this store, with a clock of its own.
    pub fn one_of_several(
        store: Arc<dyn Store>,
        connector: Arc<dyn Connector>,
        clock: Clock,
    ) -> Arc<ClusterState> {
        let options = Options {
            fleet_id: "f".parse().expect("a name"),
            name: "c1".parse().expect("a name"),
            address: "unix:/nowhere".to_owned(),
            store: "sqlite",
            ttl: Duration::from_secs(5),
            patience: Duration::from_secs(5),
            pushes: 1,
            limits: Limits { per_node: 1, per_tenant: 1, total: 1 },
        };
        ClusterState::new(options, store, connector, clock)
    }
}
