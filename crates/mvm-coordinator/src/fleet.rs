//! What a coordinator knows, and what its parts share.

use crate::alive::Alive;
use crate::desk::Desk;
use crate::ending::Ending;
use crate::planner::digest;
use crate::port::{Connector, NodePort, Refused};
use crate::ready::Ready;
use crate::records::{Candidate, DocumentRecord, NodeRecord};
use crate::{Result, now, stored};
use mvm_api::Problem;
use mvm_api::fleet::Leader;
use mvm_model::fleet::{
    FleetState, Limits, Node, NodeStatus, Placement, PoolStatus, Shapes, kept_news, shapes,
};
use mvm_model::{DesiredState, Millis, Name, PoolRef};
use mvm_store::{Leadership, Store, Write};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, watch};

/// How long a node is waited for that will be in reach in a moment: links are tried again within it.
const COMES: Duration = Duration::from_secs(3);

/// How long a leader that was succeeded has to answer what it was asked before.
const SUCCEEDED: Duration = Duration::from_secs(3);
/// How often it is looked whether a node is still in reach.
const LOOK: Duration = Duration::from_millis(500);

/// What a coordinator is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The fleet.
    pub fleet_id: Name,
    /// Its own name, unique among the fleet's coordinators.
    pub name: Name,
    /// Where others reach it.
    pub address: String,
    /// `sqlite` or `etcd`.
    pub store: &'static str,
    /// How long it counts as there after it has died.
    pub ttl: Duration,
    /// How long a claim waits for a machine.
    pub patience: Duration,
    /// How many nodes are sent documents at once.
    pub pushes: usize,
    /// How much may wait and be under way.
    pub limits: Limits,
}

/// A coordinator.
pub struct Fleet {
    pub(crate) options: Options,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) started_at: Millis,
    pub(crate) desk: Desk,
    pub(crate) alive: Alive,
    pub(crate) ending: Ending,
    pub(crate) ready: Ready,
    /// Asks the leader to look at the placement again.
    pub(crate) replan: Notify,
    pub(crate) pushes: Semaphore,
    pub(crate) places: Places,
    /// Changes whenever a node tells something.
    pub(crate) news: watch::Sender<()>,
    view: Mutex<View>,
    /// Our leadership, while we lead.
    lead: watch::Sender<Option<Arc<Lead>>>,
    /// Who leads, as the store says.
    leader: watch::Sender<Option<Candidate>>,
}

/// The leadership of this coordinator.
pub(crate) struct Lead {
    leadership: Leadership,
    /// What nodes are told.
    pub leader: Leader,
    /// Since when.
    pub since: Instant,
}

impl Lead {
    /// Belongs into every write of the leader.
    pub fn fence(&self) -> Write {
        self.leadership.fence()
    }

    /// Waits until it is lost.
    pub async fn lost(&self) {
        self.leadership.lost().await;
    }

    /// Makes place for another at once.
    pub async fn resign(&self) -> Result<()> {
        self.leadership.resign().await.map_err(stored)
    }

    /// Whether it is not known to be lost.
    pub fn is_held(&self) -> bool {
        self.leadership.is_held()
    }
}

/// Where instances and jobs were found last.
#[derive(Default)]
pub(crate) struct Places(Mutex<HashMap<String, Name>>);

impl Places {
    /// So many are remembered; then all are looked for again.
    const MOST: usize = 200_000;

    fn map(&self) -> MutexGuard<'_, HashMap<String, Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn of(&self, what: &str) -> Option<Name> {
        self.map().get(what).cloned()
    }

    pub fn note(&self, what: String, node: &Name) {
        let mut map = self.map();
        if map.len() >= Self::MOST {
            map.clear();
        }
        map.insert(what, node.clone());
    }

    pub fn forget(&self, what: &str) {
        self.map().remove(what);
    }
}

/// What is known of all nodes.
#[derive(Default)]
pub(crate) struct View {
    pub nodes: BTreeMap<Name, Known>,
    /// Which coordinators reach a node.
    pub alive: BTreeMap<Name, BTreeSet<String>>,
    pub document: Option<DocumentRecord>,
    /// Its digest.
    pub digest: Option<String>,
    /// Of the document's pools.
    pub shapes: Shapes,
    /// Shared with whoever is placing.
    pub placement: Arc<Placement>,
    /// Of the leader: what each node is to be sent.
    pub wanted: BTreeMap<Name, Wanted>,
    /// Of the leader: the digest of the document that this is of.
    pub told: Option<String>,
    /// Of the leader: whether some nodes are told of pools only when others have built their images.
    pub waits_for_images: bool,
}

impl View {
    /// Another document is in force, or none.
    pub fn set_document(&mut self, document: Option<DocumentRecord>) {
        self.shapes = document.as_ref().map(|record| shapes(&record.document)).unwrap_or_default();
        self.digest = document.as_ref().map(|record| digest(&record.document));
        self.document = document;
    }

    /// Of the leader: whether every node in reach has done all of the document in force.
    pub fn is_done(&self) -> bool {
        let mut reached = self.nodes.iter().filter(|(_, known)| known.reached);
        self.told == self.digest
            && reached.all(|(name, known)| known.has_done(self.wanted.get(name)))
    }

