//! The leader's decisions carried out: who is lost, what goes where, and what each node is sent.

use crate::claim_dispatch;
use crate::leadership::Lead;
use crate::records::{DocumentRecord, NodeFacts, NodeRecord, SHARES, change_node, digest, put};
use crate::state::ClusterState;
use crate::view::{KnownNode, View, Wanted};
use crate::{Error, Result};
use futures::{StreamExt, TryStreamExt};
use mvm_api::fleet::NodeChange;
use mvm_model::fleet::{
    FleetNode, FleetState, Holder, NodeStatus, Offers, Placement, Share, builders, hold_back,
    lost_since, name_images, node_document, place,
};
use mvm_model::{Name, Timestamp};
use mvm_store::{Expect, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long changes are gathered before they are looked at.
const GATHER: Duration = Duration::from_millis(100);
/// How often the placement is made anew when nothing happens, and while something is on no node.
const PERIOD: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(5));
/// How much longer than the time to live a new leader waits before it says that a node is lost.
const SETTLE: Duration = Duration::from_secs(2);
/// How many shares one transaction writes.
const BATCH: usize = 100;

/// Decides and carries out for as long as we lead.
pub(crate) async fn run(fleet: &Arc<ClusterState>, lead: &Arc<Lead>) -> Result<()> {
    loop {
        let next = pass(fleet, lead).await?;
        tokio::select! {
            () = fleet.placing.replan.notified() => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(next) => {}
        }
    }
}

/// Looks at everything once; returns after how long to look again at the latest.
async fn pass(fleet: &Arc<ClusterState>, lead: &Arc<Lead>) -> Result<Duration> {
    let settled = note_changes(fleet, lead).await?;
    let (document, digest, nodes, previous) = {
        let view = fleet.view();
        let Some(DocumentRecord { document, .. }) = view.document.clone() else {
            return Ok(PERIOD.0);
        };
        (document, view.digest.clone(), nodes(&view), view.placement.clone())
    };
    let grace = Duration::from_secs(document.node_grace_s);
    let lost = nodes.values().filter_map(|node| node.lost_since);
    let now = fleet.clock().now();
    let due = lost.map(|since| since + grace).filter(|at| *at > now).min();
    let placed = {
        let document = document.clone();
        let decide = move || {
            let placement = place(&document, &nodes, &previous, now);
            (placement, previous)
        };
        tokio::task::spawn_blocking(decide).await
    };
    let (placement, previous) = placed.map_err(Error::Placing)?;
    let changed = write_shares(fleet, lead, &previous.nodes, &placement.nodes).await?;
    set_wanted(fleet, &document, placement, &changed);
    fleet.view().leader.decided = digest;
    let now = fleet.clock().now();
    let until = |at: Timestamp| at.since(now).max(Duration::from_millis(1));
    let period = if fleet.view().placement.unplaced.is_empty() { PERIOD.0 } else { PERIOD.1 };
    Ok([Some(period), due.map(until), settled].into_iter().flatten().min().unwrap_or(period))
}

/// Returns all nodes as placement sees them.
pub(crate) fn nodes(view: &View) -> BTreeMap<Name, FleetNode> {
    let seen = |(name, known): (&Name, &KnownNode)| {
        Some((name.clone(), known.node(view.leader.wanted.get(name))?))
    };
    view.nodes.iter().filter_map(seen).collect()
}

/// Writes down which nodes are lost and which are back, and what they offer. Returns how long it is
/// until this leader can say that a node is lost; `None` where it already can.
async fn note_changes(fleet: &Arc<ClusterState>, lead: &Arc<Lead>) -> Result<Option<Duration>> {
    // The links have had little time yet: a node that was not heard from may still be there.
    let unsettled = (fleet.options.ttl + SETTLE).saturating_sub(lead.since.elapsed());
    let settled = unsettled.is_zero();
    let wall = fleet.clock().wall();
    let changes: Vec<(Name, bool, Option<NodeFacts>)> = {
        let view = fleet.view();
        let change = |(name, known): (&Name, &KnownNode)| {
            let alive = known.reached || view.alive.get(name).is_some_and(|by| !by.is_empty());
            let before = known.record.lost_since;
            let offer = known.status.as_deref().map(NodeFacts::of);
            let news = lost_since(before, alive, settled, wall) != before;
            let differs = offer.is_some() && offer != known.record.known;
            (news || differs).then(|| (name.clone(), alive, offer))
        };
        view.nodes.iter().filter_map(change).collect()
    };
    let write = |(name, alive, offer): (Name, bool, Option<NodeFacts>)| async move {
        let change = |record: &mut NodeRecord| {
            let before = record.clone();
            record.lost_since = lost_since(record.lost_since, alive, settled, wall);
            record.known = offer.clone().or(record.known.take());
            *record != before
        };
        match change_node(&*fleet.store, &name, Some(lead.fence()), change).await {
            // It was removed meanwhile.
            Err(Error::Missing(_)) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                if let Some(known) = fleet.view().nodes.get_mut(&name) {
                    let mut record = known.record.clone();
                    change(&mut record);
                    known.changed(record, fleet.clock().now());
                }
                Ok(())
            }
        }
    };
    futures::stream::iter(changes.into_iter().map(write))
        .buffer_unordered(32)
        .try_collect::<()>()
        .await?;
    Ok((!settled).then_some(unsettled))
}

