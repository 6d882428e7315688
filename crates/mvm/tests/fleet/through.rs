//! Commands that work on a node also work through its coordinator, over TLS.

use crate::lab::{Engine, Lab, address, run, text, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

/// Asks the coordinator with curl. Returns the headers and the document.
fn curl(lab: &Lab, path: &str, more: &[&str]) -> (String, Value) {
    let at = format!("mvm.internal:443:{}:4433", address("c1"));
    let alice = |file: &str| lab.path(&format!("alice/{file}"));
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &lab.netns("hub"), "curl", "--silent", "--show-error"]);
    command.args(["--connect-to", &at, "--cacert", &alice("ca.pem"), "--dump-header", "-"]);
    command.args(["--cert", &alice("identity.pem")]).args(more);
    let output = run(command.arg(format!("https://mvm.internal{path}")));
    let answer = text(&output.stdout);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), serde_json::from_str(body).expect("JSON"))
}

#[test]
fn everything_goes_through_the_coordinator() {
    let mut lab = Lab::new("fleet-through", Engine::Sqlite);
    lab.coordinator("c1");
    lab.nodes(&["n1", "n2", "n3"]);
    let spread = json!({ "spread": { "key": "node" } });
    lab.apply(&json!({ "warm": 3, "sleeping": 3 }), &spread, true);
    sessions_and_logs(&lab);
    jobs(&lab);
    lists_in_pages(&lab);
    a_key_makes_one_job(&mut lab);
}

fn sessions_and_logs(lab: &Lab) {
    let all = lab.json(&["instance", "list", "ci/runners"]);
    let mut nodes = std::collections::BTreeSet::new();
    for one in all.as_array().expect("list").iter().filter(|one| one["state"] == "warm") {
        let vm = one["reference"].as_str().expect("a reference");
        nodes.insert(one["node_id"].as_str().expect("a node").to_owned());
        let mut exec = lab.mvm("hub", &["instance", "exec", vm, "-i", "--", "sh", "-c", "cat"]);
        exec.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut exec = exec.spawn().expect("mvm");
        exec.stdin.take().expect("stdin").write_all(b"through").expect("write");
        let output = exec.wait_with_output().expect("wait");
        assert_eq!(text(&output.stdout), "through", "{}", text(&output.stderr));
        let failed = lab.mvm("hub", &["instance", "exec", vm, "--", "sh", "-c", "exit 3"]);
        assert_eq!({ failed }.output().expect("mvm").status.code(), Some(3));
        assert!(lab.ok("hub", &["instance", "logs", vm]).contains("simulated machine"));
        lab.ok("hub", &["lease", "release", vm]);
    }
    assert_eq!(nodes.len(), 3, "one on each node: {all}");
}

fn jobs(lab: &Lab) {
    let input = lab.root.join("input");
    std::fs::write(&input, "from outside").expect("input");
    let input = input.display().to_string();
    let submit = ["job", "submit", "ci/runners", "--in", &input, "--artifact", "/work/result"];
    let work = ["--", "sh", "-c", "echo begun; sleep 3; cat input > result; echo ended"];
    let job = lab.ok("hub", &[&submit[..], &work].concat()).trim().to_owned();
    // The log is followed while it is written.
    let mut logs = lab.mvm("hub", &["job", "logs", "-f", &job]);
    let mut logs = logs.stdout(Stdio::piped()).spawn().expect("mvm");
    let mut out = BufReader::new(logs.stdout.take().expect("stdout"));
    let mut line = String::new();
    out.read_line(&mut line).expect("read");
    assert_eq!(line, "begun\n");
    let state = lab.json(&["job", "info", &job])["state"].clone();
    assert_ne!(state, "succeeded", "it is told while it runs");
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "ended\n");
    assert!(logs.wait().expect("wait").success());
    lab.ok("hub", &["job", "wait", &job]);
    assert_eq!(lab.ok("hub", &["job", "logs", &job]), "begun\nended\n");
    let target = lab.path("artifacts");
    lab.ok("hub", &["job", "artifacts", &job, &target]);
    let result = std::fs::read_to_string(format!("{target}/result")).expect("an artifact");
    assert_eq!(result, "from outside");
}