    /// Whether a node is to hold a pool, and does not merely keep it for its jobs.
    pub fn holds(&self, node: &Name, pool: &PoolRef) -> bool {
        self.placement.nodes.get(node).is_some_and(|share| share.pools.contains_key(pool))
    }

    /// What a node says that a placement or other nodes wait for.
    pub fn news(&self, node: &Name) -> News {
        let share = self.placement.nodes.get(node).filter(|share| !share.kept.is_empty());
        let known = self.nodes.get(node).filter(|_| share.is_some() || self.waits_for_images);
        let Some(seen) = known.and_then(|known| known.node(self.wanted.get(node))) else {
            return News::default();
        };
        let image = |(pool, held): (&PoolRef, &PoolStatus)| {
            (pool.clone(), held.revision.clone(), held.failure.is_some())
        };
        let pools = seen.status.pools.iter().filter(|_| self.waits_for_images);
        News {
            settled: seen.settled,
            failed: seen.status.failure.is_some(),
            kept: share.map(|share| kept_news(&seen, share)).unwrap_or_default(),
            images: pools.map(image).collect(),
        }
    }
}

/// What a node says that is looked at at once.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Whether it has done what it was told last.
    settled: bool,
    /// Of the pools that it keeps for their jobs.
    kept: Vec<(bool, bool)>,
    /// Whether a step has failed.
    failed: bool,
    /// Of each pool its image, and whether it has failed.
    images: Vec<(PoolRef, Option<String>, bool)>,
}

/// A node in the registry.
pub(crate) struct Known {
    pub record: NodeRecord,
    pub port: Arc<dyn NodePort>,
    /// What it said last.
    pub status: Option<Arc<NodeStatus>>,
    /// Whether this coordinator reaches it.
    pub reached: bool,
    /// When this coordinator has lost it, if it has.
    pub lost_at: Option<Instant>,
    /// Since when this coordinator knows that no coordinator reaches it, on its own timeline. The
    /// clocks of coordinators may differ: none counts by a time that another has written.
    pub missed_since: Option<Millis>,
    /// Whether it has told this leader which claims it holds.
    pub resolved: bool,
    /// Why it did not take its document.
    pub refused: Option<String>,
    /// Something is to be done for it.
    pub kick: Arc<Notify>,
    /// Ends its link.
    pub link: tokio::task::AbortHandle,
}

impl Known {
    /// The record was changed, here or by another coordinator.
    pub fn changed(&mut self, record: NodeRecord) {
        let missed = record.lost_since.map(|_| self.missed_since.unwrap_or_else(now));
        (self.record, self.missed_since) = (record, missed);
    }

    /// Whether it has said that it has done all of this.
    pub fn has_done(&self, wanted: Option<&Wanted>) -> bool {
        self.status.as_deref().is_some_and(|status| wanted.is_some_and(|w| w.is_done(status)))
    }

    /// As placement sees it; `wanted` is what it was told last. `None` for one that was never
    /// reached.
    pub fn node(&self, wanted: Option<&Wanted>) -> Option<Node> {
        let settled = self.reached && self.has_done(wanted);
        let lost_since = self.missed_since;
        Some(Node { settled, lost_since, ..self.record.node(self.status.as_ref())? })
    }
}

/// What a node is to be sent.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub digest: String,
    pub document: Arc<DesiredState>,
}

impl Wanted {
    /// Whether a node that says this has done all of it.
    pub fn is_done(&self, status: &NodeStatus) -> bool {
        status.document.as_ref() == Some(&self.digest) && status.pending == 0
    }
}

impl Fleet {
    /// A coordinator that does nothing yet: see [`Fleet::run`].
    pub fn new(
        options: Options,
        store: Arc<dyn Store>,
        connector: Arc<dyn Connector>,
    ) -> Arc<Fleet> {
        let (pushes, limits) = (Semaphore::new(options.pushes.max(1)), options.limits);
        Arc::new(Fleet {
            options,
            store,
            connector,
            started_at: now(),
            desk: Desk::new(limits),
            alive: Alive::default(),
            ending: Ending::default(),
            ready: Ready::default(),
            replan: Notify::new(),
            pushes,
            places: Places::default(),
            news: watch::channel(()).0,
            view: Mutex::default(),
            lead: watch::channel(None).0,
            leader: watch::channel(None).0,
        })
    }

    /// Follows the store, holds the links to the nodes, and leads when it is this one's turn.
    pub async fn run(self: &Arc<Self>) {
        tokio::join!(
            crate::registry::follow_nodes(self),
            crate::registry::follow_alive(self),
            crate::registry::follow_document(self),
            crate::registry::follow_shares(self),
            crate::registry::follow_leader(self),
            crate::alive::run(self),
            crate::leader::run(self),
            crate::ready::run(self),
        );
    }

    /// Looks at what is known, and changes it.
    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        // Whole values only are put there: a holder that panicked leaves nothing half done.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our leadership, if we lead.
    pub(crate) fn lead(&self) -> Option<Arc<Lead>> {
        self.lead.borrow().clone().filter(|lead| lead.is_held())
    }

