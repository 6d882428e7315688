//! Tests of leases of jobs and claims whose holders stay, go, and come back.

use crate::agent::Agent;
use crate::crashes::host::{Host, own_network};
use crate::crashes::operations::{counts, pool, runners, scale};
use mvm_api::fleet::{Leader, NodeClaim, RenewClaims};
use mvm_model::lease::{HOLD, Purpose, RENEW};
use mvm_model::{Lease, LeaseId, Recycle};
use std::sync::Arc;
use std::time::Duration;

const CLAIM: LeaseId = LeaseId::of_claim(0x0123_4567_89ab_cdef);

fn leader(epoch: u64) -> Leader {
    Leader { fleet_id: "f".parse().expect("a name"), epoch }
}

fn claim(epoch: u64) -> NodeClaim {
    let (pool, holder) = (runners(), "operator:alice".to_owned());
    NodeClaim { leader: leader(epoch), pool, holder, lease_s: None }
}

fn renewed(epoch: u64) -> RenewClaims {
    RenewClaims { leader: leader(epoch), claims: vec![CLAIM] }
}

/// Returns the lease with this id, if it exists.
fn lease(agent: &Agent, id: LeaseId) -> Option<Lease> {
    agent.base.records.read(|records| crate::leases::leased(records, id).ok()?.lease.clone())
}

/// Returns whether the lease outlasts a check of all leases.
async fn outlasts_a_check(agent: &Arc<Agent>, id: LeaseId) -> bool {
    agent.work.leases.expire().await;
    lease(agent, id).is_some_and(|lease| !agent.work.holders.is_due(&lease))
}

/// Waits until the lease is gone.
async fn gone(agent: &Arc<Agent>, id: LeaseId) {
    let mut changes = agent.base.records.subscribe();
    agent.work.leases.expire().await;
    while lease(agent, id).is_some() {
        changes.changed().await.expect("a node");
    }
}

async fn prepare(agent: &Arc<Agent>) {
    pool(agent, Recycle::Reset, None).await.expect("a pool");
    scale(agent, counts(0, 0, 0)).await.expect("scaled");
}

/// Runs `work` with an agent on a host of its own.
fn on_host(work: impl AsyncFnOnce(Arc<Agent>)) -> Host {
    own_network();
    let host = Host::new();
    host.agent(async |agent| {
        prepare(&agent).await;
        work(agent).await;
    })
    .expect("nobody kills this agent");
    host
}

#[test]
fn a_claim_lives_as_long_as_its_leader_says_so() {
    let host = on_host(async |agent| {
        agent.steering.fleet.claim(&CLAIM.to_string(), claim(1)).await.expect("a claim");
        for _ in 0..20 {
            agent.advance(RENEW * 2);
            let gone = agent.steering.fleet.renew(&renewed(1)).await.expect("renewed");
            assert!(gone.is_empty() && outlasts_a_check(&agent, CLAIM).await);
        }
        // Another leader comes, which the client has not reached yet.
        agent.advance(HOLD - Duration::from_secs(1));
        let held = agent.steering.fleet.led(&leader(2)).await.expect("led");
        assert_eq!(held[0].id, CLAIM);
        agent.steering.fleet.renew(&renewed(1)).await.expect_err("it leads no more");
        agent.advance(HOLD - Duration::from_secs(1));
        assert!(outlasts_a_check(&agent, CLAIM).await);
        // No holder renews the lease any more.
        agent.advance(Duration::from_secs(1));
        gone(&agent, CLAIM).await;
        let told = agent.steering.fleet.renew(&renewed(2)).await.expect("told");
        assert_eq!(told, [CLAIM], "whoever renews it is told that it is gone");
    });
    host.disconnect();
}

#[test]
fn a_claim_that_is_ended_while_it_is_brought_up_leaves_nothing() {
    let host = on_host(async |agent| {
        agent.steering.fleet.led(&leader(1)).await.expect("led");
        let (id, leader) = (CLAIM.to_string(), leader(1));
        let (claimed, ended) = tokio::join!(
            agent.steering.fleet.claim(&id, claim(1)),
            agent.steering.fleet.release(&id, &leader),
        );
        claimed.expect("it was asked for first");
        ended.expect("it has ended");
        assert!(lease(&agent, CLAIM).is_none(), "whoever was told so may claim elsewhere");
    });
    host.disconnect();
}

#[test]
fn an_open_session_holds_a_claim_without_any_leader() {
    let host = on_host(async |agent| {
        let claimed =
            agent.steering.fleet.claim(&CLAIM.to_string(), claim(1)).await.expect("a claim");
        let session = agent.base.slots.of(claimed.reference.id).session();
        for _ in 0..50 {
            agent.advance(HOLD - Duration::from_secs(1));
            assert!(outlasts_a_check(&agent, CLAIM).await);
        }
        drop(session);
        agent.advance(HOLD);
        gone(&agent, CLAIM).await;
    });
    host.disconnect();
}

#[test]
fn a_claim_ends_at_its_longest_time_whoever_holds_it() {
    let host = on_host(async |agent| {
        let wanted = NodeClaim { lease_s: Some(100), ..claim(1) };
        let claimed =
            agent.steering.fleet.claim(&CLAIM.to_string(), wanted).await.expect("a claim");
        let _session = agent.base.slots.of(claimed.reference.id).session();
        agent.advance(Duration::from_secs(99));
        assert!(outlasts_a_check(&agent, CLAIM).await);
        agent.advance(Duration::from_secs(1));
        gone(&agent, CLAIM).await;
    });
    host.disconnect();
}

#[test]
fn the_connection_of_a_claim_on_a_node_holds_it() {
    let host = on_host(async |agent| {
        let (holder, purpose) = ("uid:0".to_owned(), Purpose::Run);
        let request = crate::lease_request::LeaseRequest { holder, purpose, lease_s: None };
        let (instance, _) = agent.work.leases.claim(&runners(), &request).await.expect("a claim");
        let id = instance.lease.expect("a lease").id;
        let connection = agent.work.holders.hold(id);
        agent.advance(100 * HOLD);
        assert!(outlasts_a_check(&agent, id).await);
        drop(connection);
        agent.advance(HOLD);
        gone(&agent, id).await;
    });
    host.disconnect();
}

#[test]
fn an_agent_that_is_replaced_costs_a_claim_nothing() {
    let host = on_host(async |agent| {
        agent.steering.fleet.claim(&CLAIM.to_string(), claim(1)).await.expect("a claim");
        // More time passes until the next agent starts than a claim is held without a sign.
        agent.advance(HOLD - Duration::from_secs(1));
        agent.steering.fleet.renew(&renewed(1)).await.expect("renewed");
        agent.advance(10 * HOLD);
    });
    host.agent(async |agent| {
        assert!(outlasts_a_check(&agent, CLAIM).await, "its leader has the time to come");
        agent.advance(HOLD - Duration::from_secs(1));
        agent.steering.fleet.led(&leader(1)).await.expect("led");
        agent.advance(RENEW);
        agent.steering.fleet.renew(&renewed(1)).await.expect("renewed");
        assert!(outlasts_a_check(&agent, CLAIM).await);
        agent.advance(HOLD);
        gone(&agent, CLAIM).await;
    })
    .expect("nobody kills this agent");
    host.disconnect();
}
