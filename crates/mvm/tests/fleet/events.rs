//! The events of all nodes, as a coordinator reports them.

use crate::lab::{Engine, Lab, wait_for};
use crate::machine_faults::CutDirection;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

/// Returns the node and the number of an event.
fn id(event: &Value) -> (String, u64) {
    let node = event["node_id"].as_str().expect("a node").to_owned();
    (node, event["id"].as_u64().expect("a number"))
}

#[test]
fn a_follower_misses_nothing_and_hears_nothing_twice() {
    let mut lab = Lab::new("fleet-events", Engine::Sqlite);
    lab.coordinator("c1");
    lab.nodes(&["n1", "n2"]);
    let mut follower = lab.mvm("hub", &["events", "-f", "-o", "json"]);
    let errors = std::fs::File::create(lab.root.join("follower.log")).expect("log");
    follower.stdout(Stdio::piped()).stderr(errors);
    let mut follower = follower.spawn().expect("mvm");
    let out = BufReader::new(follower.stdout.take().expect("stdout"));
    let seen = Arc::new(Mutex::new(Vec::<(String, u64)>::new()));
    let reading = std::thread::spawn({
        let seen = seen.clone();
        move || {
            for line in out.lines().map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).expect("JSON");
                seen.lock().expect("lock").push(id(&event));
            }
        }
    });
    let heard = |lab: &Lab| {
        let all = lab.json(&["events"]);
        let mut all: Vec<_> = all.as_array().expect("list").iter().map(id).collect();
        all.sort();
        let mut seen = seen.lock().expect("lock").clone();
        seen.sort();
        seen == all && !all.is_empty()
    };
    let spread = json!({ "spread": { "key": "node" } });
    lab.apply(&json!({ "warm": 2 }), &spread, true);
    wait_for("all of it to be heard", || heard(&lab));
    // The follower's link breaks, and events happen in the meantime through the nodes' own agents.
    for round in 0..2 {
        lab.cut("c1", CutDirection::Both);
        for node in ["n1", "n2"] {
            for _ in 0..3 {
                let words = ["run", "ci/runners", "--", "echo", "on"];
                assert_eq!(lab.locally(node, &words), "on\n");
            }
        }
        lab.join("c1");
        wait_for("the nodes", || lab.alive("n1") && lab.alive("n2"));
        wait_for("all of it to be heard", || heard(&lab));
        if round == 0 {
            // The coordinator dies too, and the next process continues after the last event that
            // was sent.
            lab.kill("c1");
            lab.coordinator("c1");
            wait_for("the nodes", || lab.alive("n1") && lab.alive("n2"));
        }
    }
    wait_for("the spares to be made up for", || lab.converged());
    wait_for("all of it to be heard", || heard(&lab));
    // The events of each node are in order.
    let mut last = BTreeMap::<String, u64>::new();
    for (node, id) in seen.lock().expect("lock").iter() {
        let before = last.insert(node.clone(), *id).unwrap_or(0);
        assert_eq!(*id, before + 1, "of {node}");
    }
    assert_eq!(last.len(), 2);
    let said = std::fs::read_to_string(lab.root.join("follower.log")).expect("log");
    assert!(said.contains("trying again"), "its connection broke: {said}");

    // Events after a position, and events of one tenant.
    let since = last.iter().map(|(node, id)| format!("{node}:{}", id - 2));
    let since = since.collect::<Vec<_>>().join(",");
    let late = lab.json(&["events", "--since", &since]);
    assert_eq!(late.as_array().expect("list").len(), 4, "{late}");
    assert_eq!(lab.json(&["events", "--tenant", "other"]), json!([]));
    lab.refused(&["events", "--since", "7"], "invalid_value");
    let bob = lab.mvm("hub", &["events", "-o", "json"]);
    let bob = { bob }.env("MVM_IDENTITY", lab.path("bob")).output().expect("mvm");
    let bob: Value = serde_json::from_slice(&bob.stdout).expect("JSON");
    assert_eq!(bob.as_array().expect("list").len(), seen.lock().expect("lock").len());
    // A tenant's operator who asks for another tenant's objects gets none, and not their own instead.
    let leads = |status: Value| status["leads"] == true;
    wait_for("it to lead again", || lab.coordinator_status("c1").is_some_and(leads));
    let job = lab.ok("hub", &["job", "submit", "ci/runners", "--", "echo", "queued"]);
    lab.ok("hub", &["job", "wait", job.trim()]);
    let of = |what: &[&str], tenant: &str| {
        let mut asked = lab.mvm("hub", &[what, &[tenant, "-o", "json"]].concat());
        let asked = asked.env("MVM_IDENTITY", lab.path("bob")).output().expect("mvm");
        let said = if asked.status.success() { asked.stdout } else { asked.stderr };
        serde_json::from_slice::<Value>(&said).expect("JSON")
    };
    for what in [["job", "list"], ["instance", "list"], ["lease", "list"]] {
        assert_eq!(of(&what, "web")["code"], "forbidden", "{what:?}");
    }
    for what in [["job", "list"], ["instance", "list"], ["events", "--tenant"]] {
        assert!(!of(&what, "ci").as_array().expect("a list").is_empty(), "{what:?}");
    }
    assert_eq!(of(&["events", "--tenant"], "web"), json!([]));
    follower.kill().expect("kill");
    follower.wait().expect("wait");
    reading.join().expect("read");
}
