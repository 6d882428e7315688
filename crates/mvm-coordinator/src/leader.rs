//! Leading: one coordinator at a time places instances, sends the nodes their documents, and serves
//! claims.

use crate::leadership::Lead;
use crate::records::{CLAIMS, Candidate, ClaimRecord, ELECTION, SHARES, read};
use crate::state::ClusterState;
use crate::view::LeaderState;
use crate::writer::Writer;
use crate::{Error, Result, planner, renewal};
use mvm_model::fleet::{Placement, Share};
use mvm_model::{LeaseId, Name};
use mvm_store::{Election, Leadership, Record};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait before a store that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the store may take to answer a resignation.
const ANSWER: Duration = Duration::from_secs(2);

/// Leads whenever it is this coordinator's turn, until it is to end.
pub(crate) async fn run(fleet: &Arc<ClusterState>) {
    let Candidate { name, address } = candidate(fleet);
    let said = serde_json::json!({ "name": name, "address": address }).to_string();
    loop {
        let election = Election::new(fleet.store.clone(), ELECTION);
        let elected = tokio::select! {
            elected = election.campaign(said.as_bytes(), fleet.options.ttl) => elected,
            () = fleet.lifecycle.shutdown.begun() => return,
        };
        let outcome = match elected {
            Ok(leadership) => lead(fleet, leadership).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = outcome {
            tracing::warn!("does not lead: {error}");
        }
        if fleet.lifecycle.shutdown.has_begun() {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn candidate(fleet: &ClusterState) -> Candidate {
    Candidate { name: fleet.options.name.clone(), address: fleet.options.address.clone() }
}

/// Leads until the leadership is lost, or given up since this coordinator is to end.
async fn lead(fleet: &Arc<ClusterState>, leadership: Leadership) -> Result<()> {
    let _under_way = fleet.lifecycle.shutdown.wait_for_this();
    let lead = Arc::new(Lead::new(leadership, fleet.options.fleet_id.clone()));
    // What earlier leaders have decided.
    let shares: BTreeMap<Name, Share> = readable(fleet, SHARES).await?;
    let claims: BTreeMap<LeaseId, ClaimRecord> = readable(fleet, CLAIMS).await?;
    tracing::info!(epoch = lead.leader.epoch, claims = claims.len(), "leads");
    fleet.view().placement = Arc::new(Placement { nodes: shares, unplaced: Vec::new() });
    fleet.claims.begin(Writer::start(fleet.store.clone(), lead.clone()), claims);
    fleet.set_lead(Some(lead.clone()));
    let outcome = tokio::select! {
        outcome = planner::run(fleet, &lead) => outcome,
        () = renewal::run(fleet, &lead) => Ok(()),
        () = lead.lost() => Err(Error::Succeeded),
        () = fleet.lifecycle.shutdown.begun() => Ok(()),
    };
    fleet.set_lead(None);
    fleet.claims.finish();
    fleet.view().leader = LeaderState::default();
    if fleet.lifecycle.shutdown.has_begun() {
        resign(&lead).await;
    }
    outcome
}

/// Reads all records below a prefix. One that cannot be read is passed over with an error in the log: no fleet is to be
/// without a leader because of it. The node of such a share is placed anew, and the machine of such a claim is ended
/// as one that belongs to nobody.
async fn readable<K, V>(fleet: &ClusterState, prefix: &str) -> Result<BTreeMap<K, V>>
where
    K: FromStr<Err: Display> + Ord,
    V: DeserializeOwned,
{
    let records = fleet.store.list(prefix).await?;
    let one = |record: &Record| {
        let key = record.key.strip_prefix(prefix).unwrap_or_default();
        let key = key.parse().map_err(|fault: K::Err| fault.to_string())?;
        let value = read(&record.key, &record.value).map_err(|error| error.to_string())?;
        Ok::<_, String>((key, value))
    };
    let pass = |record: &Record, why: String| {
        tracing::error!(key = record.key, "a record cannot be read and is passed over: {why}");
    };
    let read =
        records.iter().filter_map(|record| one(record).map_err(|why| pass(record, why)).ok());
    Ok(read.collect())
}

/// Resigns, so that another coordinator leads at once; where the store does not answer, one leads
/// when the session has ended.
async fn resign(lead: &Lead) {
    match tokio::time::timeout(ANSWER, lead.resign()).await {
        Ok(Ok(())) => tracing::info!("has resigned"),
        Ok(Err(problem)) => tracing::warn!("cannot resign: {problem}"),
        Err(_) => tracing::warn!("cannot resign: the store does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::put;
    use crate::state::tests::lonely;
    use mvm_store::Expect;

    #[tokio::test]
    async fn a_record_that_cannot_be_read_keeps_nobody_from_leading() {
        let fleet = lonely();
        for key in ["node-1", "Not a name"] {
            let share = put(format!("{SHARES}{key}"), &"not a share", Expect::Any);
            let claim = put(format!("{CLAIMS}{key}"), &"not a claim", Expect::Any);
            fleet.store.commit(vec![share, claim]).await.expect("written");
        }
        let working = tokio::spawn({
            let fleet = fleet.clone();
            async move { crate::run(&fleet).await }
        });
        while !fleet.leads() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(fleet.view().placement.nodes.is_empty());
        working.abort();
    }

    #[tokio::test]
    async fn who_is_asked_to_end_leaves_no_leader_behind() {
        let fleet = lonely();
        let working = tokio::spawn({
            let fleet = fleet.clone();
            async move { crate::run(&fleet).await }
        });
        let key = format!("elections/{ELECTION}");
        while !fleet.leads() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let held = fleet.store.get(&key).await.expect("read").expect("a leader");
        let session = fleet.lifecycle.shutdown.wait_for_this();
        fleet.lifecycle.shutdown.begin();
        while fleet.store.get(&key).await.expect("read").is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The leadership was given up and has not expired: its session has ended before its time.
        let ended = fleet.store.keep_session(held.session.expect("held by a session")).await;
        assert!(matches!(ended, Err(mvm_store::Error::SessionEnded(_))), "{ended:?}");
        assert!(!fleet.leads());
        // The shutdown waits for the open session that goes through this coordinator.
        let mut over = std::pin::pin!(fleet.lifecycle.shutdown.over());
        assert!(futures::poll!(over.as_mut()).is_pending());
        drop(session);
        over.await;
        assert!(fleet.store.get(&key).await.expect("read").is_none(), "it does not come back");
        working.abort();
    }
}
