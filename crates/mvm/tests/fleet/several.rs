//! Clients that know several coordinators: when one dies, they continue at another one.

use crate::lab::{Engine, Lab, address, text, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

fn fleet_of_two(name: &str, ttl: &'static str, max_running: u32) -> Lab {
    let mut lab = Lab::new(name, Engine::Etcd(1));
    (lab.ttl, lab.max_running) = (ttl, max_running);
    lab.coordinator("c1");
    lab.coordinator("c2");
    // The first coordinator does not sign certificates, so the joining node asks the next one.
    lab.front = "c2,c1".to_owned();
    lab.nodes(&["n1"]);
    lab.front = "c1,c2".to_owned();
    lab.apply(&json!({ "warm": 2 }), &json!({}), true);
    lab
}

/// Returns whether this coordinator says that it leads.
fn leads(lab: &Lab, name: &str) -> bool {
    lab.coordinator_status(name).is_some_and(|status| status["leads"] == true)
}

fn ids(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["id"].as_u64().expect("a number")).collect()
}

/// Starts a follower of all events. Returns its process, and the events that it has got.
fn follower(lab: &Lab) -> (Child, Arc<Mutex<Vec<u64>>>) {
    let mut follower = lab.mvm("hub", &["events", "-f", "-o", "json"]);
    let mut child = follower.stdout(Stdio::piped()).spawn().expect("mvm");
    let out = BufReader::new(child.stdout.take().expect("stdout"));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let into = heard.clone();
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            let event: Value = serde_json::from_str(&line).expect("JSON");
            into.lock().expect("lock").extend(ids(&[event]));
        }
    });
    (child, heard)
}

/// Requests for the authority go to the coordinator that has it.
fn one_signs(lab: &mut Lab) {
    lab.front = "c2".to_owned();
    lab.refused(&["node", "list"], "not_a_signer");
    lab.front = "c2,c1".to_owned();
    assert!(lab.ok("hub", &["node", "list"]).contains("n1"));
    lab.front = "c1,c2".to_owned();
}

#[test]
fn who_knows_two_coordinators_goes_on_when_one_dies() {
    let mut lab = fleet_of_two("fleet-several", "3s", 60);
    one_signs(&mut lab);
    let (mut following, heard) = follower(&lab);
    let all_heard = |lab: &Lab| {
        let all = lab.json(&["events"]);
        let all = ids(all.as_array().expect("a list"));
        !all.is_empty() && *heard.lock().expect("lock") == all
    };
    wait_for("all to be heard", || all_heard(&lab));
    let before = heard.lock().expect("lock").len();
    lab.kill("c1");
    // The other coordinator answers reads at once.
    assert_eq!(lab.json(&["fleet", "status"])["fleet_id"], "lab");
    wait_for("the other to lead", || leads(&lab, "c2"));
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "on"]), "on\n");
    wait_for("the spare to be made up for", || lab.converged());
    wait_for("all to be heard", || all_heard(&lab));
    assert!(heard.lock().expect("lock").len() > before);
    following.kill().expect("kill");
    following.wait().expect("wait");
    // A malformed list is wrong usage, and nothing is asked.
    let mut wrong = lab.mvm("hub", &["fleet", "status"]);
    wrong.env("MVM_COORDINATOR", format!("{}:4433,,c2", address("c2")));
    let wrong = wrong.output().expect("mvm");
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
    assert!(text(&wrong.stderr).contains("empty member"), "{}", text(&wrong.stderr));
}

