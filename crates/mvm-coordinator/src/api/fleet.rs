//! The fleet's document and how far it is.

use super::{Answer, Shared};
use crate::records::{DOCUMENT, DocumentRecord, put};
use crate::{Fleet, Result, now, planner, stored};
use axum::Json;
use axum::extract::State;
use mvm_api::Problem;
use mvm_api::body::Body;
use mvm_api::fleet::{ApplyFleet, CoordinatorInfo, FleetPlan, FleetPoolView, FleetStatus};
use mvm_model::fleet::{FleetState, Placement, place};
use mvm_model::{Counts, PoolRef};
use mvm_store::Expect;

pub async fn coordinator(State(fleet): Shared) -> Json<CoordinatorInfo> {
    Json(CoordinatorInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        fleet_id: fleet.options.fleet_id.clone(),
        address: fleet.options.address.clone(),
        leads: fleet.leads(),
        leader: fleet.leader().map(|leader| leader.address),
        store: fleet.options.store.to_owned(),
        started_at: fleet.started_at,
    })
}

pub async fn show(State(fleet): Shared) -> Answer<FleetState> {
    Ok(Json(fleet.document()?))
}

pub async fn apply(State(fleet): Shared, Body(body): Body<ApplyFleet>) -> Answer<FleetPlan> {
    let ApplyFleet { document, dry_run } = body;
    document.validate()?;
    if document.fleet_id != fleet.options.fleet_id {
        let (theirs, ours) = (&document.fleet_id, &fleet.options.fleet_id);
        let message = format!("the document is for fleet {theirs}, this is {ours}");
        return Err(Problem {
            path: "$.fleet_id".into(),
            ..Problem::new(409, "conflict", message)
        });
    }
    check_networks(&fleet, &document)?;
    let (nodes, before) = {
        let view = fleet.view();
        (planner::nodes(&view), view.shares.clone())
    };
    let previous = Placement { nodes: before, unplaced: Vec::new() };
    let wanted = document.clone();
    let decide = move || (place(&wanted, &nodes, &previous, now()), previous);
    let decided = tokio::task::spawn_blocking(decide).await;
    let (after, before) = decided.map_err(|e| Problem::internal(e.to_string()))?;
    if !dry_run {
        let lead = fleet.lead().ok_or_else(crate::desk::succeeded)?;
        let record = DocumentRecord { document, applied_at: now() };
        let writes = vec![put(DOCUMENT.to_owned(), &record, Expect::Any), lead.fence()];
        fleet.store.commit(writes).await.map_err(stored)?;
        fleet.view().document = Some(record);
        fleet.replan.notify_one();
    }
    let changes = planner::changes(&before.nodes, &after.nodes);
    Ok(Json(FleetPlan { changes, unplaced: after.unplaced, dry_run }))
}

/// A tenant's network is not changed while its nodes have it.
fn check_networks(fleet: &Fleet, document: &FleetState) -> Result<()> {
    let view = fleet.view();
    let Some(before) = &view.document else { return Ok(()) };
    for (index, tenant) in document.tenants.iter().enumerate() {
        let known = before.document.tenant(&tenant.tenant_id);
        if let Some(known) = known.filter(|known| known.network != tenant.network) {
            let message = format!(
                "tenant {} has net id {} and {}; a network is not changed while its tenant exists",
                tenant.tenant_id, known.network.tenant_net_id, known.network.ipv4_subnet
            );
            return Err(Problem {
                path: format!("$.tenants[{index}].network"),
                ..Problem::new(409, "conflict", message)
            }
            .hint("give the tenant its present network, or take it out of the document first"));
        }
    }
    Ok(())
}

pub async fn status(State(fleet): Shared) -> Json<FleetStatus> {
    let view = fleet.view();
    let alive = view.nodes.values().filter(|n| n.reached || n.record.lost_since.is_none()).count();
    let mut pools = Vec::new();
    let mut converged = view.unplaced.is_empty();
    if let Some(record) = &view.document {
        for (tenant, pool) in record.document.pools() {
            let shown = pool_view(&view, tenant.reference(pool), pool.desired_counts);
            converged &= shown.ready_counts == shown.desired_counts;
            pools.push(shown);
        }
    }
    Json(FleetStatus {
        fleet_id: fleet.options.fleet_id.clone(),
        leader: fleet.leader().map(|leader| leader.address),
        nodes_alive: alive,
        nodes_lost: view.nodes.len() - alive,
        converged,
        claims_waiting: fleet.desk.waiting(),
        unplaced: view.unplaced.clone(),
        pools,
    })
}

/// What the nodes in reach have of a pool.
fn pool_view(view: &crate::fleet::View, pool: PoolRef, desired_counts: Counts) -> FleetPoolView {
    let mut shown = FleetPoolView {
        pool,
        desired_counts,
        ready_counts: Counts::default(),
        leased: 0,
        nodes: 0,
        last_failure: None,
    };
    for (name, known) in view.nodes.iter().filter(|(_, known)| known.reached) {
        let Some(status) = &known.status else { continue };
        let Some(held) = status.pools.get(&shown.pool) else { continue };
        shown.ready_counts = shown.ready_counts.plus(held.ready);
        shown.leased += held.leased;
        shown.nodes += 1;
        let failure = held.failure.as_ref().or(status.failure.as_ref());
        let failure = failure.map(|why| format!("node {name}: {why}"));
        shown.last_failure = shown.last_failure.or(failure);
    }
    shown
}