/// Whatever the limit, the pages together are the whole list.
fn lists_in_pages(lab: &Lab) {
    wait_for("the spares to be made up for", || lab.converged());
    for _ in 0..4 {
        let job = lab.ok("hub", &["job", "submit", "ci/runners", "--", "true"]);
        lab.ok("hub", &["job", "wait", job.trim()]);
    }
    wait_for("the spares to be made up for", || lab.converged());
    for list in ["/v1/instances", "/v1/tenants/ci/pools/runners/instances", "/v1/jobs", "/v1/nodes"]
    {
        let (head, whole) = curl(lab, list, &[]);
        assert_eq!(next(&head), None);
        let whole = whole.as_array().expect("list").clone();
        assert!(whole.len() >= 3, "{list}: {whole:?}");
        let key = |item: &Value| {
            let names = ["instance_id", "job_id", "node_id"];
            names.iter().find_map(|name| item[name].as_str()).expect("a name").to_owned()
        };
        for limit in [1, 2, 3, 4, 100] {
            let (mut pages, mut at) = (Vec::new(), Some(format!("{list}?limit={limit}")));
            while let Some(path) = at {
                let (head, page) = curl(lab, &path, &[]);
                let page = page.as_array().expect("list").clone();
                at = next(&head);
                assert!(page.len() == limit || at.is_none() && page.len() < limit, "{path}");
                pages.extend(page);
            }
            let keys = |items: &[Value]| items.iter().map(key).collect::<Vec<_>>();
            assert_eq!(keys(&pages), keys(&whole), "{list} by {limit}");
        }
    }
    let (_, refused) = curl(lab, "/v1/instances?after=!", &[]);
    assert_eq!(refused["code"], "invalid_value");
}

/// Returns the path of the next page.
fn next(head: &str) -> Option<String> {
    let link = head.lines().find_map(|line| line.strip_prefix("link: <"))?;
    let (path, rel) = link.split_once('>').expect("a link");
    assert_eq!(rel, "; rel=\"next\"");
    Some(path.to_owned())
}

/// The same key returns the same job, even if another node would be chosen now, and after a restart
/// of the coordinator.
fn a_key_makes_one_job(lab: &mut Lab) {
    let path = "/v1/tenants/ci/pools/runners/jobs";
    let make = |lab: &Lab, key: &str, command: &str| {
        let body = json!({ "spec": { "argv": [command] } }).to_string();
        let key = format!("Idempotency-Key: {key}");
        let kind = "Content-Type: application/json";
        curl(lab, path, &["--header", &key, "--header", kind, "--data", &body])
    };
    let before = lab.json(&["job", "list"]).as_array().expect("list").len();
    let (_, first) = make(lab, "k1", "true");
    let job = first["job_id"].as_str().expect("a job").to_owned();
    for round in 0..3 {
        let (head, again) = make(lab, "k1", "true");
        assert_eq!(again["job_id"], job, "{round}: {head}");
        assert!(head.contains("idempotency-replayed: true"), "{head}");
        if round == 0 {
            // The node that has the job is busier than the others now.
            lab.ok("hub", &["job", "wait", &job]);
            lab.ok("hub", &["run", "ci/runners", "--", "true"]);
        } else {
            lab.kill("c1");
            lab.coordinator("c1");
            wait_for("the nodes", || ["n1", "n2", "n3"].iter().all(|node| lab.alive(node)));
            wait_for("it to lead", || lab.json(&["coordinator", "status"])["leads"] == true);
        }
    }
    assert_eq!(make(lab, "k1", "false").1["code"], "idempotency_key_reused");
    // `run` through a coordinator is a claim, and makes no job.
    assert_eq!(lab.json(&["job", "list"]).as_array().expect("list").len(), before + 1);
    let (_, other) = make(lab, "k2", "true");
    assert_ne!(other["job_id"], job);
}
