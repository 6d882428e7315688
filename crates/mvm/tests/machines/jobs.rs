//! `mvm run`.

use crate::lab::{Lab, text, wait_for};
use serde_json::Value;
use std::process::{Command, Stdio};

#[test]
fn a_job_gets_a_machine_of_its_own_and_leaves_nothing() {
    let lab = Lab::new("run");
    lab.tenant_and_pool("ci", "21");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "1", "--sleeping", "1", "--wait"]);
    // Returns the ids of the instances for which `holds` is true.
    let ids = |lab: &Lab, holds: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let all = lab.json(&["instance", "list", "ci/small"]);
        let all = all.as_array().expect("list").iter().filter(|i| holds(i));
        all.map(|i| i["instance_id"].as_str().expect("id").to_owned()).collect()
    };
    // The first job gets the warm instance.
    let mut used = ids(&lab, &|i| i["state"] == "warm");
    assert_eq!(used.len(), 1);
    std::fs::write(lab.root.join("input"), "from outside").expect("input");
    let input = lab.root.join("input");
    let out = lab.root.join("out");
    let back = format!("/work/result:{}", out.display());
    let input = input.to_str().expect("path");
    let job = [
        "run",
        "ci/small",
        "--in",
        input,
        "--out",
        &back,
        "--",
        "sh",
        "-c",
        "cat input > result; echo said; exit 7",
    ];
    let output = lab.mvm(&job).output().expect("mvm");
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "said\n");
    assert_eq!(std::fs::read_to_string(out.join("result")).expect("result"), "from outside");
    let timed =
        lab.mvm(&["run", "ci/small", "--timeout", "1", "--", "sleep", "60"]).output().expect("mvm");
    assert_eq!(timed.status.code(), Some(124));
    // A client that is killed gives its machine back as well.
    let mut killed = lab.mvm(&["run", "ci/small", "--", "sleep", "60"]).spawn().expect("mvm");
    wait_for("a lease", || {
        let leased = ids(&lab, &|i| !i["lease"].is_null());
        used.extend(leased.iter().cloned());
        !leased.is_empty()
    });
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    wait_for("the pool to be as before", || {
        let pool = lab.json(&["pool", "info", "ci/small"]);
        pool["leased"] == 0 && pool["ready_counts"] == pool["desired_counts"]
    });
    // The used machines are destroyed while the pool is refilled.
    wait_for("the used machines to be gone", || {
        ids(&lab, &|_| true).iter().all(|id| !used.contains(id)) && lab.machines() == 1
    });
    lab.ok(&["pool", "destroy", "ci/small"]);
    lab.ok(&["tenant", "destroy", "ci"]);
    assert_eq!(lab.machines(), 0);
    assert_eq!(lab.links(), [""; 0]);
}

fn leased_now(lab: &Lab) -> Option<u64> {
    lab.json(&["pool", "info", "ci/small"])["leased"].as_u64()
}

#[test]
fn an_interrupted_job_ends_with_its_machine() {
    let lab = Lab::new("int");
    lab.tenant_and_pool("ci", "22");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "1", "--wait"]);
    for (signal, expected) in [("-INT", 130), ("-TERM", 143)] {
        let leased = || leased_now(&lab);
        let script = "echo begun; exec sleep 600";
        let mut job = lab
            .mvm(&["run", "ci/small", "--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("mvm");
        let mut begun = [0; 6];
        std::io::Read::read_exact(job.stdout.as_mut().expect("stdout"), &mut begun).expect("begun");
        assert_eq!(leased(), Some(1));
        let pid = job.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
        assert_eq!(job.wait().expect("wait").code(), Some(expected));
        wait_for("the machine to be given back", || leased() == Some(0));
    }
    // If the reader of its output has gone, a job ends like a local program: `mvm run … -- yes |
    // head -1`.
    let mut endless = lab.mvm(&["run", "ci/small", "--", "yes"]);
    let mut endless = endless.stdout(Stdio::piped()).spawn().expect("mvm");
    let mut line = [0; 2];
    let mut reader = endless.stdout.take().expect("stdout");
    std::io::Read::read_exact(&mut reader, &mut line).expect("a line");
    drop(reader);
    assert_eq!(endless.wait().expect("wait").code(), Some(141));
    wait_for("the machine to be given back", || leased_now(&lab) == Some(0));
    lab.ok(&["pool", "destroy", "ci/small"]);
    assert_eq!(lab.machines(), 0);
}
