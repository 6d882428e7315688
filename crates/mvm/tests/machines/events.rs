//! Events: transitions in order, with cause and duration.

use crate::lab::{Lab, text};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

#[test]
fn transitions_are_told_to_those_who_ask_and_those_who_follow() {
    let lab = Lab::new("events");
    lab.tenant_and_pool("ci", "72");
    let mut follower = lab.mvm(&["events", "-f", "--tenant", "ci", "-o", "json"]);
    let mut follower = follower.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("mvm");
    let mut lines = BufReader::new(follower.stdout.take().expect("stdout")).lines();
    let mut next = || -> serde_json::Value {
        serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON")
    };
    // Skips the events of the build's template.
    let mut last = next();
    while last["to"] != "destroyed" {
        assert_eq!(last["cause"], "template", "{last}");
        last = next();
    }
    let vm = lab.start("ci/small");
    for verb in ["warm", "sleep", "wake", "stop"] {
        lab.ok(&["instance", verb, &vm]);
    }
    lab.kill_agent();
    lab.ok(&["instance", "destroy", &vm]);
    let all = lab.json(&["events", "--since", &last["id"].to_string()]);
    let told: Vec<&str> =
        all.as_array().expect("list").iter().map(|e| e["to"].as_str().expect("to")).collect();
    // A running machine is stopped directly.
    assert_eq!(told, ["created", "running", "warm", "sleeping", "running", "stopped", "destroyed"]);
    let mut id = last["id"].as_u64().expect("id");
    for event in all.as_array().expect("list") {
        id += 1;
        assert_eq!(event["id"], id, "none is missing, over two agents");
        assert_eq!(event["instance"], vm);
    }
    assert!(
        all[1]["took_ms"].as_u64().is_some()
            && all[1]["cause"].as_str().expect("cause").starts_with("lease of uid:")
    );
    // The follower got the same events, across two agents.
    for wanted in all.as_array().expect("list") {
        assert_eq!(&next(), wanted);
    }
    follower.kill().expect("kill");
    follower.wait().expect("wait");
    let vm = lab.start("ci/small");
    let metrics = text(&lab.mvm(&["metrics"]).output().expect("mvm").stdout);
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    for line in [
        "# TYPE mvm_transition_seconds histogram",
        "mvm_transition_seconds_count{from=\"created\",to=\"running\"} 1",
        "# TYPE mvm_stage_seconds histogram",
        "mvm_stage_seconds_count{operation=\"clone\",stage=\"adopt\"} 1",
        "mvm_stage_seconds_count{operation=\"clone\",stage=\"spawn\"} 1",
        "mvm_stage_seconds_count{operation=\"clone\",stage=\"all\"} 1",
        "mvm_instances{tenant=\"ci\",pool=\"small\",state=\"running\"} 1",
        "mvm_leases{tenant=\"ci\",pool=\"small\",purpose=\"manual\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    lab.ok(&["instance", "destroy", &vm]);
}
