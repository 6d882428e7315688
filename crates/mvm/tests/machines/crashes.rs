//! The agent or a machine is killed at any moment.

use crate::lab::{Lab, run, text, wait_for};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Starts `verb`, kills the agent after `delay` ms, and returns the state that the next agent
/// finds.
fn cut(lab: &Lab, verb: &str, vm: &str, delay: u64) -> Option<String> {
    let mut begun = lab
        .mvm(&["instance", verb, vm])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("mvm");
    std::thread::sleep(Duration::from_millis(delay));
    lab.kill_agent();
    begun.wait().expect("wait");
    let info = lab.mvm(&["instance", "info", vm, "-o", "json"]).output().expect("mvm");
    if !info.status.success() {
        assert!(text(&info.stderr).contains("not_found"), "{}", text(&info.stderr));
        return None;
    }
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("JSON");
    let state = info["state"].as_str().expect("state").to_owned();
    let alive = usize::from(["running", "warm"].contains(&state.as_str()));
    if state == "sleeping" {
        // If the agent was killed before the command reached it, the next agent has put the machine
        // to sleep, and keeps the process for a while. The agent after that ends it.
        lab.kill_agent();
        assert_eq!(lab.state(vm), state);
    }
    // The process of a machine that went to sleep may still be ending: its record comes first.
    wait_for(
        &format!("the process of one that is {state}, {verb} cut off after {delay} ms"),
        || lab.machines() == alive,
    );
    assert!(info["going_to"].is_null(), "{info}");
    Some(state)
}

#[test]
fn a_killed_agent_loses_no_machine_whatever_it_did() {
    let lab = Lab::new("kill");
    lab.tenant_and_pool("ci", "80");
    let vm = lab.start("ci/small");
    lab.start_counter(&vm);
    let mut count = lab.count(&vm);
    for delay in [0, 3, 10, 25, 60, 150] {
        for (verb, before, after) in [
            ("sleep", "running", "sleeping"),
            ("wake", "sleeping", "running"),
            ("warm", "running", "warm"),
        ] {
            let state = cut(&lab, verb, &vm, delay).expect("it is still there");
            assert!([before, after].contains(&state.as_str()), "{verb} after {delay} ms: {state}");
            if state == before {
                lab.ok(&["instance", verb, &vm]);
            }
            assert_eq!(lab.state(&vm), after);
        }
        lab.ok(&["instance", "wake", &vm]);
        let now = lab.count(&vm);
        assert!(now >= count, "the very same machine goes on");
        count = now;
    }
    for delay in [0, 10, 100] {
        let state = cut(&lab, "stop", &vm, delay).expect("it is still there");
        assert!(["running", "stopped"].contains(&state.as_str()), "{state}");
        lab.ok(&["instance", "stop", &vm]);
        let state = cut(&lab, "start", &vm, 30 * delay).expect("it is still there");
        assert!(["stopped", "running"].contains(&state.as_str()), "{state}");
        lab.ok(&["instance", "start", &vm]);
    }
    let mut vm = vm;
    for delay in [0, 5, 30] {
        if cut(&lab, "destroy", &vm, delay).is_some() {
            lab.ok(&["instance", "destroy", &vm]);
        }
        assert_eq!(lab.machines(), 0);
        let left = std::fs::read_dir(lab.root.join("instances")).expect("instances").count();
        assert_eq!(left, 0, "no file is left");
        vm = lab.start("ci/small");
    }
    lab.ok(&["pool", "destroy", "ci/small"]);
    lab.ok(&["tenant", "destroy", "ci"]);
    assert_eq!((lab.machines(), lab.links()), (0, Vec::new()));
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    assert!(!mounts.contains(lab.root.to_str().expect("path")), "{mounts}");
}

