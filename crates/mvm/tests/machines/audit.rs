//! The audit log: who did what, with its true outcome. Every change of the log is found.

use crate::lab::{Lab, text, wait_for};
use serde_json::Value;
use std::process::Stdio;

impl Lab {
    fn audit(&self, log: &str) -> Vec<Value> {
        self.json(&["audit", "list", log]).as_array().expect("list").clone()
    }
}

/// Returns the outcomes of acts with this verb on this target, in order; `begun` where there is no
/// outcome yet.
fn outcomes(records: &[Value], verb: &str, target: &str) -> Vec<String> {
    let begun = records.iter().filter(|r| r["outcome"].is_null());
    let acts = begun.filter(|r| r["verb"] == verb && (target.is_empty() || r["target"] == target));
    let outcome = |begun: &Value| {
        let end = records.iter().find(|r| r["of"] == begun["number"]);
        end.map_or("begun".to_owned(), |end| end["outcome"].as_str().expect("outcome").to_owned())
    };
    acts.map(outcome).collect()
}

#[test]
fn every_act_is_in_the_log_of_its_tenant_with_its_outcome_and_without_secrets() {
    let lab = Lab::new("audit");
    lab.tenant_and_pool("ci", "73");
    let vm = lab.start("ci/small");
    lab.ok(&["instance", "warm", &vm]);
    lab.ok(&["instance", "wake", &vm]);
    let secret = ["instance", "exec", &vm, "-e", "TOKEN=hush", "--", "echo", "--password=hush"];
    lab.ok(&secret);
    lab.ok(&["instance", "ssh", &vm, "--", "true"]);
    lab.refused(&["instance", "start", "ci/small/i-00000000"], "not_found");
    lab.ok(&["run", "ci/small", "--", "true"]);
    // The client goes away, but the act is completed.
    let pid = lab.process(&vm);
    let mut going = lab.mvm(&["instance", "stop", &vm]).stdout(Stdio::null()).spawn().expect("mvm");
    wait_for("the stop to begin", || {
        outcomes(&lab.audit("ci"), "instance.stop", &vm) == ["begun"] || lab.process(&vm) != pid
    });
    going.kill().expect("kill");
    going.wait().expect("wait");
    wait_for("its outcome", || outcomes(&lab.audit("ci"), "instance.stop", &vm) == ["ok"]);
    let records = lab.audit("ci");
    for (verb, target, wanted) in [
        ("pool.create", "ci", "ok"),
        ("pool.build", "ci/small", "ok"),
        ("instance.create", "ci/small", "ok"),
        ("instance.warm", &vm, "ok"),
        ("instance.wake", &vm, "ok"),
        ("session.exec", &vm, "ok"),
        ("session.connect", &vm, "ok"),
        ("instance.start", "ci/small/i-00000000", "not_found"),
        ("job.create", "ci/small", "ok"),
        ("job.run", "", "ok"),
    ] {
        assert_eq!(outcomes(&records, verb, target), [wanted], "{verb} {target}: {records:#?}");
    }
    assert_eq!(
        (&records[0]["verb"], &records[0]["actor"]),
        (&"tenant.create".into(), &"uid:0".into())
    );
    let of = |verb: &'static str| records.iter().filter(move |r| r["verb"] == verb);
    let made = of("instance.create").find(|r| r["outcome"] == "ok").expect("made");
    assert_eq!(made["target"], vm, "what it made");
    let run = of("session.exec").find(|r| r["program"] == "echo").expect("program");
    assert!(run["lease"].as_str().is_some_and(|lease| lease.starts_with("l-")), "{run}");
    let job = of("job.run").find(|r| r["outcome"] == "ok").expect("job");
    assert_eq!((&job["program"], &job["actor"]), (&"true".into(), &"uid:0".into()));
    let made = of("job.create").find(|r| r["outcome"] == "ok").expect("job");
    assert_eq!(made["job"], job["job"]);
    // The agent recycles the job's machine, under the same lease.
    wait_for("the job's lease to end", || {
        let records = lab.audit("ci");
        let ends = |r: &&Value| r["verb"] == "lease.end" && r["lease"] == job["lease"];
        let end: Vec<&Value> = records.iter().filter(ends).collect();
        end.len() == 2 && end[1]["outcome"] == "ok" && end[0]["actor"] == "agent"
    });
    let node = lab.audit("_node");
    assert_eq!(outcomes(&node, "tenant.create", ""), ["ok"]);
    let folder = lab.root.join("audit/ci");
    for file in std::fs::read_dir(folder).expect("log") {
        let log = std::fs::read_to_string(file.expect("file").path()).expect("text");
        assert!(!log.contains("hush") && !log.contains("TOKEN"), "{log}");
    }
    let metrics = lab.ok(&["metrics"]);
    assert!(metrics.contains("\nmvm_audit_records_total "), "{metrics}");
    lab.ok(&["pool", "destroy", "ci/small"]);
}

