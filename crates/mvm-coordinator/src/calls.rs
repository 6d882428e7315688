//! The operations of a coordinator, for its API and for benchmarks.

use crate::claim_dispatch;
use crate::claim_queue::ClaimOrder;
use crate::records::{DOCUMENT, DocumentRecord, NODES, NodeRecord, change_node, digest, put};
use crate::state::ClusterState;
use crate::view::View;
use crate::{Error, Result, planner};
use mvm_api::fleet::{FleetPlan, FleetPoolView, FleetStatus, RegisterNode};
use mvm_api::types::Claim;
use mvm_model::fleet::{Duty, FleetState, Placement, place};
use mvm_model::{Counts, LeaseId, Name, PoolRef};
use mvm_store::Expect;
use std::sync::Arc;

impl ClusterState {
    /// Puts a document in force and returns the changes that follow; with `dry_run` it only does
    /// the latter. Only the leader may be asked.
    pub async fn apply(&self, document: FleetState, dry_run: bool) -> Result<FleetPlan> {
        document.validate()?;
        document.settled()?;
        document.admit_machines()?;
        if document.fleet_id != self.options.fleet_id {
            let (theirs, ours) = (document.fleet_id, self.options.fleet_id.clone());
            return Err(Error::OtherFleet { theirs, ours });
        }
        // Of two documents at the same time, the second is compared with the first.
        let _applying = self.placing.applying.lock().await;
        check_networks(self, &document)?;
        let (nodes, previous) = {
            let view = self.view();
            (planner::nodes(&view), view.placement.clone())
        };
        let (digest, wanted) = (digest(&document), document.clone());
        let now = self.clock().now();
        let decide = move || (place(&wanted, &nodes, &previous, now), previous);
        let decided = tokio::task::spawn_blocking(decide).await;
        let (after, before) = decided.map_err(Error::Placing)?;
        if !dry_run {
            let lead = self.lead().ok_or(Error::Succeeded)?;
            let record = DocumentRecord { document, applied_at: self.clock().wall() };
            let writes = vec![put(DOCUMENT.to_owned(), &record, Expect::Any), lead.fence()];
            self.store.commit(writes).await?;
            self.view().set_document(Some(record));
            self.placing.replan.notify_one();
        }
        let changes = planner::changes(&before.nodes, &after.nodes);
        Ok(FleetPlan { document: digest, changes, unplaced: after.unplaced, dry_run })
    }

    /// Returns how far the fleet has come, as far as this coordinator knows.
    pub fn status(&self) -> FleetStatus {
        let view = self.view();
        let alive =
            view.nodes.values().filter(|n| n.reached || n.record.lost_since.is_none()).count();
        let mut pools = Vec::new();
        let done = !self.leads() || view.is_done();
        let mut converged = done && view.placement.unplaced.is_empty();
        if let Some(record) = &view.document {
            for (tenant, pool) in record.document.pools() {
                let shown = pool_view(&view, tenant.reference(pool), pool.desired_counts);
                converged &= shown.ready_counts == shown.desired_counts;
                pools.push(shown);
            }
        }
        FleetStatus {
            fleet_id: self.options.fleet_id.clone(),
            leader: self.leadership.leader().map(|leader| leader.address),
            nodes_alive: alive,
            nodes_lost: view.nodes.len() - alive,
            document: view.digest.clone(),
            converged,
            claims_waiting: self.claims.waiting(),
            unplaced: view.placement.unplaced.clone(),
            pools,
        }
    }

