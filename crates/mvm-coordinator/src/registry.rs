//! Follows the store: its changes are known a moment later, by watches and never by polling.

use crate::records::{ALIVE, Candidate, DOCUMENT, ELECTION, NODES, NodeRecord, SHARES, read};
use crate::state::ClusterState;
use crate::view::{KnownNode, View};
use crate::{Result, link};
use futures::StreamExt;
use mvm_model::Name;
use mvm_model::fleet::Share;
use mvm_store::{Election, Followed, follow};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long to wait before a store that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Calls `each` with every record and every change: key without the prefix, and value or `None`.
/// `gone` gets the keys of all records whenever these were listed anew.
async fn records(
    fleet: &Arc<ClusterState>,
    prefix: &str,
    mut each: impl FnMut(&str, Option<&[u8]>) -> Result<()>,
    mut gone: impl FnMut(&BTreeSet<String>),
) {
    let mut pass_on = |key: &str, value: Option<&[u8]>| {
        if let Err(error) = each(key.strip_prefix(prefix).unwrap_or(key), value) {
            tracing::error!("{error}");
        }
    };
    loop {
        let mut followed = follow(fleet.store.clone(), prefix);
        while let Some(item) = followed.next().await {
            match item {
                Ok(Followed::All { records, .. }) => {
                    let short = |key: &String| key.strip_prefix(prefix).unwrap_or(key).to_owned();
                    gone(&records.iter().map(|record| short(&record.key)).collect());
                    records.iter().for_each(|record| pass_on(&record.key, Some(&record.value)));
                    fleet.lifecycle.readiness.has_read(prefix);
                }
                Ok(Followed::Changed(changes)) => {
                    changes.iter().for_each(|c| pass_on(&c.key, c.value.as_deref()));
                }
                Err(error) => tracing::warn!("the store cannot be followed: {error}"),
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Follows the nodes, and keeps a link to each.
pub async fn follow_nodes(fleet: &Arc<ClusterState>) {
    let each = |key: &str, value: Option<&[u8]>| {
        match value {
            Some(value) => known(fleet, read(key, value)?)?,
            None => forget(fleet, &key.parse()?),
        }
        fleet.placing.replan.notify_one();
        Ok(())
    };
    let gone = |here: &BTreeSet<String>| {
        let names: Vec<Name> = fleet.view().nodes.keys().cloned().collect();
        names.iter().filter(|name| !here.contains(name.as_str())).for_each(|n| forget(fleet, n));
    };
    records(fleet, NODES, each, gone).await;
}

fn known(fleet: &Arc<ClusterState>, record: NodeRecord) -> Result<()> {
    let mut view = fleet.view();
    if let Some(known) = view.nodes.get_mut(&record.node_id) {
        let same = known.record.address == record.address;
        if same {
            known.changed(record, fleet.clock().now());
            known.kick.notify_one();
            return Ok(());
        }
    }
    // Before the old link goes: an address that is of no use leaves everything as it was.
    let client = fleet.connector.node(&record.node_id, &record.address)?;
    if let Some(known) = view.nodes.get(&record.node_id) {
        known.link.abort();
    }
    let kick = Arc::new(Notify::new());
    let node = record.node_id.clone();
    let link = tokio::spawn(link::run(fleet.clone(), node.clone(), client.clone(), kick.clone()));
    let known = KnownNode {
        missed_since: record.lost_since.map(|_| fleet.clock().now()),
        record,
        client,
        status: None,
        reached: false,
        lost_at: None,
        resolved: false,
        refused: None,
        kick,
        link: link.abort_handle(),
    };
    view.nodes.insert(node, known);
    Ok(())
}

fn forget(fleet: &Arc<ClusterState>, node: &Name) {
    if let Some(known) = fleet.view().nodes.remove(node) {
        known.link.abort();
    }
    fleet.nodes.reachability.set(node, false);
    fleet.claims.close(node);
}

/// Follows which coordinators reach which nodes.
pub async fn follow_alive(fleet: &Arc<ClusterState>) {
    let each = |key: &str, value: Option<&[u8]>| {
        if let Some((node, coordinator)) = key.split_once('/') {
            let node: Name = node.parse()?;
            let mut view = fleet.view();
            let by = view.alive.entry(node).or_default();
            match value {
                Some(_) => drop(by.insert(coordinator.to_owned())),
                None => drop(by.remove(coordinator)),
            }
        }
        fleet.placing.replan.notify_one();
        Ok(())
    };
    // What the new list has too stays meanwhile: a node is not lost because the store is read anew.
    let gone = |here: &BTreeSet<String>| {
        for (node, by) in &mut fleet.view().alive {
            by.retain(|coordinator| here.contains(&format!("{node}/{coordinator}")));
        }
    };
    records(fleet, ALIVE, each, gone).await;
}

/// Follows the document in force.
pub async fn follow_document(fleet: &Arc<ClusterState>) {
    let each = |key: &str, value: Option<&[u8]>| {
        let document = value.map(|value| read(key, value)).transpose()?;
        fleet.view().set_document(document);
        fleet.placing.replan.notify_one();
        Ok(())
    };
    records(fleet, DOCUMENT, each, |_| {}).await;
}

fn shares(view: &mut View) -> &mut BTreeMap<Name, Share> {
    &mut Arc::make_mut(&mut view.placement).nodes
}

/// Follows what each node is to hold.
pub async fn follow_shares(fleet: &Arc<ClusterState>) {
    let each = |key: &str, value: Option<&[u8]>| {
        // The leader knows its own decisions before the store reports them.
        if fleet.leads() {
            return Ok(());
        }
        let node: Name = key.parse()?;
        match value {
            Some(value) => drop(shares(&mut fleet.view()).insert(node, read(key, value)?)),
            None => drop(shares(&mut fleet.view()).remove(&node)),
        }
        Ok(())
    };
    let gone = |here: &BTreeSet<String>| {
        shares(&mut fleet.view()).retain(|node, _| here.contains(node.as_str()));
    };
    records(fleet, SHARES, each, gone).await;
}

/// Follows who leads.
pub async fn follow_leader(fleet: &Arc<ClusterState>) {
    loop {
        let mut leaders = Election::new(fleet.store.clone(), ELECTION).observe();
        while let Some(leader) = leaders.next().await {
            match leader {
                Ok(leader) => {
                    let candidate =
                        |l: mvm_store::Leader| read::<Candidate>(ELECTION, &l.candidate);
                    fleet.leadership.set_leader(leader.and_then(|leader| candidate(leader).ok()));
                }
                Err(error) => tracing::warn!("the election cannot be followed: {error}"),
            }
        }
        fleet.leadership.set_leader(None);
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asking::tests::{Scripted, known_node};
    use crate::state::tests::{Nowhere, one_of_several};
    use mvm_clock::ManualClock;
    use mvm_model::Timestamp;
    use mvm_store::{SqliteStore, Store};

    /// Two coordinators whose clocks are hours apart take the same record of a third one.
    #[tokio::test]
    async fn each_coordinator_counts_how_long_a_node_is_missed_by_its_own_clock() {
        let store: Arc<dyn Store> = Arc::new(SqliteStore::in_memory().expect("a store"));
        let time = Timestamp::from_millis;
        let clocks = [1_000, 9_000_000].map(|began| ManualClock::standing(time(began)));
        let fleets = clocks
            .each_ref()
            .map(|clock| one_of_several(store.clone(), Arc::new(Nowhere), clock.clock()));
        let missed = || {
            fleets.each_ref().map(|fleet| {
                let view = fleet.view();
                view.nodes.values().next().expect("the node").missed_since
            })
        };
        let port = Scripted::new(&[]);
        let record = known_node(&port, false).record;
        let tell = |lost_since| {
            for fleet in &fleets {
                known(fleet, NodeRecord { lost_since, ..record.clone() }).expect("taken");
            }
        };
        for fleet in &fleets {
            fleet.view().nodes.insert(record.node_id.clone(), known_node(&port, false));
        }
        tell(Some(time(77)));
        clocks.iter().for_each(|clock| clock.advance(Duration::from_secs(60)));
        tell(Some(time(77)));
        assert_eq!(
            missed(),
            [1_000, 9_000_000].map(|began| Some(time(began))),
            "the record is told twice"
        );
        tell(None);
        tell(Some(time(78)));
        assert_eq!(missed(), [61_000, 9_060_000].map(|later| Some(time(later))));
    }
}