#[test]
fn a_log_outlives_its_agent_and_its_tenant_and_every_change_of_it_is_found() {
    let lab = Lab::new("chain");
    let create = ["tenant", "create", "ci", "--net-id", "74", "--subnet", "10.77.74.0/24"];
    lab.ok(&create);
    lab.ok(&["tenant", "update", "ci", "--max-running", "3"]);
    let head = |log: &str| {
        let rows = lab.json(&["audit", "verify", log]);
        rows[0]["head"].as_str().expect("digest").to_owned()
    };
    let kept = head("ci");
    lab.kill_agent();
    lab.ok(&["tenant", "update", "ci", "--max-running", "4"]);
    lab.ok(&["audit", "verify"]);
    lab.ok(&["audit", "verify", "ci", "--head", &kept]);
    lab.refused(&["audit", "verify", "--head", &kept], "usage");
    lab.refused(&["audit", "list", "nobody"], "not_found");
    // An exported copy, complete and incomplete.
    let copy = lab.root.join("copy.log");
    let copy_path = copy.to_str().expect("path");
    let whole = lab.ok(&["audit", "export", "ci"]);
    let lines: Vec<&str> = whole.lines().collect();
    let offline = |log: String, more: &[&str]| {
        std::fs::write(&copy, log).expect("copy");
        let output = lab.mvm(&[&["audit", "verify", "--file", copy_path], more].concat()).output();
        let output = output.expect("mvm");
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(offline(whole.clone(), &["--head", &kept]).0, Some(0));
    let listed = lab.json(&["audit", "list", "--file", copy_path]);
    assert_eq!(listed.as_array().map(Vec::len), Some(lines.len()));
    let edited = whole.replacen("uid:0", "uid:1", 1);
    let removed = [&lines[..1], &lines[2..]].concat().join("\n") + "\n";
    for (log, why) in [(edited, "line 1, record 1"), (removed, "line 2 holds record 3")] {
        let (status, words) = offline(log, &[]);
        assert_eq!(status, Some(1));
        assert!(words.contains("error[audit_broken]") && words.contains(why), "{words}");
    }
    let short = lines[..1].join("\n") + "\n";
    assert_eq!(offline(short.clone(), &[]).0, Some(0));
    let (status, words) = offline(short, &["--head", &kept]);
    assert_eq!(status, Some(1));
    assert!(words.contains("cut off at the end"), "{words}");
    // The agent's own log, edited while the agent runs.
    let file = lab.root.join("audit/ci/000000000001.log");
    std::fs::write(&file, whole.replacen("uid:0", "uid:1", 1)).expect("edit");
    lab.refused(&["audit", "verify", "ci"], "audit_broken");
    lab.refused(&["audit", "verify"], "audit_broken");
    std::fs::write(&file, &whole).expect("undo");
    // The tenant is destroyed, and its log stays.
    lab.ok(&["tenant", "destroy", "ci"]);
    let rows = lab.json(&["audit", "verify"]);
    let gone = rows[1]["log"].as_str().expect("log").to_owned();
    assert!(gone.starts_with("ci@"), "{rows}");
    let last = lab.audit(&gone).pop().expect("record");
    assert_eq!((&last["verb"], &last["outcome"]), (&"tenant.destroy".into(), &"ok".into()));
    lab.ok(&create);
    assert_eq!(lab.audit("ci").len(), 1, "a new one begins");
    lab.ok(&["tenant", "destroy", "ci"]);
}

#[test]
fn old_records_go_and_what_is_left_verifies_here_and_elsewhere() {
    let lab = Lab::new("prune");
    lab.ok(&["tenant", "create", "ci", "--net-id", "75", "--subnet", "10.77.75.0/24"]);
    for most in ["3", "4", "5"] {
        lab.ok(&["tenant", "update", "ci", "--max-running", most]);
    }
    let records = lab.audit("ci");
    let kept = |at: usize| records[at]["digest"].as_str().expect("digest").to_owned();
    // All records except the last two are pruned: the time of the second-to-last is the limit.
    let at = records[records.len() - 2]["at"].as_i64().expect("time");
    let moment = jiff::Timestamp::from_millisecond(at).expect("time").to_string();
    let older = records.iter().filter(|r| r["at"].as_i64() < Some(at)).count();
    assert!(older > 0);
    let prune = ["audit", "prune", "--before", &moment, "--tenant", "ci"];
    let done = lab.json(&prune);
    assert_eq!(done["logs"][0]["records"], older, "{done}");
    assert_eq!(done["logs"][0]["head"], records[older - 1]["digest"]);
    let rows = lab.json(&["audit", "verify", "ci"]);
    assert_eq!((&rows[0]["first"], &rows[0]["pruned_by"]), (&(older + 1).into(), &"uid:0".into()));
    let table = lab.ok(&["audit", "verify", "ci"]);
    assert!(table.contains(&format!("up to {older} by uid:0")), "{table}");
    lab.ok(&["audit", "verify", "ci", "--head", &kept(older - 1)]);
    lab.ok(&["audit", "verify", "ci", "--head", &kept(records.len() - 1)]);
    let asked = lab.audit("_node");
    assert_eq!(outcomes(&asked, "audit.prune", ""), ["ok"], "{asked:?}");
    let left = lab.audit("ci");
    let told = left.iter().find(|r| r["verb"] == "log.prune").expect("its record");
    assert_eq!((&told["pruned"]["count"], &told["actor"]), (&older.into(), &"uid:0".into()));
    // An exported copy: as it is, with its prune record changed, and without that record.
    let whole = lab.ok(&["audit", "export", "ci"]);
    let without: String = whole
        .lines()
        .take_while(|l| !l.contains("log.prune"))
        .map(|l| l.to_owned() + "\n")
        .collect();
    let changed = whole.replacen("\"count\":", "\"count\":1", 1);
    let copy = lab.root.join("copy.log");
    for (log, sound) in [(whole, true), (changed, false), (without, false)] {
        std::fs::write(&copy, log).expect("copy");
        for verb in ["verify", "list"] {
            let file = copy.to_str().expect("path");
            let tried = lab.mvm(&["audit", verb, "--file", file]).output().expect("mvm");
            assert_eq!(tried.status.success(), sound, "{verb}: {}", text(&tried.stderr));
        }
    }
    // The next agent continues the log and prunes again.
    lab.kill_agent();
    lab.ok(&["tenant", "update", "ci", "--max-running", "6"]);
    lab.ok(&["audit", "prune", "--before", "1s"]);
    lab.ok(&["audit", "verify"]);
    lab.refused(&["audit", "prune", "--before", "1d", "--tenant", "nobody"], "not_found");
    lab.refused(&["audit", "prune", "--before", "2999-01-01"], "invalid_value");
    lab.ok(&["tenant", "destroy", "ci"]);
}
