//! What a coordinator knows of the nodes and of the document in force.

use crate::node_client::NodeClient;
use crate::records::{DocumentRecord, NodeRecord, digest};
use mvm_model::fleet::{FleetNode, NodeStatus, Placement, PoolStatus, Shapes, kept_news, shapes};
use mvm_model::{DesiredState, Name, PoolRef, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

/// What is known of all nodes.
#[derive(Default)]
pub(crate) struct View {
    pub nodes: BTreeMap<Name, KnownNode>,
    /// Which coordinators reach a node.
    pub alive: BTreeMap<Name, BTreeSet<String>>,
    pub document: Option<DocumentRecord>,
    /// The document's digest.
    pub digest: Option<String>,
    /// The shapes of the document's pools.
    pub shapes: Shapes,
    /// Shared with the task that places.
    pub placement: Arc<Placement>,
    /// What the leader has decided; empty while this coordinator does not lead.
    pub leader: LeaderState,
}

/// What the leader has decided for the nodes.
#[derive(Default)]
pub(crate) struct LeaderState {
    /// What each node is to be sent.
    pub wanted: BTreeMap<Name, Wanted>,
    /// The digest of the fleet's document that `wanted` was made from.
    pub decided: Option<String>,
    /// Whether some nodes get pools only when others have built their images.
    pub waits_for_images: bool,
}

impl View {
    /// Puts another document in force, or none.
    pub fn set_document(&mut self, document: Option<DocumentRecord>) {
        self.shapes = document.as_ref().map(|record| shapes(&record.document)).unwrap_or_default();
        self.digest = document.as_ref().map(|record| digest(&record.document));
        self.document = document;
    }

    /// Returns, on the leader, whether every node in reach has done all of the document in force.
    pub fn is_done(&self) -> bool {
        let mut reached = self.nodes.iter().filter(|(_, known)| known.reached);
        self.leader.decided == self.digest
            && reached.all(|(name, known)| known.has_done(self.leader.wanted.get(name)))
    }

    /// Returns whether a node is to hold a pool, and does not merely keep it for its jobs.
    pub fn holds(&self, node: &Name, pool: &PoolRef) -> bool {
        self.placement.nodes.get(node).is_some_and(|share| share.pools.contains_key(pool))
    }

    /// Returns what a node says that a placement or other nodes wait for.
    pub fn news(&self, node: &Name) -> News {
        let share = self.placement.nodes.get(node).filter(|share| !share.kept.is_empty());
        let known =
            self.nodes.get(node).filter(|_| share.is_some() || self.leader.waits_for_images);
        let Some(seen) = known.and_then(|known| known.node(self.leader.wanted.get(node))) else {
            return News::default();
        };
        let image = |(pool, held): (&PoolRef, &PoolStatus)| {
            (pool.clone(), held.revision.clone(), held.failure.is_some())
        };
        let pools = seen.status.pools.iter().filter(|_| self.leader.waits_for_images);
        News {
            settled: seen.settled,
            failed: seen.status.failure.is_some(),
            kept: share.map(|share| kept_news(&seen, share)).unwrap_or_default(),
            images: pools.map(image).collect(),
        }
    }
}

/// The part of a node's status whose change is looked at at once.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Whether it has done all of its last document.
    settled: bool,
    /// The state of each pool that it keeps for its jobs (`kept_news`).
    kept: Vec<(bool, bool)>,
    /// Whether a step has failed.
    failed: bool,
    /// The image of each pool, and whether the pool has failed.
    images: Vec<(PoolRef, Option<String>, bool)>,
}

/// A node in the registry.
pub(crate) struct KnownNode {
    pub record: NodeRecord,
    pub client: Arc<dyn NodeClient>,
    /// The last status that it reported.
    pub status: Option<Arc<NodeStatus>>,
    /// Whether this coordinator reaches it.
    pub reached: bool,
    /// When this coordinator lost it, if it has.
    pub lost_at: Option<Instant>,
    /// Since when this coordinator knows that no coordinator reaches it, on its own timeline. The
    /// clocks of coordinators may differ: none counts by a time that another has written.
    pub missed_since: Option<Timestamp>,
    /// Whether it has reported to this leader which claims it holds.
    pub resolved: bool,
    /// Why it did not take its document; `None` where it took it.
    pub refused: Option<String>,
    /// Wakes its link when something is to be done.
    pub kick: Arc<Notify>,
    /// Ends its link.
    pub link: tokio::task::AbortHandle,
}

impl KnownNode {
    /// Takes a record that was changed, here or by another coordinator. `now` is on our timeline.
    pub fn changed(&mut self, record: NodeRecord, now: Timestamp) {
        let missed = record.lost_since.map(|_| self.missed_since.unwrap_or(now));
        (self.record, self.missed_since) = (record, missed);
    }

    /// Returns whether it has reported that it has done all of `wanted`.
    pub fn has_done(&self, wanted: Option<&Wanted>) -> bool {
        self.status.as_deref().is_some_and(|status| wanted.is_some_and(|w| w.is_done(status)))
    }

    /// Returns the node as placement sees it; `wanted` is its last document. `None` for one that
    /// was never reached.
    pub fn node(&self, wanted: Option<&Wanted>) -> Option<FleetNode> {
        let settled = self.reached && self.has_done(wanted);
        let lost_since = self.missed_since;
        Some(FleetNode { settled, lost_since, ..self.record.node(self.status.as_ref())? })
    }
}

/// The document that a node is to be sent.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub digest: String,
    pub document: Arc<DesiredState>,
}

impl Wanted {
    /// Returns whether a node with this status has done all of the document.
    pub fn is_done(&self, status: &NodeStatus) -> bool {
        status.document.as_ref() == Some(&self.digest) && status.pending == 0
    }
}
