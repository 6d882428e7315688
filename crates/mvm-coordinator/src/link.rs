//! The link to one node: it hears what the node reports and, while we lead, sends the node its
//! document.
//!
//! Every coordinator holds a link to every node, so that the next leader already knows all nodes.
//! The connection goes from the coordinator to the node: a node is alive if it can be reached,
//! which is what counts for those who want something of it.

use crate::claim_dispatch;
use crate::leadership::Lead;
use crate::node_client::{NodeClient, NodeReport};
use crate::records::NodeFacts;
use crate::state::ClusterState;
use crate::view::Wanted;
use futures::StreamExt;
use mvm_api::fleet::NodeDocument;
use mvm_model::fleet::NodeStatus;
use mvm_model::plan::Failures;
use mvm_model::{Name, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

/// A node is out of reach after this long without a word: three beats.
const SILENCE: Duration = Duration::from_secs(6);
/// How long a node has for one answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long to wait before a node is tried again, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Keeps the link up; never returns.
pub(crate) async fn run(
    fleet: Arc<ClusterState>,
    node: Name,
    client: Arc<dyn NodeClient>,
    kick: Arc<Notify>,
) {
    let mut link =
        Link { fleet, node, client, failures: Failures::default(), tried: String::new() };
    let mut pause = AGAIN.0;
    loop {
        if link.listen(&kick).await {
            pause = AGAIN.0;
        }
        link.lost();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

struct Link {
    fleet: Arc<ClusterState>,
    node: Name,
    client: Arc<dyn NodeClient>,
    /// How often sending the document has failed in a row.
    failures: Failures,
    /// The digest of the document that was sent last.
    tried: String,
}

impl Link {
    /// Listens until the node falls silent; returns whether it has said anything.
    async fn listen(&mut self, kick: &Notify) -> bool {
        let mut stream = self.client.watch();
        let mut ends = Instant::now() + SILENCE;
        let mut heard = false;
        loop {
            let retry = self.retry();
            tokio::select! {
                // What the node has said while it was being worked for counts before the silence.
                biased;
                report = stream.next() => match report {
                    Some(report) => {
                        if !self.receive(report) {
                            return false;
                        }
                        (heard, ends) = (true, Instant::now() + SILENCE);
                    }
                    None => return heard,
                },
                () = kick.notified() => {}
                () = sleep_until(retry.unwrap_or(ends)) => {}
                () = sleep_until(ends) => {
                    tracing::warn!(node = %self.node, "out of reach: silent for too long");
                    return heard;
                }
            }
            if heard {
                self.work().await;
            }
        }
    }

    /// Returns when the document is to be sent again; `None` where no attempt is behind us.
    fn retry(&self) -> Option<Instant> {
        let at = self.failures.retry_at();
        let wait = at.since(self.fleet.clock().now()).max(Duration::from_millis(1));
        (at > Timestamp::EPOCH).then(|| Instant::now() + wait)
    }

    /// Notes what the node reports; returns whether it is the node that belongs here.
    fn receive(&self, report: NodeReport) -> bool {
        let mut view = self.fleet.view();
        let news = view.news(&self.node);
        let Some(known) = view.nodes.get_mut(&self.node) else { return false };
        if let NodeReport::Status(status) = &report
            && status.node_id != self.node
        {
            tracing::error!(node = %self.node, "another node answers: {}", status.node_id);
            known.refused = Some(format!("node {} answers there", status.node_id));
            return false;
        }
        let mut replan = !known.reached;
        known.reached = true;
        if let NodeReport::Status(status) = report {
            let before = known.status.replace(Arc::new(*status));
            let now = known.status.as_ref();
            replan |= now.map(|s| NodeFacts::of(s)) != before.as_ref().map(|s| NodeFacts::of(s))
                || now.map(|s| &s.images) != before.as_ref().map(|s| &s.images);
            replan |= view.news(&self.node) != news;
            drop(view);
            claim_dispatch::refresh(&self.fleet, &self.node);
            self.fleet.nodes.news.send_replace(());
        } else {
            drop(view);
        }
        if replan {
            self.fleet.nodes.reachability.set(&self.node, true);
            self.fleet.placing.replan.notify_one();
        }
        true
    }

    /// Notes that the node is out of reach.
    fn lost(&self) {
        if let Some(known) = self.fleet.view().nodes.get_mut(&self.node) {
            if known.reached {
                known.lost_at = Some(std::time::Instant::now());
            }
            (known.reached, known.resolved) = (false, false);
        }
        self.fleet.nodes.reachability.set(&self.node, false);
        self.fleet.claims.close(&self.node);
    }

    /// Does the leader's part: asks the node for its claims, once, and sends it its document.
    async fn work(&mut self) {
        let Some(lead) = self.fleet.lead() else { return };
        let resolved = {
            let view = self.fleet.view();
            view.nodes.get(&self.node).is_none_or(|known| known.resolved)
        };
        if !resolved {
            match timeout(ANSWER, self.client.leader(&lead.leader)).await {
                Ok(Ok(held)) => {
                    if let Some(known) = self.fleet.view().nodes.get_mut(&self.node) {
                        known.resolved = true;
                    }
                    claim_dispatch::resolve(&self.fleet, &self.node, &held);
                }
                Ok(Err(refused)) => return self.refused(refused.into_error().to_string()),
                Err(_) => return self.refused("the node does not answer in time".to_owned()),
            }
        }
        if let Some(wanted) = self.due() {
            self.send(&lead, wanted).await;
        }
    }

    /// Returns the document that is to be sent now, if any.
    fn due(&mut self) -> Option<Wanted> {
        let view = self.fleet.view();
        let known = view.nodes.get(&self.node)?;
        let wanted = view.leader.wanted.get(&self.node)?;
        let holds: Option<&NodeStatus> = known.status.as_deref();
        if holds.and_then(|status| status.document.as_ref()) == Some(&wanted.digest) {
            self.failures = Failures::default();
            return None;
        }
        let waits = self.tried == wanted.digest;
        let now = self.fleet.clock().now();
        (!waits || now >= self.failures.retry_at()).then(|| wanted.clone())
    }

    async fn send(&mut self, lead: &Lead, wanted: Wanted) {
        let Ok(_turn) = self.fleet.placing.pushes.acquire().await else { return };
        let document = NodeDocument {
            leader: lead.leader.clone(),
            digest: wanted.digest.clone(),
            document: (*wanted.document).clone(),
        };
        self.tried = wanted.digest;
        let outcome = match timeout(ANSWER, self.client.document(&document)).await {
            Ok(outcome) => outcome.map_err(|refused| refused.into_error().to_string()),
            Err(_) => Err("the node does not answer in time".to_owned()),
        };
        // The node's status says what it holds now; until that comes the document is not sent again
        // at once.
        self.failures = Failures { count: self.failures.count + 1, last: self.fleet.clock().now() };
        match outcome {
            Ok(()) => self.note_refusal(None),
            Err(why) => self.refused(why),
        }
    }

    fn refused(&self, why: String) {
        tracing::warn!(node = %self.node, "the node does not take its document: {why}");
        self.note_refusal(Some(why));
    }

    fn note_refusal(&self, refused: Option<String>) {
        if let Some(known) = self.fleet.view().nodes.get_mut(&self.node) {
            known.refused = refused;
        }
    }
}
