//! Leases of jobs and claims with holders that stay, go, and come back.

use crate::clock::advance;
use crate::crashes::host::{Host, own_network};
use crate::crashes::operations::{counts, pool, runners, scale};
use crate::node::Node;
use mvm_api::fleet::{Leader, NodeClaim, RenewClaims};
use mvm_model::lease::{HOLD_MS, Purpose, RENEW_MS};
use mvm_model::{Lease, Recycle};
use std::sync::Arc;

const CLAIM: &str = "l-0123456789abcdef";

fn leader(epoch: u64) -> Leader {
    Leader { fleet_id: "f".parse().expect("a name"), epoch }
}

fn claim(epoch: u64) -> NodeClaim {
    let (pool, holder) = (runners(), "operator:alice".to_owned());
    NodeClaim { leader: leader(epoch), pool, holder, lease_s: None }
}

fn renewed(epoch: u64) -> RenewClaims {
    RenewClaims { leader: leader(epoch), claims: vec![CLAIM.to_owned()] }
}

/// The lease with this id, if it is there.
async fn lease(node: &Node, id: &str) -> Option<Lease> {
    node.records.read(|world| crate::leases::leased(world, id).ok()?.lease.clone())
}

/// Whether the lease goes on after a look at all of them.
async fn goes_on(node: &Arc<Node>, id: &str) -> bool {
    node.leases.expire().await;
    lease(node, id).await.is_some_and(|lease| !node.holders.is_due(&lease))
}

/// Waits until the lease is gone.
async fn gone(node: &Arc<Node>, id: &str) {
    let mut changes = node.records.subscribe();
    node.leases.expire().await;
    while lease(node, id).await.is_some() {
        changes.changed().await.expect("a node");
    }
}

async fn prepare(node: &Arc<Node>) {
    pool(node, Recycle::Reset, None).await.expect("a pool");
    scale(node, counts(0, 0, 0)).await.expect("scaled");
}

/// On a host of its own.
fn on_host(work: impl AsyncFnOnce(Arc<Node>)) -> Host {
    own_network();
    let host = Host::new();
    host.agent(async |node| {
        prepare(&node).await;
        work(node).await;
    })
    .expect("nobody kills this agent");
    host
}

#[test]
fn a_claim_lives_as_long_as_its_leader_says_so() {
    let host = on_host(async |node| {
        node.fleet.claim(CLAIM, claim(1)).await.expect("a claim");
        for _ in 0..20 {
            advance(RENEW_MS * 2);
            let gone = node.fleet.renew(&renewed(1)).await.expect("renewed");
            assert!(gone.is_empty() && goes_on(&node, CLAIM).await);
        }
        // Another leader comes, to whom its client has not come yet.
        advance(HOLD_MS - 1000);
        let held = node.fleet.led(&leader(2)).await.expect("led");
        assert_eq!(held[0].id, CLAIM);
        node.fleet.renew(&renewed(1)).await.expect_err("it leads no more");
        advance(HOLD_MS - 1000);
        assert!(goes_on(&node, CLAIM).await);
        // Nobody answers for it any more.
        advance(1000);
        gone(&node, CLAIM).await;
        let told = node.fleet.renew(&renewed(2)).await.expect("told");
        assert_eq!(told, [CLAIM], "whoever renews it is told that it is gone");
    });
    host.disconnect();
}

#[test]
fn a_claim_that_is_ended_while_it_is_brought_up_leaves_nothing() {
    let host = on_host(async |node| {
        node.fleet.led(&leader(1)).await.expect("led");
        let leader = leader(1);
        let (claimed, ended) =
            tokio::join!(node.fleet.claim(CLAIM, claim(1)), node.fleet.release(CLAIM, &leader),);
        claimed.expect("it was asked for first");
        ended.expect("it has ended");
        assert!(lease(&node, CLAIM).await.is_none(), "whoever was told so may claim elsewhere");
    });
    host.disconnect();
}

#[test]
fn an_open_session_holds_a_claim_without_any_leader() {
    let host = on_host(async |node| {
        let claimed = node.fleet.claim(CLAIM, claim(1)).await.expect("a claim");
        let session = node.slots.of(claimed.reference.id).session();
        for _ in 0..50 {
            advance(HOLD_MS - 1000);
            assert!(goes_on(&node, CLAIM).await);
        }
        drop(session);
        advance(HOLD_MS);
        gone(&node, CLAIM).await;
    });
    host.disconnect();
}

#[test]
fn a_claim_ends_at_its_longest_time_whoever_holds_it() {
    let host = on_host(async |node| {
        let wanted = NodeClaim { lease_s: Some(100), ..claim(1) };
        let claimed = node.fleet.claim(CLAIM, wanted).await.expect("a claim");
        let _session = node.slots.of(claimed.reference.id).session();
        advance(99_000);
        assert!(goes_on(&node, CLAIM).await);
        advance(1000);
        gone(&node, CLAIM).await;
    });
    host.disconnect();
}

#[test]
fn the_connection_of_a_claim_on_a_node_holds_it() {
    let host = on_host(async |node| {
        let (holder, purpose) = ("uid:0".to_owned(), Purpose::Run);
        let wish = crate::lease_request::LeaseRequest { holder, purpose, lease_s: None };
        let (instance, _) = node.leases.claim(&runners(), &wish).await.expect("a claim");
        let id = instance.lease.expect("a lease").id;
        let connection = node.holders.hold(&id);
        advance(100 * HOLD_MS);
        assert!(goes_on(&node, &id).await);
        drop(connection);
        advance(HOLD_MS);
        gone(&node, &id).await;
    });
    host.disconnect();
}

#[test]
fn an_agent_that_is_replaced_costs_a_claim_nothing() {
    let host = on_host(async |node| {
        node.fleet.claim(CLAIM, claim(1)).await.expect("a claim");
        // Longer than a claim is held without a sign, as it goes by until the next agent is there.
        advance(HOLD_MS - 1000);
        node.fleet.renew(&renewed(1)).await.expect("renewed");
        advance(10 * HOLD_MS);
    });
    host.agent(async |node| {
        assert!(goes_on(&node, CLAIM).await, "its leader has the time to come");
        advance(HOLD_MS - 1000);
        node.fleet.led(&leader(1)).await.expect("led");
        advance(RENEW_MS);
        node.fleet.renew(&renewed(1)).await.expect("renewed");
        assert!(goes_on(&node, CLAIM).await);
        advance(HOLD_MS);
        gone(&node, CLAIM).await;
    })
    .expect("nobody kills this agent");
    host.disconnect();
}
