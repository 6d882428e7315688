//! A node is brought to a document's desired state, and stays there.

use crate::lab::{Lab, nixpkgs, run, wait_for};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

fn write(lab: &Lab, tenants: Value) -> PathBuf {
    let document = json!({ "schema_version": 1, "node_id": "node-1", "tenants": tenants });
    let path = lab.root.join("desired.json");
    std::fs::write(&path, document.to_string()).expect("document");
    path
}

fn tenant(warm: u32, sleeping: u32) -> Value {
    json!([{
        "tenant_id": "ci",
        "network": { "tenant_net_id": 50, "ipv4_subnet": "10.77.50.0/24" },
        "pools": [{
            "pool_id": "small", "flake_ref": "./flake", "profile": "small",
            "instance_resources": { "vcpus": 1, "mem_mib": 256, "scratch_disk_mib": 128 },
            "desired_counts": { "running": 0, "warm": warm, "sleeping": sleeping },
        }],
    }])
}

fn reconcile(lab: &Lab, document: &Path, more: &[&str]) -> String {
    let (document, inputs) = (document.to_str().expect("path"), nixpkgs());
    let words = ["agent", "reconcile", "--desired", document, "--override-input", &inputs];
    lab.ok(&[&words, more].concat())
}

#[test]
fn a_node_is_brought_to_a_document_and_stays_there() {
    let lab = Lab::new("desired");
    let document = write(&lab, tenant(2, 1));
    let plan = reconcile(&lab, &document, &["--dry-run"]);
    for step in ["create tenant ci", "create pool ci/small", "build pool", "0 running, 2 warm"] {
        assert!(plan.contains(step), "{step}: {plan}");
    }
    assert_eq!(lab.json(&["tenant", "list"]), json!([]), "nothing was done");
    assert_eq!(reconcile(&lab, &document, &["--wait"]), plan, "what was said is what was done");
    let wanted = json!({ "running": 0, "warm": 2, "sleeping": 1 });
    assert_eq!(lab.ready("ci/small"), wanted);
    assert!(reconcile(&lab, &document, &["--wait"]).contains("nothing to do"));
    // The node's own state, applied to it as a document, changes nothing.
    let told = lab.ok(&["agent", "desired"]);
    let path = lab.root.join("told.json");
    std::fs::write(&path, told).expect("document");
    let again =
        lab.ok(&["agent", "reconcile", "--prune", "--desired", path.to_str().expect("path")]);
    assert!(again.contains("nothing to do"), "{again}");
    // One instance is stopped, one is killed and one is destroyed: all are replaced.
    let warm = lab.ids("ci/small", "warm");
    lab.ok(&["instance", "stop", &warm[0]]);
    run(Command::new("kill").args(["-9", &lab.process(&warm[1])]));
    lab.ok(&["instance", "destroy", &lab.ids("ci/small", "sleeping")[0]]);
    wait_for("the counts", || lab.ready("ci/small") == wanted);
    // Leased instances come on top, and survive when everything else is pruned.
    let leased = lab.ids("ci/small", "warm").remove(0);
    lab.ok(&["instance", "wake", &leased, "--lease", "600"]);
    wait_for("the counts", || lab.ready("ci/small") == wanted);
    let nothing = write(&lab, json!([]));
    reconcile(&lab, &nothing, &["--prune"]);
    wait_for("the others to go", || {
        lab.json(&["instance", "list"]).as_array().map(Vec::len) == Some(1)
    });
    // The agent that runs when the lease ends completes the pruning.
    lab.kill_agent();
    assert_eq!(lab.exec(&leased, "echo still").trim(), "still");
    assert_eq!(lab.json(&["agent", "status"])["desired"]["in_force"], true);
    lab.ok(&["instance", "destroy", &leased]);
    wait_for("the tenant to go", || lab.json(&["tenant", "list"]) == json!([]));
    wait_for("nothing to do", || lab.json(&["agent", "status"])["desired"]["in_force"] == false);
    assert_eq!((lab.machines(), lab.links()), (0, Vec::new()));
}

#[test]
fn a_file_is_watched_and_a_faulty_version_changes_nothing() {
    let lab = Lab::new("watch");
    let document = write(&lab, tenant(1, 0));
    let inputs = nixpkgs();
    let path = document.to_str().expect("path");
    let words = ["agent", "serve", "--desired", path, "--override-input", &inputs, "--prune"];
    let mut agent = lab.mvm(&words).stderr(std::process::Stdio::null()).spawn().expect("agent");
    let warm = |lab: &Lab| {
        let pool = lab.mvm(&["pool", "info", "ci/small", "-o", "json"]).output().expect("mvm");
        let pool: Value = serde_json::from_slice(&pool.stdout).unwrap_or_default();
        pool["ready_counts"]["warm"].as_u64()
    };
    wait_for("the socket", || lab.root.join("agent.sock").exists());
    wait_for("one warm", || warm(&lab) == Some(1));
    // A pool that was destroyed by hand comes back.
    lab.ok(&["pool", "destroy", "ci/small"]);
    wait_for("one warm again", || warm(&lab) == Some(1));
    std::fs::write(&document, r#"{"schema_version": 1, "node_id": "a", "tenant": []}"#).expect("w");
    let desired = |lab: &Lab| lab.json(&["agent", "status"])["desired"].clone();
    wait_for("the fault to be told", || {
        desired(&lab)["refused"].as_str().is_some_and(|why| why.contains("$.tenant"))
    });
    assert_eq!(warm(&lab), Some(1), "the one before stays in force");
    write(&lab, tenant(0, 1));
    wait_for("the new version", || {
        desired(&lab)["refused"].is_null()
            && lab.ready("ci/small") == json!({"running": 0, "warm": 0, "sleeping": 1})
    });
    // The failure of a flake that does not build is shown, and the build is tried again at growing
    // intervals.
    let mut broken = tenant(0, 1);
    broken[0]["pools"][0]["profile"] = "nonesuch".into();
    write(&lab, broken);
    wait_for("the failure", || {
        desired(&lab)["last_failure"].as_str().is_some_and(|why| why.contains("nonesuch"))
    });
    assert!(desired(&lab)["retry_at"].as_u64().is_some());
    lab.ok(&["agent", "stop"]);
    agent.wait().expect("agent");
}

/// `--wait` ends at once on a fault that only a person can mend, instead of after half an hour. A
/// mended document is carried out.
#[test]
fn what_only_a_person_can_mend_ends_the_wait() {
    let lab = Lab::simulated("mend");
    let with = |flake: &str, profile: &str| {
        let mut tenants = tenant(0, 1);
        tenants[0]["pools"][0]["flake_ref"] = flake.into();
        tenants[0]["pools"][0]["profile"] = profile.into();
        write(&lab, tenants).display().to_string()
    };
    let inputs = nixpkgs();
    let words = ["agent", "reconcile", "--wait", "--override-input", &inputs, "--desired"];
    for (flake, profile, why) in
        [("./flake", "no-such", "`no-such`; it has: small"), ("nowhere", "small", "/nowhere")]
    {
        let document = with(flake, profile);
        let said = lab.refused(&[&words[..], &[&document]].concat(), "needs_mending");
        assert!(said.contains("cannot build pool ci/small") && said.contains(why), "{said}");
    }
    // A flake's name without a scheme is a path relative to the document.
    let document = with("flake", "small");
    lab.ok(&[&words[..], &[&document]].concat());
    assert_eq!(lab.ready("ci/small")["sleeping"], 1);
    let pool = lab.json(&["pool", "info", "ci/small"]);
    assert_eq!(pool["flake_ref"], lab.root.join("flake").display().to_string());
}
