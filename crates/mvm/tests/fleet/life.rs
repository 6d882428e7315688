//! The life of a fleet: from its document to a node that dies and comes back.

use crate::lab::{Engine, Lab, wait_for};
use serde_json::json;

#[test]
fn a_fleet_lives_on_sqlite() {
    life("fleet-sqlite", Engine::Sqlite);
}

#[test]
fn a_fleet_lives_on_etcd() {
    life("fleet-etcd", Engine::Etcd(1));
}

fn life(name: &str, engine: Engine) {
    let mut lab = Lab::new(name, engine);
    lab.coordinator("c1");
    lab.nodes(&["n1", "n2", "n3"]);
    let spread = json!({ "spread": { "key": "node" } });
    lab.apply(&json!({ "warm": 3, "sleeping": 3 }), &spread, true);
    for node in ["n1", "n2", "n3"] {
        assert_eq!(lab.held(node), json!([1, 1, 0]), "{node}");
    }
    let received = lab.lines_with("received an image");
    assert_eq!(received.lines().count(), 2, "one builds for all: {received}");
    let instances = lab.json(&["fleet", "instances", "ci/runners"]);
    assert_eq!(instances.as_array().expect("list").len(), 6);

    // A lower quota: the counts are right already, and the command waits for the quota all the
    // same.
    lab.max_running = 12;
    lab.apply(&json!({ "warm": 3, "sleeping": 3 }), &spread, true);
    let parts = ["n1", "n2", "n3"].map(|node| {
        let tenant = lab.locally(node, &["tenant", "info", "ci", "-o", "json"]);
        let tenant: serde_json::Value = serde_json::from_str(&tenant).expect("JSON");
        tenant["quotas"]["max_running"].as_u64().expect("a number")
    });
    assert_eq!(parts.iter().sum::<u64>(), 12, "{parts:?}");

    // Claims through the coordinator, and the commands that work on an instance wherever it is.
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "hello"]), "hello\n");
    wait_for("the spare to be made up for", || lab.converged());
    let warm = |i: &&serde_json::Value| i["state"] == "sleeping";
    let vm = lab.json(&["instance", "list", "ci/runners"]);
    let vm = vm.as_array().expect("list").iter().find(warm).expect("a sleeper").clone();
    let vm = vm["reference"].as_str().expect("reference").to_owned();
    lab.ok("hub", &["instance", "wake", &vm]);
    assert_eq!(lab.ok("hub", &["instance", "exec", &vm, "--", "echo", "there"]), "there\n");
    let id = vm.rsplit('/').next().expect("id");
    let wake = ["coordinator", "wake", "--tenant", "ci", "--pool", "runners", "--instance", id];
    lab.ok("hub", &wake);
    lab.ok("hub", &["instance", "destroy", &vm]);
    lab.refused(&["instance", "info", &vm], "not_found");

    // A job goes on while its node is drained, and is listed there afterwards.
    let job = ["job", "submit", "ci/runners", "--", "sh", "-c", "sleep 8; echo done"];
    let job = lab.ok("hub", &job).trim().to_owned();
    let mut busy = String::new();
    wait_for("the job", || {
        let nodes = ["n1", "n2", "n3"];
        let found = nodes.into_iter().find(|node| lab.held(node)[2] == 1);
        busy = found.unwrap_or_default().to_owned();
        !busy.is_empty()
    });
    lab.ok("hub", &["fleet", "drain", &busy, "--wait", "100"]);
    assert_eq!(lab.json(&["job", "info", &job])["state"], "succeeded");
    wait_for("the others to make up for it", || lab.converged());
    assert_eq!(lab.held(&busy), json!([0, 0, 0]));
    assert_eq!(lab.ok("hub", &["job", "logs", &job]), "done\n");
    lab.ok("hub", &["fleet", "uncordon", &busy]);
    wait_for("the spread", || lab.held(&busy) == json!([1, 1, 0]) && lab.converged());

    // A node dies: at first its share is kept for it, then other nodes replace it.
    lab.kill("n2");
    wait_for("the loss to be seen", || !lab.alive("n2"));
    wait_for("the others to make up for it", || lab.converged());
    let together = |lab: &Lab| (lab.held("n1"), lab.held("n3"));
    let (one, other) = together(&lab);
    let sum = |at: usize| one[at].as_u64().expect("n") + other[at].as_u64().expect("n");
    assert_eq!((sum(0), sum(1)), (3, 3), "{one} {other}");
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "on"]), "on\n");
    // The node comes back with its instances, and gets its share of the spread.
    lab.node("n2");
    wait_for("it to come back", || lab.alive("n2"));
    wait_for("the spread", || lab.held("n2") == json!([1, 1, 0]) && lab.converged());
}
