//! Leading: one coordinator at a time places, tells the nodes, and serves claims.

use crate::desk::succeeded;
use crate::fleet::Fleet;
use crate::records::{CLAIMS, Candidate, ClaimRecord, ELECTION, SHARES, read};
use crate::writer::Writer;
use crate::{Result, planner, stored};
use mvm_model::fleet::Placement;
use mvm_store::{Election, Leadership};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long is waited before a store that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Leads whenever it is this coordinator's turn.
pub(crate) async fn run(fleet: &Arc<Fleet>) {
    let Candidate { name, address } = candidate(fleet);
    let said = serde_json::json!({ "name": name, "address": address }).to_string();
    loop {
        let election = Election::new(fleet.store.clone(), ELECTION);
        let outcome = match election.campaign(said.as_bytes(), fleet.options.ttl).await {
            Ok(leadership) => lead(fleet, leadership).await,
            Err(error) => Err(stored(error)),
        };
        if let Err(problem) = outcome {
            tracing::warn!("does not lead: {problem}");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn candidate(fleet: &Fleet) -> Candidate {
    Candidate { name: fleet.options.name.clone(), address: fleet.options.address.clone() }
}

/// Leads until the leadership is lost.
async fn lead(fleet: &Arc<Fleet>, leadership: Leadership) -> Result<()> {
    let lead = fleet.leadership(leadership);
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
    fleet.desk.begin(Writer::start(fleet.store.clone(), lead.clone()), claims);
    fleet.set_lead(Some(lead.clone()));
    let outcome = tokio::select! {
        outcome = planner::run(fleet, &lead) => outcome,
        () = lead.lost() => Err(succeeded()),
    };
    fleet.set_lead(None);
    fleet.desk.finish();
    fleet.view().wanted.clear();
    outcome
}