/// Makes the placement durable; returns the nodes whose share has changed.
async fn write_shares(
    fleet: &Arc<ClusterState>,
    lead: &Lead,
    before: &BTreeMap<Name, Share>,
    after: &BTreeMap<Name, Share>,
) -> Result<BTreeSet<Name>> {
    let names: BTreeSet<&Name> = before.keys().chain(after.keys()).collect();
    let changed: Vec<&Name> =
        names.into_iter().filter(|name| before.get(*name) != after.get(*name)).collect();
    for some in changed.chunks(BATCH) {
        let write = |name: &&Name| {
            let key = format!("{SHARES}{name}");
            match after.get(*name) {
                Some(share) => put(key, share, Expect::Any),
                None => Write::Delete { key, expect: Expect::Any },
            }
        };
        let writes = some.iter().map(write).chain([lead.fence()]).collect();
        fleet.store.commit(writes).await?;
    }
    Ok(changed.into_iter().cloned().collect())
}

/// Sets what each node is to be sent from now on.
fn set_wanted(
    fleet: &Arc<ClusterState>,
    document: &FleetState,
    placement: Placement,
    changed: &BTreeSet<Name>,
) {
    let seen: BTreeMap<Name, Seen> = {
        let view = fleet.view();
        let seen =
            |(name, known)| (Name::clone(name), Seen::of(known, view.leader.wanted.get(name)));
        view.nodes.iter().map(seen).collect()
    };
    let (wanted, waits) = with_images(&seen, &wanted(document, &placement, seen.keys()));
    let mut kicked = Vec::new();
    {
        let mut view = fleet.view();
        view.leader.waits_for_images = waits;
        let before = std::mem::replace(&mut view.placement, Arc::new(placement));
        for unplaced in view.placement.unplaced.iter().filter(|u| !before.unplaced.contains(u)) {
            tracing::warn!("{unplaced}");
        }
        for (name, wanted) in wanted {
            let same =
                view.leader.wanted.get(&name).is_some_and(|known| known.digest == wanted.digest);
            if !same {
                kicked.extend(view.nodes.get(&name).map(|known| known.kick.clone()));
                view.leader.wanted.insert(name, wanted);
            }
        }
    }
    kicked.iter().for_each(|kick| kick.notify_one());
    fleet.claims.weigh(document.tenants.iter().map(|tenant| (&tenant.tenant_id, tenant.weight)));
    changed.iter().for_each(|node| claim_dispatch::refresh(fleet, node));
}

/// A node, as far as its images go.
struct Seen {
    reached: bool,
    address: String,
    status: Option<Arc<NodeStatus>>,
    /// The document that was last decided for it.
    last_decided: Option<Wanted>,
}

impl Seen {
    fn of(known: &KnownNode, last_decided: Option<&Wanted>) -> Seen {
        let (reached, status) = (known.reached, known.status.clone());
        Seen {
            reached,
            address: known.record.address.clone(),
            status,
            last_decided: last_decided.cloned(),
        }
    }

    /// Returns the node as one that is to hold this. A node that other machines cannot reach gives
    /// no images.
    fn holds<'a>(&'a self, wanted: &'a Wanted) -> Option<Holder<'a>> {
        let status = self.status.as_deref().filter(|_| self.reached)?;
        let done = self.last_decided.as_ref().is_some_and(|last| last.is_done(status));
        let told = self.last_decided.as_ref().map(|last| &*last.document);
        let address = Some(self.address.as_str()).filter(|to| !to.starts_with("unix:"));
        Some(Holder { status, document: &wanted.document, told, done, address })
    }
}

/// Returns the same documents, where of nodes that have no image one builds it and the others
/// receive it, and whether some wait for that.
fn with_images(
    seen: &BTreeMap<Name, Seen>,
    wanted: &BTreeMap<Name, Wanted>,
) -> (BTreeMap<Name, Wanted>, bool) {
    let holders = wanted.iter().filter_map(|(name, wanted)| seen.get(name)?.holds(wanted));
    let holders: Vec<Holder<'_>> = holders.collect();
    let (builders, offers) = (builders(&holders), Offers::of(&holders));
    let mut waits = false;
    let named = |(name, plain): (&Name, &Wanted)| {
        let status = seen.get(name).and_then(|seen| seen.status.as_deref());
        let mut document = (*plain.document).clone();
        if let Some(status) = status {
            waits |= hold_back(&mut document, status, &builders);
        }
        name_images(&mut document, status, &offers);
        let same = document == *plain.document;
        let named = || Wanted { digest: digest(&document), document: Arc::new(document.clone()) };
        (name.clone(), if same { plain.clone() } else { named() })
    };
    (wanted.iter().map(named).collect(), waits)
}

/// Returns the documents of these nodes; a node that is to hold nothing gets an empty one.
pub(crate) fn wanted<'a>(
    document: &FleetState,
    placement: &Placement,
    nodes: impl Iterator<Item = &'a Name>,
) -> BTreeMap<Name, Wanted> {
    let one = |node: &Name| {
        let document = node_document(document, placement, node);
        let digest = digest(&document);
        (node.clone(), Wanted { digest, document: Arc::new(document) })
    };
    nodes.map(one).collect()
}

/// Returns the differences of two placements.
pub(crate) fn changes(
    before: &BTreeMap<Name, Share>,
    after: &BTreeMap<Name, Share>,
) -> Vec<NodeChange> {
    let nothing = Share::default();
    let names: BTreeSet<&Name> = before.keys().chain(after.keys()).collect();
    let mut changes = Vec::new();
    for name in names {
        let (from, to) =
            (before.get(name).unwrap_or(&nothing), after.get(name).unwrap_or(&nothing));
        let pools: BTreeSet<_> = from.pools.keys().chain(to.pools.keys()).collect();
        for pool in pools {
            let (from, to) = (from.pools.get(pool).copied(), to.pools.get(pool).copied());
            if from != to {
                changes.push(NodeChange { node_id: name.clone(), pool: pool.clone(), from, to });
            }
        }
    }
    changes
}
