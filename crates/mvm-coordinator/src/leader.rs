//! Leading: one coordinator at a time places instances, sends the nodes their documents, and serves
//! claims.

use crate::errors::succeeded;
use crate::leadership::Lead;
use crate::records::{CLAIMS, Candidate, ClaimRecord, ELECTION, SHARES, read};
use crate::state::ClusterState;
use crate::view::LeaderState;
use crate::writer::Writer;
use crate::{Result, planner, renewal, stored};
use mvm_model::fleet::Placement;
use mvm_store::{Election, Leadership};
use std::collections::BTreeMap;
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
            () = fleet.life.shutdown.begun() => return,
        };
        let outcome = match elected {
            Ok(leadership) => lead(fleet, leadership).await,
            Err(error) => Err(stored(error)),
        };
        if let Err(problem) = outcome {
            tracing::warn!("does not lead: {problem}");
        }
        if fleet.life.shutdown.has_begun() {
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
    let _under_way = fleet.life.shutdown.wait_for_this();
    let lead = Arc::new(Lead::new(leadership, fleet.options.fleet_id.clone()));
    // What earlier leaders have decided.
    let shares = fleet.store.list(SHARES).await.map_err(stored)?;
    let shares = shares.iter().map(|record| {
        let node = record.key.strip_prefix(SHARES).unwrap_or_default().parse()?;
        Ok((node, read(&record.key, &record.value)?))
    });
    let shares = shares.collect::<Result<BTreeMap<_, _>>>()?;
    let claims = fleet.store.list(CLAIMS).await.map_err(stored)?;
    let claims = claims.iter().map(|record| {
        let id = record.key.strip_prefix(CLAIMS).unwrap_or_default().to_owned();
        Ok((id, read::<ClaimRecord>(&record.key, &record.value)?))
    });
    let claims = claims.collect::<Result<BTreeMap<_, _>>>()?;
    tracing::info!(epoch = lead.leader.epoch, claims = claims.len(), "leads");
    fleet.view().placement = Arc::new(Placement { nodes: shares, unplaced: Vec::new() });
    fleet.claims.begin(Writer::start(fleet.store.clone(), lead.clone()), claims);
    fleet.set_lead(Some(lead.clone()));
    let outcome = tokio::select! {
        outcome = planner::run(fleet, &lead) => outcome,
        () = renewal::run(fleet, &lead) => Ok(()),
        () = lead.lost() => Err(succeeded()),
        () = fleet.life.shutdown.begun() => Ok(()),
    };
    fleet.set_lead(None);
    fleet.claims.finish();
    fleet.view().leader = LeaderState::default();
    if fleet.life.shutdown.has_begun() {
        resign(&lead).await;
    }
    outcome
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
    use crate::state::tests::lonely;

    #[tokio::test]
    async fn who_is_asked_to_end_leaves_no_leader_behind() {
        let fleet = lonely().await;
        let working = tokio::spawn({
            let fleet = fleet.clone();
            async move { crate::run(&fleet).await }
        });
        let key = format!("elections/{ELECTION}");
        while !fleet.leads() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let held = fleet.store.get(&key).await.expect("read").expect("a leader");
        let session = fleet.life.shutdown.wait_for_this();
        fleet.life.shutdown.begin();
        while fleet.store.get(&key).await.expect("read").is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Given up, not run out: the session has not come to its time.
        let ended = fleet.store.keep_session(held.session.expect("held by a session")).await;
        assert!(matches!(ended, Err(mvm_store::Error::SessionEnded(_))), "{ended:?}");
        assert!(!fleet.leads());
        // What goes through it is waited for.
        let mut over = std::pin::pin!(fleet.life.shutdown.over());
        assert!(futures::poll!(over.as_mut()).is_pending());
        drop(session);
        over.await;
        assert!(fleet.store.get(&key).await.expect("read").is_none(), "it does not come back");
        working.abort();
    }
}
