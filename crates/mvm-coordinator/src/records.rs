//! The fleet's records in the store.

use crate::{Error, Result, Thing};
use mvm_model::fleet::{Capacity, Duty, FleetNode, FleetState, Labels, NodeStatus};
use mvm_model::{Name, PoolRef, Timestamp};
use mvm_store::{Expect, Store, Write};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The key of the document in force.
pub const DOCUMENT: &str = "fleet/document";
/// Nodes, by name.
pub const NODES: &str = "nodes/";
/// Which coordinator reaches which node: `alive/NODE/COORDINATOR`, for as long as it does.
pub const ALIVE: &str = "alive/";
/// What each node is to hold, by name.
pub const SHARES: &str = "shares/";
/// Claims that have been sent to a node, by id.
pub const CLAIMS: &str = "claims/";
/// The election's name.
pub const ELECTION: &str = "leader";

/// A node that belongs to the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's name.
    pub node_id: Name,
    /// Where its agent serves: `HOST:PORT`, or `unix:PATH`.
    pub address: String,
    /// Whether it may get instances, and keeps those that it has.
    #[serde(default)]
    pub duty: Duty,
    /// Since when no coordinator reaches it, by the wall clock of the leader that wrote it: for people
    /// to read. Each coordinator counts the grace time by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_since: Option<Timestamp>,
    /// What it offered when it was reached last, so that a new leader knows it before it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<NodeFacts>,
}

/// The facts of a node that seldom change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// What it offers: vCPUs, memory and disk.
    pub capacity: Capacity,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// The model of its CPU.
    #[serde(default)]
    pub cpu_model: String,
}

impl NodeFacts {
    /// Returns the facts in a status.
    pub fn of(status: &NodeStatus) -> NodeFacts {
        NodeFacts {
            capacity: status.capacity,
            labels: status.labels.clone(),
            cpu_model: status.cpu_model.clone(),
        }
    }
}

impl NodeRecord {
    /// Returns the node as placement sees it; `None` for one that was never reached.
    pub fn node(&self, status: Option<&Arc<NodeStatus>>) -> Option<FleetNode> {
        let status = match (status, &self.known) {
            (Some(status), _) => status.clone(),
            (None, Some(known)) => Arc::new(NodeStatus {
                node_id: self.node_id.clone(),
                version: String::new(),
                capacity: known.capacity,
                labels: known.labels.clone(),
                cpu_model: known.cpu_model.clone(),
                simulated: false,
                images: Default::default(),
                pools: Default::default(),
                document: None,
                pending: 0,
                failure: None,
                failure_code: None,
                newest_event: 0,
            }),
            (None, None) => return None,
        };
        Some(FleetNode { status, duty: self.duty, lost_since: self.lost_since, settled: false })
    }
}

/// The document in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentRecord {
    /// The document.
    pub document: FleetState,
    /// When it was applied.
    pub applied_at: Timestamp,
}

/// A claim that has been sent to a node: written once before that, and removed when it has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// The pool that the claim is of.
    pub pool: PoolRef,
    /// The node that the claim was sent to.
    pub node: Name,
    /// The client that claims, as in the lease.
    pub holder: String,
    /// The longest length of its lease, in seconds; absent where the client named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_s: Option<u64>,
}

/// What a candidate says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The coordinator's name.
    pub name: Name,
    /// Where others reach it: `HOST:PORT`, or `unix:PATH`.
    pub address: String,
}

/// Returns the write of a record.
pub fn put(key: String, value: &impl Serialize, expect: Expect) -> Write {
    // Records are plain structs of strings and numbers: their serialisation cannot fail.
    Write::Put { key, value: serde_json::to_vec(value).unwrap_or_default(), expect }
}

/// Reads the value of a record. Errors: `record_damaged`.
pub fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value)
        .map_err(|cause| Error::RecordDamaged { key: key.to_owned(), cause })
}

/// Changes a node's record, however many others do so at the same time. `change` returns whether
/// there is something to write. Errors: `not_found`, or those of the store.
pub async fn change_node(
    store: &dyn Store,
    node: &Name,
    fence: Option<Write>,
    change: impl Fn(&mut NodeRecord) -> bool,
) -> Result<()> {
    loop {
        let key = format!("{NODES}{node}");
        let Some(found) = store.get(&key).await? else {
            return Err(Error::Missing(Thing::Node(node.clone())));
        };
        let mut record: NodeRecord = read(&key, &found.value)?;
        if !change(&mut record) {
            return Ok(());
        }
        let write = put(key.clone(), &record, Expect::Revision(found.revision));
        match store.commit(fence.clone().into_iter().chain([write]).collect()).await {
            // Somebody else's change came first.
            Err(mvm_store::Error::Conflict { key: at, .. }) if at == key => {}
            outcome => return outcome.map(drop).map_err(Error::from),
        }
    }
}

