//! Jobs: made on the node that would serve a claim soonest, and looked up there later.

use super::gather::{confined, gather, is_for, parsed};
use super::handler::{Asked, Listing, Shared};
use super::job_keys;
use super::proxy::{least_leased, pass_to, relay, relay_stream, search};
use super::ways::way_to;
use crate::{ClusterState, Error, Result};
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::response::Response;
use mvm_api::jobs;
use mvm_api::jobs::JobFilter;
use mvm_api::routes::IDEMPOTENCY_KEY;
use mvm_model::{Code, JobId, Name, PoolRef};
use mvm_server::{Caller, key_of};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// Makes a job on one node, in whose queue it waits. With an idempotency key it is made on that
/// node only, however often it is asked for.
pub async fn create(
    State(fleet): Shared,
    Path((tenant, pool)): Path<(String, String)>,
    request: Request,
) -> Result<Response> {
    let pool = PoolRef { tenant: tenant.parse()?, pool: pool.parse()? };
    fleet.check_pool(&pool)?;
    let soonest = || {
        let least = || least_leased(&fleet, &pool);
        fleet
            .claims
            .soonest(&pool)
            .or_else(least)
            .ok_or_else(|| Error::PoolOutOfReach(pool.clone()))
    };
    if !request.headers().contains_key(IDEMPOTENCY_KEY) {
        return relay(&fleet, &way_to(&fleet, &soonest()?)?, request).await;
    }
    let key = key_of(&request)?;
    let assignment = job_keys::node(&*fleet.store, &key, fleet.clock().now(), soonest).await?;
    let outcome = match way_to(&fleet, &assignment.node) {
        Ok(way) => relay(&fleet, &way, request).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(response) => {
            assignment.answered(&*fleet.store, response.status()).await?;
            Ok(response)
        }
        // This was the key's first request and it did not reach the node: the next one may go to
        // another.
        Err(error) if assignment.first && error.code() == Code::NodeUnreachable => {
            assignment.free(&*fleet.store).await?;
            Err(error)
        }
        Err(error) => Err(Error::JobMayBeThere { node: assignment.node, cause: Box::new(error) }),
    }
}

/// Lists all jobs that the caller may see, each with its node.
pub async fn list(
    State(fleet): Shared,
    ConnectInfo(peer): Caller,
    Asked { page, filter }: Asked<JobFilter>,
) -> Listing<Value> {
    let tenant = confined(&peer, filter.tenant.clone());
    let query = [
        tenant.map(|tenant| format!("tenant={tenant}")),
        filter.pool.map(|pool| format!("pool={pool}")),
        filter.state.map(|state| format!("state={state}")),
    ];
    let query = query.into_iter().flatten().collect::<Vec<_>>().join("&");
    let mut all = gather(&fleet, |_| true, &page, |_| format!("{}?{query}", jobs::JOBS)).await;
    all.items.retain(|job| is_for(&peer, filter.tenant.as_ref(), parsed(&job["tenant_id"])));
    Ok(all)
}

/// The parameters in the path of a job.
#[derive(Debug, Deserialize)]
pub struct InPath {
    id: String,
}

/// Passes a request about one job on to the node that has it.
pub async fn pass(
    State(fleet): Shared,
    Path(at): Path<InPath>,
    request: Request,
) -> Result<Response> {
    let node = find(&fleet, at.id.parse()?).await?;
    pass_to(&fleet, &node, at.id, request).await
}

/// Passes a job's inputs on, of any length.
pub async fn inputs(
    State(fleet): Shared,
    Path(at): Path<InPath>,
    request: Request,
) -> Result<Response> {
    let node = find(&fleet, at.id.parse()?).await?;
    relay_stream(&way_to(&fleet, &node)?, request).await
}

/// Returns the node that has a job. Where its place is not known, all nodes in reach are asked.
async fn find(fleet: &Arc<ClusterState>, id: JobId) -> Result<Name> {
    if let Some(node) = fleet.nodes.locations.of(&id.to_string()) {
        return Ok(node);
    }
    let nodes = fleet.reached();
    let some = fleet.view().nodes.len() > nodes.len();
    let (holders, all) = search(fleet, nodes, &jobs::job(id)).await;
    let unreached = some || !all;
    match &holders[..] {
        [node] => Ok(node.clone()),
        [] if unreached => Err(Error::JobOutOfReach(id)),
        [] => Err(Error::JobMissing(id)),
        [one, other, ..] => Err(Error::Ambiguous {
            what: format!("job {id}"),
            one: one.clone(),
            other: other.clone(),
        }),
    }
}
