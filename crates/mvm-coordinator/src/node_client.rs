//! The way to a node: over the network, or to a simulated one.

use crate::Error;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use mvm_api::fleet::{HeldClaim, Leader, NodeClaim, NodeDocument, RenewClaims};
use mvm_api::types::Claim;
use mvm_api::{Client, ClientError, paths};
use mvm_identity::tls::{Credentials, Expect};
use mvm_model::fleet::NodeStatus;
use mvm_model::{LeaseId, Name};
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// What a node reports while it is watched.
#[derive(Clone, Debug)]
pub enum NodeReport {
    /// The node's status has changed.
    Status(Box<NodeStatus>),
    /// The node is there, and nothing has changed.
    Beat,
}

/// Why a node did not do something.
#[derive(Debug)]
pub enum Refused {
    /// The node has refused: nothing was done.
    No(Error),
    /// The node could not be asked: nothing was done.
    Unreached(Error),
    /// The node has tried and failed: something may be left there.
    Failed(Error),
    /// Nobody knows whether it was done.
    Unknown(Error),
}

impl Refused {
    /// Returns the error that explains the refusal.
    pub fn into_error(self) -> Error {
        match self {
            Refused::No(error)
            | Refused::Unreached(error)
            | Refused::Failed(error)
            | Refused::Unknown(error) => error,
        }
    }
}

impl From<ClientError> for Refused {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { .. } => Refused::Unreached(error.into()),
            ClientError::Problem(problem) if problem.status < 500 => Refused::No((*problem).into()),
            ClientError::Problem(problem) => Refused::Failed((*problem).into()),
            error => Refused::Unknown(error.into()),
        }
    }
}

/// One node, as a coordinator speaks to it.
#[async_trait]
pub trait NodeClient: Send + Sync + 'static {
    /// Returns what the node reports, until the connection breaks.
    fn watch(&self) -> BoxStream<'static, NodeReport>;
    /// Sends the node its document.
    async fn document(&self, document: &NodeDocument) -> Result<(), Refused>;
    /// Tells the node who leads; returns the claims that it holds.
    async fn leader(&self, leader: &Leader) -> Result<Vec<HeldClaim>, Refused>;
    /// Asks the node to serve a claim; the same id is the same claim.
    async fn claim(&self, id: LeaseId, claim: &NodeClaim) -> Result<Claim, Refused>;
    /// Tells the node which claims have their client connected; returns those that it does not
    /// hold.
    async fn renew(&self, claims: &RenewClaims) -> Result<Vec<LeaseId>, Refused>;
    /// Asks the node to end a claim.
    async fn end(&self, id: LeaseId, leader: &Leader) -> Result<(), Refused>;
    /// Returns a client of the node's agent, for requests that are passed on; `None` where the node
    /// is simulated.
    fn http(&self) -> Option<Client>;
}

/// Makes clients of nodes and coordinators.
pub trait Connector: Send + Sync + 'static {
    /// Returns a client of this node at this address.
    fn node(&self, node: &Name, address: &str) -> Result<Arc<dyn NodeClient>, Error>;
    /// Returns a client of the coordinator at this address.
    fn coordinator(&self, address: &str) -> Result<Client, Error>;
}

/// Reaches servers at `HOST:PORT` with this identity, and at `unix:PATH` on this machine.
pub struct Network {
    /// Our identity; without one only servers on this machine are reached.
    pub credentials: Option<Arc<Credentials>>,
}

impl Network {
    /// Returns a client of the server at an address. Errors: `identity_missing`.
    pub fn client(&self, address: &str, expect: Expect) -> Result<Client, Error> {
        match (address.strip_prefix("unix:"), &self.credentials) {
            (Some(path), _) => Ok(Client::new(path)),
            (None, Some(credentials)) => {
                Ok(mvm_identity::client(address, credentials.clone(), expect))
            }
            (None, None) => Err(Error::ReachWithoutIdentity { address: address.to_owned() }),
        }
    }
}

impl Connector for Network {
    fn node(&self, node: &Name, address: &str) -> Result<Arc<dyn NodeClient>, Error> {
        let client = self.client(address, Expect::Node(Some(node.clone())))?;
        Ok(Arc::new(HttpClient { client }))
    }

    fn coordinator(&self, address: &str) -> Result<Client, Error> {
        self.client(address, Expect::Coordinator)
    }
}

struct HttpClient {
    client: Client,
}

#[async_trait]
impl NodeClient for HttpClient {
    fn watch(&self) -> BoxStream<'static, NodeReport> {
        let (client, (reports, received)) = (self.client.clone(), unbounded_channel());
        // The task ends with the stream, when nobody listens any more.
        let listening = tokio::spawn(async move {
            let gone = reports.clone();
            tokio::select! {
                outcome = client.streams().follow(paths::NODE_WATCH, |event| pass_on(&reports, &event)) => {
                    if let Err(error) = outcome {
                        tracing::debug!("a node's stream broke: {error}");
                    }
                }
                () = gone.closed() => {}
            }
        });
        let end = End(listening);
        let stream = futures::stream::unfold((received, end), |(mut received, end)| async move {
            received.recv().await.map(|report| (report, (received, end)))
        });
        stream.boxed()
    }

    async fn document(&self, document: &NodeDocument) -> Result<(), Refused> {
        let _: serde_json::Value = self.client.put(paths::NODE_DOCUMENT, document).await?;
        Ok(())
    }

    async fn leader(&self, leader: &Leader) -> Result<Vec<HeldClaim>, Refused> {
        Ok(self.client.put(paths::NODE_LEADER, leader).await?)
    }

    async fn claim(&self, id: LeaseId, claim: &NodeClaim) -> Result<Claim, Refused> {
        Ok(self.client.put(&paths::node_claim(id), claim).await?)
    }

    async fn renew(&self, claims: &RenewClaims) -> Result<Vec<LeaseId>, Refused> {
        Ok(self.client.put(paths::NODE_CLAIMS, claims).await?)
    }

    async fn end(&self, id: LeaseId, leader: &Leader) -> Result<(), Refused> {
        let _: serde_json::Value = self.client.put(&paths::node_claim_end(id), leader).await?;
        Ok(())
    }

    fn http(&self) -> Option<Client> {
        Some(self.client.clone())
    }
}

/// Ends a task when it is dropped.
struct End(tokio::task::JoinHandle<()>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn pass_on(reports: &UnboundedSender<NodeReport>, event: &mvm_api::client::Event) {
    let report = match event.name.as_str() {
        "status" => match serde_json::from_str(&event.data) {
            Ok(status) => NodeReport::Status(Box::new(status)),
            Err(error) => return tracing::warn!("a node's status cannot be read: {error}"),
        },
        _ => NodeReport::Beat,
    };
    let _ = reports.send(report);
}
