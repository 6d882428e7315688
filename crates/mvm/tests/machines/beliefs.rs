//! State that the agent relies on is taken away: the agent restores it or reports it.

use crate::lab::{Lab, is_gone, run, text};
use serde_json::Value;
use std::process::Command;

fn pid(lab: &Lab) -> u64 {
    lab.json(&["agent", "status"])["pid"].as_u64().expect("pid")
}

fn signal(name: &str, pid: u64) {
    run(Command::new("kill").args([name, &pid.to_string()]));
}

/// Returns doctor's check of the agent.
fn doctor(lab: &Lab) -> Value {
    let output = lab.mvm(&["doctor", "-o", "json"]).output().expect("mvm");
    let checks: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut checks = checks.as_array().expect("list").iter();
    checks.find(|check| check["name"] == "agent").expect("the agent").clone()
}

#[test]
fn a_socket_that_was_removed_is_made_anew() {
    let lab = Lab::simulated("deaf");
    lab.ok(&["tenant", "create", "a", "--net-id", "40", "--subnet", "10.77.40.0/24"]);
    let before = pid(&lab);
    let socket = lab.root.join("agent.sock");
    std::fs::remove_file(&socket).expect("removed");
    // A command that comes meanwhile waits, and starts no second agent.
    assert!(lab.ok(&["tenant", "list"]).contains("10.77.40.0/24"));
    assert_eq!(pid(&lab), before);
    assert!(lab.ok(&["metrics"]).contains("mvm_sockets_restored_total 1"));
    lab.ok(&["agent", "stop"]);
    assert!(is_gone(before) && !socket.exists());
}

#[test]
fn an_agent_that_was_stopped_is_told_and_ended() {
    let lab = Lab::simulated("stopped");
    lab.ok(&["tenant", "create", "a", "--net-id", "41", "--subnet", "10.77.41.0/24"]);
    for deaf in [false, true] {
        assert!(lab.ok(&["tenant", "list"]).contains("10.77.41.0/24"), "another takes over");
        let pid = pid(&lab);
        signal("-STOP", pid);
        if deaf {
            std::fs::remove_file(lab.root.join("agent.sock")).expect("removed");
        }
        let check = doctor(&lab);
        let detail = check["detail"].as_str().expect("detail");
        assert_eq!(check["status"], "mend", "{detail}");
        assert!(detail.contains(&format!("pid {pid}, does not answer")), "{detail}");
        let stop = lab.mvm(&["agent", "stop"]).output().expect("mvm");
        let words = text(&stop.stderr);
        assert!(stop.status.success() && is_gone(pid), "{words}");
        assert!(words.contains(&format!("process {pid}, does not answer")), "{words}");
        let rest = lab.ok(&["agent", "stop"]);
        assert!(rest.contains("no agent serves"), "{rest}");
    }
}

#[test]
fn a_resolver_that_comes_later_is_seen() {
    let lab = Lab::simulated("resolver");
    let names = lab.root.join("resolv.conf");
    std::fs::write(&names, "# nothing yet\n").expect("file");
    let mut agent = lab.agent_with_names(&names);
    let lacks_names = || {
        let status = lab.json(&["agent", "status"]);
        let lacks = status["shortfalls"].as_array().into_iter().flatten();
        lacks.into_iter().any(|lack| lack["code"] == "dns")
    };
    assert!(lacks_names());
    std::fs::write(&names, "nameserver 192.0.2.53\n").expect("file");
    assert!(!lacks_names());
    lab.ok(&["agent", "stop"]);
    agent.wait().expect("agent");
}

#[test]
fn walls_and_links_that_went_while_no_agent_ran_are_told() {
    let lab = Lab::simulated("unwatched");
    lab.tenant_and_pool("a", "44");
    lab.start("a/small");
    let bridge = lab.links().into_iter().find(|link| link.ends_with("-b44")).expect("a bridge");
    lab.kill_agent();
    assert!(lab.ok(&["metrics"]).contains("mvm_walls_restored_total 0"), "nothing was gone");
    lab.kill_agent();
    let within = |words: &str| {
        run(Command::new("ip").args(["netns", "exec", &lab.netns]).args(words.split(' ')));
    };
    within("nft flush ruleset");
    within(&format!("ip link set {bridge} down"));
    let metrics = lab.ok(&["metrics"]);
    assert!(metrics.contains("mvm_walls_restored_total 1"), "{metrics}");
    assert!(metrics.contains("mvm_links_restored_total{kind=\"link\"} 1"), "{metrics}");
    let events = lab.ok(&["events"]);
    for said in ["all tables are gone", "it is down"] {
        assert_eq!(events.matches(said).count(), 1, "{said}: {events}");
    }
    assert!(lab.json(&["net", "verify"])["differences"].as_array().expect("list").is_empty());
}