    /// Adds a node to the fleet, or records its new address. Only the leader may be asked.
    pub async fn register(&self, node: &RegisterNode) -> Result<()> {
        let key = format!("{NODES}{}", node.node_id);
        let fresh = NodeRecord {
            node_id: node.node_id.clone(),
            address: node.address.clone(),
            duty: Duty::Open,
            lost_since: None,
            known: None,
        };
        let fence = self.lead().ok_or(Error::Succeeded)?.fence();
        let writes = vec![put(key.clone(), &fresh, Expect::Absent), fence.clone()];
        match self.store.commit(writes).await {
            Ok(_) => {
                tracing::info!(node = %node.node_id, address = node.address, "registered");
                Ok(())
            }
            Err(mvm_store::Error::Conflict { key: at, .. }) if at == key => {
                let change = |record: &mut NodeRecord| {
                    let before = std::mem::replace(&mut record.address, node.address.clone());
                    before != node.address
                };
                change_node(&*self.store, &node.node_id, Some(fence), change).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Claims an instance, and returns it with the node that it is on. The same id is the same claim.
    /// Only the leader may be asked.
    pub async fn claim(
        self: &Arc<Self>,
        id: LeaseId,
        pool: &PoolRef,
        holder: &str,
    ) -> Result<(Claim, Name)> {
        let (pool, holder) = (pool.clone(), holder.to_owned());
        let lead = self.lead().ok_or(Error::Succeeded)?;
        let order = ClaimOrder { id, pool, holder, lease_s: None, again: false };
        claim_dispatch::serve(self, &lead, &order, std::future::pending()).await
    }

    /// Ends a claim; returns when its node has ended the lease.
    pub async fn end_claim(self: &Arc<Self>, id: LeaseId, node: &Name) {
        if let Some(lead) = self.lead() {
            claim_dispatch::release(self.clone(), lead, id, node.clone()).await;
        }
    }

    /// Returns how many transactions the claims of this leadership have taken.
    pub fn claim_commits(&self) -> u64 {
        self.claims.commits()
    }
}

/// Refuses a document that changes a tenant's network, which its nodes have.
fn check_networks(fleet: &ClusterState, document: &FleetState) -> Result<()> {
    let view = fleet.view();
    let Some(before) = &view.document else { return Ok(()) };
    for (index, tenant) in document.tenants.iter().enumerate() {
        let known = before.document.tenant(&tenant.tenant_id);
        if let Some(known) = known.filter(|known| known.network != tenant.network) {
            return Err(Error::NetworkChanged {
                index,
                tenant: tenant.tenant_id.clone(),
                net_id: known.network.tenant_net_id.to_string(),
                subnet: known.network.ipv4_subnet.to_string(),
            });
        }
    }
    Ok(())
}

/// Returns what the nodes in reach have of a pool.
fn pool_view(view: &View, pool: PoolRef, desired_counts: Counts) -> FleetPoolView {
    let mut shown = FleetPoolView {
        pool,
        desired_counts,
        ready_counts: Counts::default(),
        leased: 0,
        nodes: 0,
        last_failure: None,
        last_failure_code: None,
    };
    for (name, known) in view.nodes.iter().filter(|(_, known)| known.reached) {
        let Some(status) = &known.status else { continue };
        let Some(held) = status.pools.get(&shown.pool) else { continue };
        shown.ready_counts = shown.ready_counts.plus(held.ready);
        shown.leased = shown.leased.saturating_add(held.leased);
        shown.nodes += usize::from(view.holds(name, &shown.pool));
        let failure = held.failure.as_ref().or(status.failure.as_ref());
        if shown.last_failure.is_some() {
            continue;
        }
        shown.last_failure = failure.map(|why| format!("node {name}: {why}"));
        // A failure of another document says nothing about this one.
        let ours = up_to_date(view, name, status.document.as_ref());
        if ours && failure == status.failure.as_ref() {
            shown.last_failure_code = status.failure_code.clone();
        }
    }
    shown
}

/// Returns whether a node that holds the document of this digest holds the one that it is to hold.
pub(crate) fn up_to_date(view: &View, name: &Name, digest: Option<&String>) -> bool {
    if let Some(wanted) = view.leader.wanted.get(name) {
        return Some(&wanted.digest) == digest;
    }
    let Some(record) = &view.document else { return true };
    let nodes = view.placement.nodes.get(name).map(|share| (name.clone(), share.clone()));
    let placement = Placement { nodes: nodes.into_iter().collect(), unplaced: Vec::new() };
    let wanted = planner::wanted(&record.document, &placement, [name].into_iter());
    wanted.get(name).map(|wanted| &wanted.digest) == digest
}
