//! Several coordinators on one etcd: one leads, all serve, and another becomes leader when it dies.

use crate::lab::{Engine, Lab, address, wait_for};
use serde_json::json;

#[test]
fn another_coordinator_leads_when_the_leader_dies() {
    let mut lab = Lab::new("fleet-election", Engine::Etcd(1));
    lab.coordinator("c1");
    lab.coordinator("c2");
    lab.nodes(&["n1", "n2"]);
    // A request to another coordinator reaches the leader.
    lab.front = "c2".to_owned();
    let leads = |lab: &Lab| lab.json(&["coordinator", "status"])["leads"] == true;
    assert!(!leads(&lab), "the first one leads");
    lab.apply(&json!({ "warm": 2 }), &json!({ "spread": { "key": "node" } }), true);
    wait_for("the other to know of it", || lab.converged());
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "hello"]), "hello\n");
    wait_for("the spare to be made up for", || lab.converged());
    let job = ["job", "submit", "ci/runners", "--", "echo", "queued"];
    let job = lab.ok("hub", &job).trim().to_owned();
    lab.ok("hub", &["job", "wait", &job]);
    assert_eq!(lab.ok("hub", &["job", "logs", &job]), "queued\n");
    lab.kill("c1");
    wait_for("the other to lead", || leads(&lab));
    let leader = lab.json(&["fleet", "status"])["leader"].clone();
    assert_eq!(leader, format!("{}:4433", address("c2")));
    wait_for("the spare to be made up for", || lab.converged());
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "on"]), "on\n");
    // The new leader makes the same decisions as the old one, so no node changes.
    wait_for("the spare to be made up for", || {
        ["n1", "n2"].iter().all(|node| lab.held(node)[0] == 1)
    });
    lab.apply(&json!({ "warm": 4 }), &json!({ "spread": { "key": "node" } }), true);
    // The old leader comes back and serves as a follower.
    lab.coordinator("c1");
    lab.front = "c1".to_owned();
    wait_for("it to know all", || lab.converged());
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "back"]), "back\n");
}
