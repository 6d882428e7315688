//! The errors of a coordinator.

use mvm_api::{ClientError, Problem};
use mvm_model::{AnyCode, Code, Fault, InstanceRef, JobId, LeaseId, Name, PoolRef};
use std::borrow::Cow;
use std::sync::Arc;

/// The result of the coordinator's own functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a coordinator did not do something. [`Error::code`] is stable and for programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Who leads.
    /// The request came to a former leader: nothing was done.
    #[error("this coordinator does not lead any more")]
    Succeeded,
    /// No coordinator leads.
    #[error("no coordinator leads at the moment")]
    NoLeader,
    /// The coordinator has not read the store yet.
    #[error("this coordinator has just been started, and has not read the store yet")]
    NotReady,

    // What does not exist.
    /// The fleet has no document yet.
    #[error("this fleet has no document yet")]
    NoDocument,
    /// The named thing does not exist.
    #[error("there is no {0}")]
    Missing(Thing),
    /// No node in reach has the job.
    #[error("no node in reach has job {0}")]
    JobMissing(JobId),
    /// The coordinator has no such route.
    #[error("the coordinator has no {path}")]
    NoSuchRoute {
        /// The path of the request.
        path: String,
    },
    /// A simulated node has no agent that a request could be passed on to.
    #[error("node {0} is simulated")]
    Simulated(Name),

    // What a request asks for and does not get.
    /// The document is for another fleet.
    #[error("the document is for fleet {theirs}, this is {ours}")]
    OtherFleet {
        /// The document's fleet.
        theirs: Name,
        /// The coordinator's fleet.
        ours: Name,
    },
    /// The document changes the network of a tenant.
    #[error(
        "tenant {tenant} has net id {net_id} and {subnet}; a network is not changed while its \
         tenant exists"
    )]
    NetworkChanged {
        /// The tenant's place in the document.
        index: usize,
        /// The tenant.
        tenant: Name,
        /// The tenant's present network id.
        net_id: String,
        /// The tenant's present subnet.
        subnet: String,
    },
    /// A node's certificate is for another node.
    #[error("node {node} may not speak for node {other}")]
    OtherNode {
        /// The node that asks.
        node: Name,
        /// The node that it asks for.
        other: Name,
    },
    /// The address of a node is not one.
    #[error("{address:?} {why}")]
    Address {
        /// The address as it was given.
        address: String,
        /// What is wrong with the address.
        why: &'static str,
    },
    /// A claim needs an upgraded connection.
    #[error("this route needs Upgrade: {0}")]
    UpgradeRequired(&'static str),
    /// The body is longer than what is passed on.
    #[error("the body is too long: {0}")]
    BodyTooLong(#[source] axum::Error),
    /// Two nodes have the same thing.
    #[error("{what} is on node {one} and on node {other}")]
    Ambiguous {
        /// The thing: `job ID`, or `instance TENANT/POOL/ID`.
        what: String,
        /// A node that has it.
        one: Name,
        /// Another node that has it.
        other: Name,
    },

    // Nodes and leaders that do not answer.
    /// This coordinator has no link to the node.
    #[error("node {0} is out of reach")]
    OutOfReach(Name),
    /// No node in reach has the pool.
    #[error("no node in reach has pool {0}")]
    PoolOutOfReach(PoolRef),
    /// The job may be on a node that is out of reach.
    #[error("no node in reach has job {0}, and not all are in reach")]
    JobOutOfReach(JobId),
    /// The instance may be on a node that is out of reach.
    #[error("instance {0} is on no node in reach")]
    InstanceOutOfReach(InstanceRef),
    /// The node takes no connection.
    #[error("node {node} does not answer: {cause}")]
    NodeSilent {
        /// The node.
        node: Name,
        /// The operating system's error.
        cause: std::io::Error,
    },
    /// The leader takes no connection.
    #[error("coordinator {leader}, which led, does not answer: {cause}")]
    LeaderSilent {
        /// The leader.
        leader: Name,
        /// The operating system's error.
        cause: std::io::Error,
    },
    /// The server takes connections and answers no request.
    #[error("{server} is silent: {cause}")]
    Silent {
        /// The server: `node NAME`, or `coordinator NAME, which led,`.
        server: String,
        /// The client's error.
        cause: ClientError,
    },
    /// The connection broke before the answer.
    #[error("the connection to {server} broke while {doing}: {cause}")]
    Broken {
        /// The server: `node NAME`, or `coordinator NAME, which led,`.
        server: String,
        /// The method and path of the request.
        doing: String,
        /// Why it broke.
        cause: String,
    },
    /// A node has not answered in time.
    #[error("no answer in time")]
    Timeout,
    /// The link to the node broke while it was asked.
    #[error("the link to it broke")]
    LinkBroke,
    /// The job may have been made on this node, which did not answer.
    #[error("{cause}")]
    JobMayBeThere {
        /// The node that the job was sent to.
        node: Name,
        /// Why there is no answer.
        cause: Box<Error>,
    },

    // Claims.
    /// The queue of claims is full.
    #[error("as many claims of {whose} wait as may")]
    QueueFull {
        /// Whose queue: `the fleet`, or `tenant NAME`.
        whose: String,
    },
    /// The claim's machine is being given back.
    #[error("the machine of this claim is given back")]
    GivenBack,
    /// The node was lost while it served the claim.
    #[error("node {node} was lost while it served: {cause}")]
    ClaimLost {
        /// The node.
        node: Name,
        /// The last error of the node.
        cause: Box<Error>,
    },
    /// No node could serve the claim in time.
    #[error("no node had a machine of pool {pool} within {seconds} s")]
    NoMachineInTime {
        /// The pool.
        pool: PoolRef,
        /// How long the claim has waited, in seconds.
        seconds: u64,
    },
    /// Several nodes have refused the claim.
    #[error("{tries} nodes could not serve a claim of pool {pool}")]
    NoMachine {
        /// How many nodes were asked.
        tries: u32,
        /// The pool.
        pool: PoolRef,
    },
    /// An earlier request for the claim is still served.
    #[error("an earlier request for the claim {0} is still served")]
    ClaimUnderWay(LeaseId),
    /// The idempotency key names a claim of another pool or holder.
    #[error("this idempotency key is of another claim")]
    OtherClaim,
    /// The client of the claim has gone.
    #[error("the client has gone")]
    ClientGone,
    /// There is no such claim to come back to.
    #[error("no earlier leader has served this claim, or it has ended")]
    ClaimEnded,
    /// The task of the claim ended without an outcome.
    #[error("the claim ended without a result")]
    NoOutcome,

    // Starting, serving.
    /// The server needs an identity to listen on the network.
    #[error("to listen needs an identity")]
    ListenWithoutIdentity,
    /// The coordinator needs an identity to reach a server on the network.
    #[error("{address} is on the network, and we have no identity")]
    ReachWithoutIdentity {
        /// The server's address.
        address: String,
    },
    /// The identity is not a coordinator's.
    #[error("{holder} is not a coordinator")]
    NotACoordinator {
        /// Whose identity it is.
        holder: String,
    },
    /// Only wildcard addresses are known, where other coordinators need one.
    #[error("other coordinators do not reach it at a wildcard address")]
    Wildcard,
    /// The runtime cannot start.
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    /// One of the coordinator's own tasks has ended.
    #[error("{what} has ended: {how}")]
    TaskEnded {
        /// The task: `serving`, or `the coordinator's work`.
        what: &'static str,
        /// How it ended.
        how: String,
    },
    /// The task that places pools has panicked.
    #[error("placing failed: {0}")]
    Placing(#[source] tokio::task::JoinError),
    /// The operating system gives no random bytes.
    #[error("cannot draw the id of a claim: {0}")]
    Random(#[source] getrandom::Error),
    /// The answer cannot be made.
    #[error("cannot make the answer: {0}")]
    Answer(#[source] axum::http::Error),

    // The store.
    /// A record cannot be read.
    #[error("the record {key} cannot be read: {cause}")]
    RecordDamaged {
        /// The record's key.
        key: String,
        /// What is wrong with the record.
        cause: serde_json::Error,
    },
    /// The store has failed or refused.
    #[error("{0}")]
    Store(#[source] Arc<mvm_store::Error>),

    // Errors that come with their code.
    /// A value or document is not valid.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A call of a node, or of another coordinator, has failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An identity or its authority has failed or refused.
    #[error(transparent)]
    Identity(#[from] mvm_identity::Error),
    /// The directory, the listener or the signer has failed or refused.
    #[error(transparent)]
    Server(#[from] mvm_server::Error),
    /// What another server has answered, or what the reader of a request says.
    #[error(transparent)]
    Problem(Box<Problem>),
}

/// Something that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A tenant.
    Tenant(Name),
    /// A pool.
    Pool(PoolRef),
    /// A node.
    Node(Name),
    /// An instance.
    Instance(InstanceRef),
    /// A lease, by its id.
    Lease(String),
}

impl std::fmt::Display for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Thing::Tenant(name) => write!(f, "tenant {name}"),
            Thing::Pool(pool) => write!(f, "pool {pool}"),
            Thing::Node(name) => write!(f, "node {name}"),
            Thing::Instance(instance) => write!(f, "instance {instance}"),
            Thing::Lease(id) => write!(f, "lease {id}"),
        }
    }
}

impl Thing {
    /// Returns where to see what there is of this kind.
    fn listed(&self) -> &'static str {
        match self {
            Thing::Tenant(_) => "see the tenants with `mvm tenant list`",
            Thing::Pool(_) => "see the pools with `mvm pool list`",
            Thing::Node(_) => "see the nodes with `mvm fleet nodes`",
            Thing::Instance(_) => "see the instances with `mvm instance list`",
            Thing::Lease(_) => "see the leases with `mvm lease list`",
        }
    }
}

impl Error {
    /// Returns the error's code. A node's may be one of a later version.
    pub fn code(&self) -> AnyCode {
        let code = match self {
            Error::Succeeded => Code::LeaderChanged,
            Error::NoLeader | Error::LeaderSilent { .. } => Code::NoLeader,
            Error::NotReady => Code::NotReady,
            Error::NoDocument | Error::Missing(_) | Error::JobMissing(_) => Code::NotFound,
            Error::NoSuchRoute { .. } | Error::Simulated(_) => Code::NoSuchRoute,
            Error::OtherFleet { .. } | Error::NetworkChanged { .. } | Error::OtherClaim => {
                Code::Conflict
            }
            Error::OtherNode { .. } => Code::Forbidden,
            Error::Address { .. } | Error::Wildcard => Code::InvalidValue,
            Error::UpgradeRequired(_) => Code::UpgradeRequired,
            Error::BodyTooLong(_) => Code::TooLarge,
            Error::Ambiguous { .. } => Code::Ambiguous,
            Error::OutOfReach(_)
            | Error::PoolOutOfReach(_)
            | Error::JobOutOfReach(_)
            | Error::InstanceOutOfReach(_)
            | Error::NodeSilent { .. } => Code::NodeUnreachable,
            Error::Silent { cause, .. } => return cause.any_code(),
            Error::Broken { .. } | Error::ClientGone => Code::ConnectionBroken,
            Error::Timeout | Error::LinkBroke => Code::Timeout,
            Error::JobMayBeThere { cause, .. } => return cause.code(),
            Error::QueueFull { .. } => Code::QueueFull,
            Error::GivenBack | Error::ClaimLost { .. } => Code::ClaimLost,
            Error::NoMachineInTime { .. } | Error::NoMachine { .. } => Code::NoMachine,
            Error::ClaimUnderWay(_) => Code::ClaimUnderWay,
            Error::ClaimEnded => Code::ClaimEnded,
            Error::ListenWithoutIdentity | Error::ReachWithoutIdentity { .. } => {
                Code::IdentityMissing
            }
            Error::NotACoordinator { .. } => Code::WrongIdentity,
            Error::NoOutcome
            | Error::Runtime(_)
            | Error::TaskEnded { .. }
            | Error::Placing(_)
            | Error::Random(_)
            | Error::Answer(_) => Code::Internal,
            Error::RecordDamaged { .. } => Code::RecordDamaged,
            Error::Store(cause) => cause.code(),
            Error::Fault(fault) => fault.code,
            Error::Client(cause) => return cause.any_code(),
            Error::Identity(cause) => return cause.code(),
            Error::Server(cause) => return cause.code(),
            Error::Problem(problem) => return problem.code.clone(),
        };
        code.into()
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'_, str> {
        let hint = match self {
            Error::Succeeded => "try again",
            Error::NoLeader => "try again in some seconds; see `mvm coordinator status`",
            Error::NotReady | Error::ClaimUnderWay(_) => "try again in some seconds",
            Error::NoDocument => "apply one: mvm fleet apply FILE",
            Error::Missing(thing) => thing.listed(),
            Error::JobMissing(_) => "see the jobs with `mvm job list`",
            Error::NetworkChanged { .. } => {
                "give the tenant its present network, or take it out of the document first"
            }
            Error::Address { .. } => {
                "write HOST:PORT, or unix:PATH for a node on the coordinator's machine"
            }
            Error::Ambiguous { .. } => "ask one of them: --node HOST:PORT",
            Error::JobOutOfReach(_) | Error::InstanceOutOfReach(_) | Error::NodeSilent { .. } => {
                "see `mvm fleet nodes`"
            }
            Error::PoolOutOfReach(_) | Error::NoMachineInTime { .. } | Error::NoMachine { .. } => {
                "see `mvm fleet status`"
            }
            Error::LeaderSilent { .. } => "another one leads in some seconds: try again",
            Error::Silent { cause, .. } | Error::Client(cause) => cause.hint(),
            Error::Broken { .. } => "it may have been done: look before you ask again",
            Error::JobMayBeThere { node, .. } => {
                return Cow::Owned(format!(
                    "the job may be on node {node}: see `mvm job list` when it answers"
                ));
            }
            Error::QueueFull { .. } => "try again later",
            Error::GivenBack => "claim again, with another idempotency key",
            Error::ClaimLost { .. } => "claim again",
            Error::ClaimEnded => "claim anew",
            Error::ListenWithoutIdentity => "name its directory with --identity",
            Error::ReachWithoutIdentity { .. } => {
                "start the coordinator with --identity, or name the node as unix:PATH"
            }
            Error::NotACoordinator { .. } => {
                "issue one: mvm ca issue --role coordinator --name NAME --out DIR"
            }
            Error::Wildcard => "say where they do: --advertise HOST:PORT",
            Error::Identity(cause) => return cause.hint(),
            Error::Server(cause) => return cause.hint(),
            Error::Fault(fault) => &fault.hint,
            Error::Problem(problem) => &problem.hint,
            _ => "",
        };
        Cow::Borrowed(hint)
    }

    /// Returns the JSON path of the faulty value in the request's document, or nothing.
    pub fn path(&self) -> Cow<'_, str> {
        match self {
            Error::OtherFleet { .. } => "$.fleet_id".into(),
            Error::NetworkChanged { index, .. } => format!("$.tenants[{index}].network").into(),
            Error::Fault(fault) => (&fault.path).into(),
            Error::Problem(problem) => (&problem.path).into(),
            _ => "".into(),
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Error {
        Error::Problem(Box::new(problem))
    }
}

impl From<mvm_store::Error> for Error {
    fn from(error: mvm_store::Error) -> Error {
        Arc::new(error).into()
    }
}

/// A leader's write that its fence has refused means that another coordinator leads; nothing was
/// written.
impl From<Arc<mvm_store::Error>> for Error {
    fn from(error: Arc<mvm_store::Error>) -> Error {
        match &*error {
            mvm_store::Error::Conflict { key, .. } if key.starts_with("elections/") => {
                Error::Succeeded
            }
            _ => Error::Store(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Error;
    use mvm_api::Problem;
    use mvm_model::{Code, Fault};
    use mvm_store::Expect;

    #[test]
    fn a_lost_election_is_not_told_in_the_words_of_the_store() {
        let lost = |key: &str| {
            Error::from(mvm_store::Error::Conflict {
                key: key.to_owned(),
                expected: Expect::Revision(321),
                found: 0,
            })
        };
        assert_eq!(lost("elections/leader").code(), Code::LeaderChanged);
        assert_eq!(lost("nodes/n1").code(), Code::StoreConflict);
    }

    #[test]
    fn a_problem_document_says_what_the_error_says() {
        let node: mvm_model::Name = "n1".parse().expect("a name");
        let of_node = Problem::new(Code::NoSpace, "the disk is full").hint("free some");
        let lost = Error::ClaimLost { node: node.clone(), cause: Box::new(of_node.clone().into()) };
        let lost = Problem::from(lost);
        assert_eq!(lost.code, Code::ClaimLost);
        assert_eq!(lost.detail, "node n1 was lost while it served: the disk is full");
        assert_eq!(lost.hint, "claim again");
        // The hint says where the job may be, and all else is the cause's.
        let there = Error::JobMayBeThere { node, cause: Box::new(of_node.clone().into()) };
        let there = Problem::from(there);
        assert_eq!((&there.code, &there.detail), (&of_node.code, &of_node.detail));
        assert!(there.hint.contains("may be on node n1"), "{}", there.hint);
        // What another server has answered is passed on as it is.
        assert_eq!(Problem::from(Error::from(of_node.clone())), of_node);
        let fault: Fault = "A B".parse::<mvm_model::Name>().expect_err("no name");
        assert_eq!(Problem::from(Error::from(fault.clone())), Problem::from(fault));
    }
}