#[test]
fn a_machine_that_dies_is_told_with_its_consoles_last_lines() {
    let lab = Lab::new("died");
    lab.tenant_and_pool("ci", "81");
    // A stopped machine is booted, whereas a new one would be a clone.
    let vm = lab.start("ci/small");
    lab.ok(&["instance", "stop", &vm]);
    // A disk that cannot be mounted: the guest says so and ends.
    let id = vm.rsplit('/').next().expect("an id");
    let disk = lab.root.join("instances").join(id).join("scratch.raw");
    let aside = lab.root.join("scratch.aside");
    std::fs::rename(&disk, &aside).expect("put aside");
    std::fs::write(&disk, vec![0; 1 << 20]).expect("an empty disk");
    let output = lab.mvm(&["instance", "start", &vm]).output().expect("mvm");
    let words = text(&output.stderr);
    assert!(!output.status.success());
    let said = "mvm-guest: cannot assemble the root file system";
    for part in ["error[machine_died]", "last lines of its console", said] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // The console is shown once, and no line of the guest can be mistaken for one of mvm's.
    assert_eq!(words.matches(said).count(), 1, "{words}");
    let ours = |line: &str| {
        ["error[machine_died]", "  | ", "  request ", "  hint"].iter().any(|b| line.starts_with(b))
    };
    assert!(words.lines().all(ours), "{words}");
    assert_eq!(lab.state(&vm), "failed");
    std::fs::rename(&aside, &disk).expect("put back");
    // Killed while it boots.
    let boot = lab.mvm(&["instance", "start", &vm]).stderr(Stdio::piped()).spawn().expect("mvm");
    wait_for("the process", || lab.machines() == 1);
    let kill = || run(Command::new("kill").args(["-9", &lab.process(&vm)]));
    kill();
    let output = boot.wait_with_output().expect("wait");
    assert!(!output.status.success());
    let words = text(&output.stderr);
    let codes = ["error[died_at_boot]", "error[machine_died]"];
    assert!(codes.iter().any(|code| words.contains(code)) && words.contains("SIGKILL"), "{words}");
    assert_eq!(lab.state(&vm), "failed");
    lab.ok(&["instance", "start", &vm]);
    kill();
    wait_for("the agent to see it", || lab.state(&vm) == "failed");
    lab.refused(&["instance", "exec", &vm, "--", "true"], "wrong_state");
    lab.ok(&["instance", "start", &vm]);
    assert_eq!(lab.exec(&vm, "echo again").trim(), "again");
}

#[test]
fn an_agent_killed_during_jobs_leaves_the_pool_as_it_was() {
    let lab = Lab::new("jobs");
    lab.tenant_and_pool("ci", "82");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "1", "--sleeping", "1", "--wait"]);
    for (turn, delay) in [0, 5, 15, 40, 80, 150, 250, 400, 700, 1100].into_iter().enumerate() {
        let job = ["run", "ci/small", "--", "sh", "-c", "sleep 0.2"];
        let mut job = lab.mvm(&job);
        let mut job = job.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("mvm");
        std::thread::sleep(Duration::from_millis(delay));
        lab.kill_agent();
        // Either another command starts the next agent, or the job itself does, which takes two
        // seconds.
        if turn % 3 > 0 {
            lab.json(&["pool", "info", "ci/small"]);
        }
        job.wait().expect("wait");
        wait_for(&format!("the pool to be whole after a kill at {delay} ms"), || {
            let pool = lab.json(&["pool", "info", "ci/small"]);
            let all = lab.json(&["instance", "list"]);
            let calm = all
                .as_array()
                .is_some_and(|all| all.len() == 2 && all.iter().all(|i| i["going_to"].is_null()));
            calm && pool["leased"] == 0 && pool["ready_counts"] == pool["desired_counts"]
        });
        wait_for("used machines to be gone", || lab.machines() == 1);
        let dirs = std::fs::read_dir(lab.root.join("instances")).expect("instances");
        let known: Vec<String> = ["warm", "sleeping"]
            .iter()
            .flat_map(|state| lab.ids("ci/small", state))
            .map(|vm| vm.rsplit('/').next().expect("id").to_owned())
            .collect();
        for dir in dirs {
            let dir = dir.expect("entry").file_name().display().to_string();
            assert!(known.contains(&dir), "{dir} is nobody's after a kill at {delay} ms");
        }
        // The bridge, the warm instance's tap, and at most the sleeper's.
        assert!((2..=3).contains(&lab.links().len()), "{:?} after {delay} ms", lab.links());
    }
    lab.ok(&["pool", "destroy", "ci/small"]);
    lab.ok(&["tenant", "destroy", "ci"]);
    assert_eq!((lab.machines(), lab.links()), (0, Vec::new()));
    assert!(!lab.root.join("tenants/ci").exists(), "its key is gone");
}