    /// Whether we lead, and have led since this leadership began.
    pub(crate) fn leads_as(&self, lead: &Arc<Lead>) -> bool {
        self.lead().is_some_and(|ours| Arc::ptr_eq(&ours, lead))
    }

    /// The leadership, as its parts share it.
    pub(crate) fn leadership(&self, leadership: Leadership) -> Arc<Lead> {
        let epoch = leadership.since();
        let leader = Leader { fleet_id: self.options.fleet_id.clone(), epoch };
        Arc::new(Lead { leadership, leader, since: Instant::now() })
    }

    /// Begins or ends to lead.
    pub(crate) fn set_lead(&self, lead: Option<Arc<Lead>>) {
        self.lead.send_replace(lead);
        for known in self.view().nodes.values_mut() {
            known.resolved = false;
            known.kick.notify_one();
        }
    }

    /// Who leads, as far as is known.
    pub(crate) fn leader(&self) -> Option<Candidate> {
        self.leader.borrow().clone()
    }

    /// Waits until another coordinator than this one leads, and a moment more: one that gives its place
    /// up in order has answered by then. One that hangs never does, though its machine keeps its
    /// connections.
    pub(crate) fn succession(&self, leader: &Name) -> impl Future<Output = ()> + Send + use<> {
        let (mut seen, leader) = (self.leader.subscribe(), leader.clone());
        async move {
            let other = |now: &Option<Candidate>| now.as_ref().is_some_and(|n| n.name != leader);
            if seen.wait_for(other).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(SUCCEEDED).await;
        }
    }

    pub(crate) fn set_leader(&self, leader: Option<Candidate>) {
        self.leader.send_replace(leader);
    }

    /// Whether this coordinator leads.
    pub fn leads(&self) -> bool {
        self.lead().is_some()
    }

    /// The way to a node that is in reach.
    pub(crate) fn port(&self, node: &Name) -> std::result::Result<Arc<dyn NodePort>, Refused> {
        let view = self.view();
        let reached = view.nodes.get(node).filter(|known| known.reached);
        reached.map(|known| known.port.clone()).ok_or_else(|| {
            let detail = format!("node {node} is out of reach");
            Refused::Unreached(Problem::new(503, "node_unreachable", detail))
        })
    }

    /// Whether this coordinator's link to the node holds.
    pub(crate) fn reaches(&self, node: &Name) -> bool {
        self.view().nodes.get(node).is_some_and(|known| known.reached)
    }

    /// Whether no coordinator reaches the node.
    pub(crate) fn has_lost(&self, node: &Name) -> bool {
        let view = self.view();
        let known = view.nodes.get(node);
        known.is_none_or(|known| !known.reached && known.record.lost_since.is_some())
    }

    /// Waits until this coordinator does not reach the node: connections may take longer to break.
    pub(crate) async fn unreached(&self, node: &Name) {
        while self.reaches(node) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits a moment for those of the nodes that only other coordinators reach, as this one will soon,
    /// and for those that were there just now: an agent that is replaced comes back.
    pub(crate) async fn await_nodes(&self, nodes: &[Name]) {
        let mut news = self.news.subscribe();
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

    /// The nodes that this coordinator reaches.
    pub(crate) fn reached(&self) -> Vec<Name> {
        let view = self.view();
        let reached = view.nodes.iter().filter(|(_, known)| known.reached);
        reached.map(|(name, _)| name.clone()).collect()
    }

    /// The document in force.
    pub(crate) fn document(&self) -> Result<FleetState> {
        let view = self.view();
        let document = view.document.as_ref().map(|record| record.document.clone());
        document.ok_or_else(|| {
            Problem::new(404, "not_found", "this fleet has no document yet")
                .hint("apply one: mvm fleet apply FILE")
        })
    }

    /// Refuses a pool that the fleet's document does not name.
    pub(crate) fn check_pool(&self, pool: &PoolRef) -> Result<()> {
        let known = |record: &DocumentRecord| record.document.pool(pool).is_some();
        if self.view().document.as_ref().is_some_and(known) {
            return Ok(());
        }
        Err(Problem::new(404, "not_found", format!("there is no pool {pool}"))
            .hint("see the pools with `mvm pool list`"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    struct Nowhere;

    impl Connector for Nowhere {
        fn port(&self, _: &Name, address: &str) -> Result<Arc<dyn NodePort>> {
            Err(Problem::internal(format!("there is no way to {address}")))
        }

        fn coordinator(&self, address: &str) -> Result<mvm_api::Client> {
            Err(Problem::internal(format!("there is no way to {address}")))
        }
    }

    /// A coordinator without nodes that does nothing.
    pub async fn lonely() -> Arc<Fleet> {
        lonely_with(Arc::new(Nowhere)).await
    }

    /// The same, with this way to its nodes.
    pub async fn lonely_with(connector: Arc<dyn Connector>) -> Arc<Fleet> {
        let store = mvm_store::SqliteStore::in_memory();
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
        Fleet::new(options, Arc::new(store.expect("a store")), connector)
    }
}