/// Returns the first half of the SHA-256 of a document, in hexadecimal digits.
pub(crate) fn digest(document: &impl Serialize) -> String {
    let text = serde_json::to_vec(document).unwrap_or_default();
    mvm_model::hex::digits(&Sha256::digest(text)[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Returns the same value as a later version might write it: with an additional field in every
    /// object, except in those that users write, which have one version in the whole fleet.
    fn later(value: &Value) -> Value {
        let Value::Object(fields) = value else { return value.clone() };
        let newer = |(key, field): (&String, &Value)| {
            let newer = match (key.as_str(), field) {
                ("ready" | "document", _) => field.clone(),
                // A map by name, not an object with fields.
                ("pools", Value::Object(pools)) => {
                    let newer = pools.iter().map(|(pool, status)| (pool.clone(), later(status)));
                    Value::Object(newer.collect())
                }
                _ => later(field),
            };
            (key.clone(), newer)
        };
        let mut all: serde_json::Map<_, _> = fields.iter().map(newer).collect();
        all.insert("of_a_later_version".to_owned(), json!({ "some": ["thing"] }));
        Value::Object(all)
    }

    fn is_read<T: DeserializeOwned>(written: &Value) -> T {
        read("a/record", written.to_string().as_bytes()).expect("it is read")
    }

    /// Checks that the known fields are read as if there were no others.
    fn survives<T: DeserializeOwned + Serialize>(written: Value) {
        let known: Value = serde_json::to_value(is_read::<T>(&written)).expect("JSON");
        let newer: Value = serde_json::to_value(is_read::<T>(&later(&written))).expect("JSON");
        assert_eq!(known, newer);
    }

    #[test]
    fn records_of_other_versions_are_read() {
        let known = json!({ "capacity": { "vcpus": 1, "mem_mib": 2, "disk_gib": 3 } });
        survives::<NodeRecord>(json!({ "node_id": "n1", "address": "a:1", "known": known }));
        let claim = json!({ "pool": "ci/runners", "node": "n1", "holder": "operator:a" });
        survives::<ClaimRecord>(claim);
        survives::<Candidate>(json!({ "name": "c1", "address": "a:1" }));
        let document = json!({ "schema_version": 1, "fleet_id": "f", "tenants": [] });
        survives::<DocumentRecord>(json!({ "document": document, "applied_at": 1 }));
        // Optional fields may be absent.
        let record: NodeRecord = is_read(&json!({ "node_id": "n1", "address": "a:1" }));
        assert_eq!((record.duty, record.known), (Duty::Open, None));
    }

    #[test]
    fn a_status_of_another_version_is_read() {
        let capacity = json!({ "vcpus": 1, "mem_mib": 2, "disk_gib": 3 });
        let ready = json!({ "running": 0, "warm": 1, "sleeping": 2 });
        let pool = json!({ "ready": ready, "leased": 0, "template": true });
        // The fields that an agent of the first version sends.
        survives::<NodeStatus>(json!({
            "node_id": "n1", "version": "0.1.0", "capacity": capacity,
            "pools": { "ci/runners": pool },
        }));
    }

    #[test]
    fn a_document_with_more_than_is_known_is_refused_whole() {
        use mvm_api::fleet::{NodeClaim, NodeDocument};
        let leader = json!({ "fleet_id": "f", "epoch": 1 });
        let document = json!({ "schema_version": 1, "node_id": "n1", "tenants": [] });
        let whole = json!({ "leader": leader, "digest": "d", "document": document });
        assert!(serde_json::from_value::<NodeDocument>(whole.clone()).is_ok());
        for at in ["", "/leader", "/document"] {
            let mut newer = whole.clone();
            newer.pointer_mut(at).expect("a place")["of_a_later_version"] = json!(1);
            let refused = serde_json::from_value::<NodeDocument>(newer).expect_err("refused");
            assert!(refused.to_string().contains("of_a_later_version"), "{refused}");
        }
        let claim = json!({ "leader": leader, "pool": "ci/runners", "holder": "operator:a" });
        assert!(serde_json::from_value::<NodeClaim>(claim).is_ok());
    }
}
