//! Announces this node's address to the coordinators. Once is enough, since they record the address
//! and connect to it.

use mvm_api::fleet::RegisterNode;
use mvm_api::identity::Identity;
use mvm_api::paths;
use mvm_identity::tls::{Credentials, Expect};
use mvm_model::Code;
use std::sync::Arc;
use std::time::Duration;

/// The pause before the next announcement: after a failure, and after a success.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// Announces the address forever to the coordinators that the identity names, in case one has
/// forgotten it.
pub async fn run(credentials: Arc<Credentials>, address: String) {
    let Identity::Node(node_id) = credentials.credential().facts.identity else { return };
    let body = RegisterNode { node_id, address };
    let mut announced = false;
    loop {
        let taken = announce(&credentials, &body).await;
        if taken && !announced {
            tracing::info!(address = body.address, "the fleet knows where this node is");
        }
        announced = taken;
        tokio::time::sleep(if taken { AGAIN.1 } else { AGAIN.0 }).await;
    }
}

/// Returns whether a coordinator has accepted the announcement.
async fn announce(credentials: &Arc<Credentials>, body: &RegisterNode) -> bool {
    for address in credentials.credential().signers.addresses {
        let client =
            mvm_identity::client(address.clone(), credentials.clone(), Expect::Coordinator);
        match client.post::<serde_json::Value>(paths::NODES, body).await {
            Ok(_) => return true,
            // This server signs certificates and leads no fleet.
            Err(error)
                if matches!(error.code(), Some(Code::NoSuchRoute | Code::MethodNotAllowed)) => {}
            Err(error) => tracing::debug!("{address} does not take where we are: {error}"),
        }
    }
    false
}