#[test]
fn a_coordinator_that_is_asked_to_end_makes_place_at_once() {
    // No leader is elected by this timeout: the next one follows because the first has resigned.
    let mut lab = fleet_of_two("fleet-resign", "600s", 1);
    assert!(leads(&lab, "c1"), "the first one leads");
    let words = ["run", "-i", "ci/runners", "--", "sh", "-c", "echo begun; cat; echo ended"];
    let mut running = lab.mvm("hub", &words);
    running.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = running.spawn().expect("mvm");
    let mut stdin = running.stdin.take().expect("stdin");
    let mut out = BufReader::new(running.stdout.take().expect("stdout"));
    let mut line = String::new();
    out.read_line(&mut line).expect("read");
    assert_eq!(line, "begun\n");
    // The quota is used up, so this client waits, and asks again at the next leader.
    let mut waiting = lab.mvm("hub", &["run", "-i", "ci/runners", "--", "echo", "waited"]);
    let waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mvm");
    wait_for("the claim", || lab.json(&["fleet", "status"])["claims_waiting"] == 1);
    lab.ask_to_end("c1");
    wait_for("the other to lead", || leads(&lab, "c2"));
    // The session still goes through the first coordinator, which accepts no new requests.
    assert!(lab.coordinator_status("c1").is_none(), "it takes no request");
    stdin.write_all(b"through\n").expect("write");
    drop(stdin);
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("read");
    let output = running.wait_with_output().expect("wait");
    assert_eq!(rest, "through\nended\n", "{}", text(&output.stderr));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = waiting.wait_with_output().expect("wait");
    assert_eq!(text(&output.stdout), "waited\n", "{}", text(&output.stderr));
    lab.end("c1");
    assert_eq!(lab.lines_with("is cut off"), "");
    assert_eq!(
        lab.lines_with("nobody came back"),
        "",
        "the first one is given back at the next leader"
    );
    assert_eq!(lab.ok("hub", &["run", "ci/runners", "--", "echo", "on"]), "on\n");
    wait_for("the spares to be made up for", || lab.converged());
}

#[test]
fn who_asks_while_nobody_leads_waits_for_the_next_leader() {
    let mut lab = fleet_of_two("fleet-patience", "10s", 60);
    assert!(leads(&lab, "c1"), "the first one leads");
    // The follower cannot reach the leader, which the store still names.
    lab.front = "c2".to_owned();
    lab.kill("c1");
    let begin = |words: &[&str]| {
        let mut command = lab.mvm("hub", words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mvm")
    };
    let run = begin(&["run", "ci/runners", "--", "echo", "ran"]);
    let submit = begin(&["job", "submit", "ci/runners", "--", "echo", "queued"]);
    let uncordon = begin(&["fleet", "uncordon", "n1"]);
    // Without patience, the client gets the right error at once.
    lab.refused(&["run", "ci/runners", "--", "true"], "no_leader");
    let ended = |what: &str, child: Child| {
        let output = child.wait_with_output().expect("mvm");
        let said = text(&output.stderr);
        assert!(output.status.success(), "{what}: {said}");
        assert!(said.contains("trying again for "), "{what} says what it waits for: {said}");
        text(&output.stdout)
    };
    let job = ended("job submit", submit).trim().to_owned();
    ended("fleet uncordon", uncordon);
    assert_eq!(ended("run", run), "ran\n");
    lab.ok("hub", &["job", "wait", &job]);
    let jobs = lab.json(&["job", "list"]);
    assert_eq!(jobs.as_array().expect("list").len(), 1, "it was made once: {jobs}");
}

#[test]
fn a_command_goes_on_when_the_coordinator_that_it_goes_through_dies() {
    let mut lab = fleet_of_two("fleet-sessions", "3s", 60);
    assert!(leads(&lab, "c1"), "the first one leads");
    // First the follower dies, which leaves the claim with the leader; then the leader itself.
    for (front, dies) in [("c2,c1", "c2"), ("c1,c2", "c1")] {
        lab.front = front.to_owned();
        let script = "echo begun; sleep 3; echo ended > end; cat end; exit 7";
        let mut run = lab.mvm("hub", &["run", "ci/runners", "--", "sh", "-c", script]);
        let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut run = run.expect("mvm");
        let mut out = BufReader::new(run.stdout.take().expect("stdout"));
        let mut line = String::new();
        out.read_line(&mut line).expect("read");
        assert_eq!(line, "begun\n");
        lab.kill(dies);
        let mut rest = String::new();
        out.read_to_string(&mut rest).expect("read");
        let output = run.wait_with_output().expect("wait");
        let said = text(&output.stderr);
        assert_eq!((&*rest, output.status.code()), ("ended\n", Some(7)), "{dies} dies: {said}");
        lab.coordinator(dies);
    }
    wait_for("the leases to end", || {
        lab.json(&["lease", "list"]).as_array().expect("list").is_empty()
    });
}
