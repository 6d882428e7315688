//! Tests with a leader and one node whose answers are scripted.

use super::*;
use crate::Error;
use crate::claim_dispatch;
use crate::node_client::{NodeClient, NodeReport};
use crate::records::{CLAIMS, ClaimRecord, NodeRecord};
use crate::state::tests::lonely;
use crate::view::KnownNode;
use crate::writer::Writer;
use async_trait::async_trait;
use futures::stream::BoxStream;
use mvm_api::Client;
use mvm_api::fleet::{HeldClaim, Leader, NodeDocument, RenewClaims};
use mvm_model::fleet::{Capacity, NodeOffer, PoolOffer};
use mvm_model::{Code, Counts, InstanceRef, LeaseId, State};
use mvm_store::Expect;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const CLAIM: LeaseId = LeaseId::of_claim(0x0123_4567_89ab_cdef);

/// The node's answer to a claim.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    Served,
    Refused,
    Failed,
    Broken,
    Never,
}

/// A node that gives these answers to claims, in this order, and confirms every request to end one.
pub(crate) struct Scripted {
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<&'static str>>,
}

impl Scripted {
    pub fn new(answers: &[Answer]) -> Arc<Scripted> {
        let answers = Mutex::new(answers.iter().copied().collect());
        Arc::new(Scripted { answers, asked: Mutex::default() })
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().clone()
    }
}

#[async_trait]
impl NodeClient for Scripted {
    fn watch(&self) -> BoxStream<'static, NodeReport> {
        Box::pin(futures::stream::pending())
    }

    async fn document(&self, _: &NodeDocument) -> Result<(), Refused> {
        Ok(())
    }

    async fn leader(&self, _: &Leader) -> Result<Vec<HeldClaim>, Refused> {
        Ok(Vec::new())
    }

    async fn claim(&self, id: LeaseId, _: &NodeClaim) -> Result<Claim, Refused> {
        self.asked.lock().push("claim");
        let answer = self.answers.lock().pop_front();
        match answer.expect("an answer") {
            Answer::Served => Ok(claim(id)),
            Answer::Refused => Err(Refused::No(Error::Timeout)),
            Answer::Failed => Err(Refused::Failed(Error::Timeout)),
            Answer::Broken => Err(Refused::Unknown(Error::Timeout)),
            Answer::Never => std::future::pending().await,
        }
    }

    async fn renew(&self, _: &RenewClaims) -> Result<Vec<LeaseId>, Refused> {
        Ok(Vec::new())
    }

    async fn end(&self, _: LeaseId, _: &Leader) -> Result<(), Refused> {
        self.asked.lock().push("end");
        Ok(())
    }

    fn http(&self) -> Option<Client> {
        None
    }
}

fn claim(id: LeaseId) -> Claim {
    let reference: InstanceRef = "ci/runners/i-00000001".parse().expect("an instance");
    let lease = serde_json::json!({
        "id": id, "holder": "operator:alice", "purpose": "run", "since": 1, "expires_at": 2,
    });
    let lease = serde_json::from_value(lease).expect("a lease");
    Claim { reference, from: State::Warm, way_up: None, took_ms: 1.0, lease }
}

fn node() -> Name {
    "n1".parse().expect("a name")
}

fn order(again: bool) -> ClaimOrder {
    let pool = "ci/runners".parse().expect("a pool");
    ClaimOrder { id: CLAIM, pool, holder: "operator:alice".to_owned(), lease_s: None, again }
}

fn record() -> ClaimRecord {
    let ClaimOrder { pool, holder, .. } = order(false);
    ClaimRecord { pool, node: node(), holder, lease_s: None }
}

/// Returns a coordinator that leads, with a node that it reaches or not.
async fn leading(port: &Arc<Scripted>, reached: bool) -> (Arc<ClusterState>, Arc<Lead>) {
    let fleet = lonely();
    let election = mvm_store::Election::new(fleet.store.clone(), "leader");
    let leadership = election.campaign(b"{}", Duration::from_secs(600)).await.expect("elected");
    let lead = Arc::new(Lead::new(leadership, fleet.options.fleet_id.clone()));
    fleet.view().nodes.insert(node(), known_node(port, reached));
    (fleet, lead)
}

/// Returns the node as a coordinator knows it that reaches it or not.
pub(crate) fn known_node(port: &Arc<Scripted>, reached: bool) -> KnownNode {
    let record = NodeRecord {
        node_id: node(),
        address: "unix:/nowhere".to_owned(),
        duty: Default::default(),
        lost_since: None,
        known: None,
    };
    KnownNode {
        record,
        client: port.clone(),
        status: None,
        reached,
        lost_at: None,
        missed_since: None,
        resolved: reached,
        refused: None,
        kick: Arc::default(),
        link: tokio::spawn(async {}).abort_handle(),
    }
}

fn reach(fleet: &ClusterState, reached: bool) {
    fleet.view().nodes.get_mut(&node()).expect("the node").reached = reached;
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), work).await.expect("it ends soon")
}

