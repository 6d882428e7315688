//! Claims when a coordinator dies in the middle, and permissions.

use crate::lab::{Engine, Lab, text, wait_for};
use crate::machine_faults::CutDirection;
use serde_json::json;
use std::process::Stdio;

#[test]
fn the_next_leader_knows_what_was_claimed() {
    let mut lab = Lab::new("fleet-claims", Engine::Sqlite);
    lab.coordinator("c1");
    lab.nodes(&["n1"]);
    lab.apply(&json!({ "warm": 2 }), &json!({}), true);
    let job = lab.mvm("hub", &["run", "ci/runners", "--", "sleep", "1000"]);
    // This client does not wait for the coordinator to come back.
    let mut job = { job }.env("MVM_PATIENCE", "0").stderr(Stdio::piped()).spawn().expect("mvm");
    wait_for("the job", || lab.held("n1")[2] == 1);
    let lease = lab.json(&["lease", "list"])[0]["id"].as_str().expect("a lease").to_owned();
    assert_eq!(lease.len(), 18, "{lease} is the claim's own id");
    lab.kill("c1");
    // The waiting client gets an error.
    let status = job.wait().expect("job");
    assert_eq!(status.code(), Some(125));
    // The node continues to work by itself.
    assert!(lab.locally("n1", &["pool", "list", "-o", "json"]).contains("runners"));
    lab.coordinator("c1");
    // The new leader finds the claim, and ends it when its client does not come back.
    wait_for("the lease to end", || lab.held("n1")[2] == 0);
    wait_for("the spare to be made up for", || lab.converged());
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "hello"]), "hello\n");
}

#[test]
fn a_claim_whose_client_is_gone_without_a_word_ends_by_itself() {
    let mut lab = Lab::new("fleet-held", Engine::Sqlite);
    lab.coordinator("c1");
    lab.nodes(&["n1"]);
    lab.apply(&json!({ "warm": 1 }), &json!({}), true);
    // A timeout of hours does not keep a machine whose client is gone.
    let run = ["run", "ci/runners", "--timeout", "36000", "--", "sleep", "36000"];
    let begin = |lab: &Lab, machine: &str| {
        lab.mvm(machine, &run).stderr(Stdio::null()).spawn().expect("mvm")
    };
    let leases = |lab: &Lab| -> serde_json::Value {
        let listed = lab.locally("n1", &["lease", "list", "-o", "json"]);
        serde_json::from_str(&listed).expect("JSON")
    };
    // The client's network is cut without any message to the other side.
    lab.machine("n8");
    let mut client = begin(&lab, "n8");
    wait_for("the claim", || leases(&lab)[0]["held_by"] == "session");
    lab.cut("n8", CutDirection::Both);
    wait_for("its end", || leases(&lab) == json!([]));
    client.kill().expect("kill");
    client.wait().expect("wait");
    // The client is killed together with the leader, and no other leader follows.
    let mut client = begin(&lab, "hub");
    wait_for("the claim", || leases(&lab)[0]["held_by"] == "session");
    lab.kill("c1");
    client.kill().expect("kill");
    client.wait().expect("wait");
    wait_for("nobody to hold it", || leases(&lab)[0]["held_by"] != "session");
    let left = leases(&lab)[0]["left_s"].as_u64().unwrap_or_default();
    assert!(left <= 30, "{left} s are left of it");
    wait_for("its end", || leases(&lab) == json!([]));
}

#[test]
fn a_tenants_operator_sees_its_tenant_only() {
    let mut lab = Lab::new("fleet-roles", Engine::Sqlite);
    lab.coordinator("c1");
    lab.nodes(&["n1"]);
    lab.apply(&json!({ "warm": 1 }), &json!({}), true);
    let bob = |words: &[&str]| {
        let mut command = lab.mvm("hub", words);
        command.env("MVM_IDENTITY", lab.path("bob")).output().expect("mvm")
    };
    assert_eq!(text(&bob(&["run", "ci/runners", "--", "echo", "hi"]).stdout), "hi\n");
    let leased = bob(&["instance", "list", "-o", "json"]);
    assert!(text(&leased.stdout).contains("ci/runners"), "{}", text(&leased.stderr));
    for words in [&["fleet", "nodes"][..], &["fleet", "show"], &["fleet", "drain", "n1"]] {
        let refused = bob(words);
        assert!(text(&refused.stderr).contains("error[forbidden]"), "{words:?}");
    }
    let other = bob(&["run", "web/small", "--", "true"]);
    assert!(text(&other.stderr).contains("error[forbidden]"), "{}", text(&other.stderr));
    lab.refused(&["run", "ci/other", "--", "true"], "not_found");
    lab.refused(&["fleet", "nodes", "n9"], "not_found");
}

#[test]
fn a_node_is_of_one_fleet_until_it_leaves() {
    let mut lab = Lab::new("fleet-leave", Engine::Sqlite);
    lab.coordinator("c1");
    lab.nodes(&["n1"]);
    lab.apply(&json!({ "warm": 1 }), &json!({}), true);
    // After this, the leader's epoch is higher than that of the first leader of a new fleet.
    lab.kill("c1");
    lab.coordinator("c1");
    wait_for("the next leader", || {
        lab.coordinator_status("c1").is_some_and(|status| status["leads"] == true)
    });
    // The node has heard of the new leader.
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "hello"]), "hello\n");
    wait_for("the spare to be made up for", || lab.converged());
    let warm = lab.json(&["fleet", "instances"])[0]["reference"].clone();
    // The fleet's state is lost: its next leader has a lower epoch, and the node refuses it.
    lab.kill("c1");
    std::fs::remove_dir_all(lab.path("c1")).expect("state");
    lab.coordinator("c1");
    // The node announces its address every few minutes only.
    lab.ok("hub", &["fleet", "add", "n1", "10.99.0.101:4433"]);
    wait_for("the node", || lab.alive("n1"));
    lab.apply(&json!({ "warm": 1 }), &json!({}), false);
    wait_for("the node to refuse", || {
        let node = lab.json(&["fleet", "nodes", "n1"]);
        node["refused"].as_str().is_some_and(|why| why.contains("is succeeded by"))
    });
    lab.locally("n1", &["node", "leave"]);
    wait_for("the node to obey", || {
        let node = lab.json(&["fleet", "nodes", "n1"]);
        node["refused"].is_null() && node["up_to_date"] == true && lab.converged()
    });
    // The node keeps its instances.
    assert_eq!(lab.json(&["fleet", "instances"])[0]["reference"], warm);
}