async fn asked(answers: &[Answer]) -> (Result<Claim, Unserved>, Vec<&'static str>) {
    let port = Scripted::new(answers);
    let (fleet, lead) = leading(&port, true).await;
    let asking = Asking::new(fleet.clock().now());
    let outcome = soon(ask(&fleet, &lead, &order(false), &node(), asking)).await;
    (outcome, port.asked())
}

#[tokio::test]
async fn what_a_node_refuses_after_its_answer_was_lost_is_ended_there_and_goes_elsewhere() {
    // The agent was killed in the middle: the machine has failed, or there is no room for another
    // one.
    for second in [Answer::Refused, Answer::Failed] {
        let (outcome, asked) = asked(&[Answer::Broken, second]).await;
        assert!(matches!(outcome, Err(Unserved::Elsewhere(_))), "{second:?}: {outcome:?}");
        assert_eq!(asked, ["claim", "claim", "end"], "{second:?}");
    }
    let (outcome, asked) = asked(&[Answer::Refused]).await;
    assert!(matches!(outcome, Err(Unserved::Elsewhere(_))), "{outcome:?}");
    assert_eq!(asked, ["claim"], "it has nothing of it");
}

#[tokio::test]
async fn a_request_that_is_never_answered_is_not_waited_for_when_its_link_breaks() {
    let port = Scripted::new(&[Answer::Never, Answer::Served]);
    let (fleet, lead) = leading(&port, true).await;
    let (of, with) = (fleet.clone(), lead.clone());
    let asking = tokio::spawn(async move {
        let asking = Asking::new(of.clock().now());
        ask(&of, &with, &order(false), &node(), asking).await
    });
    sleep(Duration::from_millis(50)).await;
    reach(&fleet, false);
    sleep(Duration::from_millis(1200)).await;
    reach(&fleet, true);
    soon(asking).await.expect("a task").expect("the same claim");
    assert_eq!(port.asked(), ["claim", "claim"]);
}

#[tokio::test]
async fn a_client_that_comes_to_a_new_leader_keeps_the_machine_of_a_node_that_is_not_in_reach_yet()
{
    let port = Scripted::new(&[Answer::Served]);
    let (fleet, lead) = leading(&port, false).await;
    let written = Writer::start(fleet.store.clone(), lead.clone());
    fleet.claims.begin(written, BTreeMap::from([(CLAIM, record())]));
    fleet.set_lead(Some(lead.clone()));
    let of = fleet.clone();
    let serving = tokio::spawn(async move {
        claim_dispatch::serve(&of, &lead, &order(true), std::future::pending()).await
    });
    sleep(Duration::from_millis(700)).await;
    assert!(!serving.is_finished(), "it waits for the node");
    reach(&fleet, true);
    soon(serving).await.expect("a task").expect("the same claim");
    assert_eq!(port.asked(), ["claim"], "nothing is ended");
}

#[tokio::test]
async fn a_claim_that_is_given_back_tells_its_client_to_claim_anew() {
    let port = Scripted::new(&[]);
    let (fleet, lead) = leading(&port, false).await;
    let written = Writer::start(fleet.store.clone(), lead.clone());
    fleet.claims.begin(written, BTreeMap::from([(CLAIM, record())]));
    fleet.set_lead(Some(lead.clone()));
    // The client has not come back in time, and the node cannot be asked to end the claim.
    let orphan = fleet.claims.orphan(CLAIM).expect("we lead").expect("an orphan");
    tokio::spawn(claim_dispatch::release(fleet.clone(), lead.clone(), CLAIM, orphan.node));
    let served = claim_dispatch::serve(&fleet, &lead, &order(false), std::future::pending()).await;
    assert_eq!(served.expect_err("it is being given back").code(), Code::ClaimLost);
    assert!(fleet.store.list(CLAIMS).await.expect("a list").is_empty(), "nothing is written");
}

#[tokio::test]
async fn a_claim_whose_record_may_be_written_already_is_served_when_it_is_asked_for_again() {
    let port = Scripted::new(&[Answer::Served]);
    let (fleet, lead) = leading(&port, true).await;
    // The store wrote the record, and its answer was lost.
    let written = crate::records::put(format!("{CLAIMS}{CLAIM}"), &record(), Expect::Absent);
    fleet.store.commit(vec![written]).await.expect("written");
    fleet.claims.begin(Writer::start(fleet.store.clone(), lead.clone()), BTreeMap::new());
    fleet.set_lead(Some(lead.clone()));
    let ready = Counts { warm: 1, ..Counts::default() };
    let stand = PoolOffer { ready, leases: 1, built: true, ..PoolOffer::default() };
    let (capacity, pools) = (
        Capacity { vcpus: 4, ..Capacity::default() },
        BTreeMap::from([(order(false).pool, stand)]),
    );
    fleet.claims.offer(&node(), NodeOffer { open: true, capacity, pools, ..NodeOffer::default() });
    let serve = async || {
        soon(claim_dispatch::serve(&fleet, &lead, &order(false), std::future::pending())).await
    };
    assert_eq!(serve().await.expect_err("it is there").code(), Code::StoreConflict);
    serve().await.expect("the same claim");
    assert_eq!(port.asked(), ["claim"]);
}
