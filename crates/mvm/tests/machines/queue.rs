//! `mvm job`: the queue, and the outcomes of jobs.

use crate::lab::{Lab, is_gone, run, text, wait_for};
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Command, Stdio};

impl Lab {
    /// Submits a job whose command is a script. Returns its id.
    pub fn submit(&self, options: &[&str], script: &str) -> String {
        let words = [&["job", "submit", "ci/small"], options, &["--", "sh", "-c", script]].concat();
        self.ok(&words).trim().to_owned()
    }

    pub fn job(&self, id: &str) -> Value {
        self.json(&["job", "info", id])
    }

    /// Waits until a job has ended. Returns the exit status of `wait`.
    pub fn ended(&self, id: &str) -> i32 {
        let status = self.mvm(&["job", "wait", id, "--timeout", "120"]).status().expect("mvm");
        status.code().expect("status")
    }

    fn has_come_to(&self, id: &str, state: &str) {
        wait_for(&format!("{id} to be {state}"), || self.job(id)["state"] == state);
    }

    /// Returns a job's output, on both streams.
    pub fn printed(&self, id: &str) -> (String, String) {
        let output = self.mvm(&["job", "logs", id]).output().expect("mvm");
        (text(&output.stdout), text(&output.stderr))
    }
}

fn first_line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let from = child.stdout.as_mut().expect("stdout");
    let mut byte = [0];
    while from.read(&mut byte).expect("read") == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    text(&line)
}

/// Kills the agent, and the machines in which these jobs run.
fn kill_with_machines(lab: &Lab, jobs: &[&str]) {
    let machine = |id: &&str| {
        let attempts = lab.job(id)["attempts"].as_array().expect("attempts").clone();
        let last = attempts.last().expect("a run")["instance"].as_str().expect("it").to_owned();
        lab.process(&last)
    };
    let pids: Vec<String> = jobs.iter().map(machine).collect();
    lab.kill_agent();
    for pid in pids {
        run(Command::new("kill").args(["-9", &pid]));
        let pid = pid.parse().expect("pid");
        wait_for("the machine to end", || is_gone(pid));
    }
}

/// Allows one running machine, and submits a job that occupies it. Returns the job's id.
fn one_at_a_time(lab: &Lab) -> String {
    lab.ok(&["tenant", "update", "ci", "--max-running", "1"]);
    let held = lab.submit(&[], "echo held; exec sleep 600");
    wait_for("its output", || lab.printed(&held).0 == "held\n");
    held
}

#[test]
fn the_queue_has_an_order_and_a_bound_and_what_waits_can_be_canceled() {
    let lab = Lab::new("queue");
    lab.tenant_and_pool("ci", "31");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "1", "--wait"]);
    let held = one_at_a_time(&lab);
    let low = lab.submit(&["--priority", "-5"], "echo low");
    let first = lab.submit(&[], "echo first; echo aside >&2");
    let second = lab.submit(&[], "exit 9");
    let high = lab.submit(&["--priority", "7"], "sleep 600");
    let urgent = lab.submit(&["--priority", "10"], "echo urgent");
    let expected = [&urgent, &high, &first, &second, &low];
    let place = |id: &str| lab.job(id)["position"].as_u64();
    for (index, id) in expected.iter().enumerate() {
        assert_eq!(place(id), Some(index as u64 + 1), "{id}");
    }
    let waits = lab.job(&urgent)["waits_for"].to_string();
    assert!(waits.contains("max_running"), "{waits}");
    // The limit leaves room for one more waiting job; the next one is refused.
    lab.ok(&["tenant", "update", "ci", "--max-queued-jobs", "6"]);
    let last = lab.submit(&["--priority", "-100"], "true");
    lab.refused(&["job", "submit", "ci/small", "--", "true"], "queue_full");
    assert_eq!(lab.json(&["job", "list", "ci/small"]).as_array().expect("list").len(), 7);
    lab.refused(&["job", "list", "ci/none"], "not_found");
    let queued = lab.json(&["job", "list", "ci", "--state", "queued"]);
    assert_eq!(queued.as_array().expect("list").len(), 6);
    // A waiting job is canceled at once, and never runs.
    lab.ok(&["job", "cancel", &high]);
    assert_eq!((lab.job(&high)["state"].as_str(), lab.ended(&high)), (Some("canceled"), 130));
    assert_eq!(lab.job(&high)["attempts"], serde_json::json!([]));
    // A running job is ended.
    lab.ok(&["job", "cancel", &held]);
    assert_eq!(lab.ended(&held), 143);
    assert_eq!(lab.job(&held)["state"], "canceled");
    assert_eq!(lab.printed(&held).0, "held\n");
    let statuses = [&urgent, &first, &second, &low, &last].map(|id| lab.ended(id));
    assert_eq!(statuses, [0, 0, 9, 0, 0]);
    assert_eq!(lab.printed(&first), ("first\n".to_owned(), "aside\n".to_owned()));
    assert_eq!(lab.job(&second)["state"], "failed");
    let began = |id: &str| lab.job(id)["attempts"][0]["began_at"].as_u64().expect("a time");
    let times = [&urgent, &first, &second, &low, &last].map(|id| began(id));
    assert!(times.is_sorted(), "{times:?}");
    // The jobs are destroyed with their pool.
    let log = lab.root.join("jobs").join(&first);
    assert!(log.exists());
    lab.ok(&["pool", "destroy", "ci/small"]);
    assert!(!log.exists());
    lab.refused(&["job", "info", &first], "not_found");
    assert_eq!(lab.machines(), 0);
}

#[test]
fn a_job_has_inputs_a_timeout_retries_and_artifacts() {
    let lab = Lab::new("job");
    lab.tenant_and_pool("ci", "32");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "2", "--wait"]);
    let folder = lab.root.join("src");
    std::fs::create_dir_all(folder.join("deep")).expect("folder");
    std::fs::write(folder.join("deep/words"), "from outside").expect("file");
    let source = folder.to_str().expect("path");
    let elsewhere = format!("{source}/deep/words:/opt/in");
    let id = lab.submit(
        &[
            "--in",
            source,
            "--in",
            &elsewhere,
            "--artifact",
            "out",
            "--artifact",
            "/opt/in/words",
            "-e",
            "MODE=fast",
        ],
        "mkdir out && cat src/deep/words /opt/in/words > out/both && echo $MODE > out/mode",
    );
    assert_eq!(lab.ended(&id), 0, "{:?}", lab.job(&id));
    let back = lab.root.join("back");
    lab.ok(&["job", "artifacts", &id, back.to_str().expect("path")]);
    let read = |name: &str| std::fs::read_to_string(back.join(name)).expect(name);
    assert_eq!(read("out/both"), "from outsidefrom outside");
    assert_eq!((read("out/mode"), read("words")), ("fast\n".to_owned(), "from outside".to_owned()));
    let shown = lab.job(&id).to_string();
    assert!(shown.contains("MODE") && !shown.contains("fast\""), "values may be secret: {shown}");
    assert!(!lab.root.join("jobs").join(&id).join("inputs.tar").exists(), "not needed any more");
    // A job whose command succeeded fails if an artifact is missing.
    let id = lab.submit(&["--artifact", "no/such"], "true");
    assert_eq!(lab.ended(&id), 125);
    let reason = lab.job(&id)["reason"].to_string();
    assert!(reason.contains("no/such"), "{reason}");
    lab.refused(&["job", "artifacts", &id], "not_found");
    let id = lab.submit(&["--timeout", "15"], "echo begun; exec sleep 600");
    assert_eq!((lab.ended(&id), lab.job(&id)["state"].as_str()), (124, Some("timed_out")));
    assert_eq!(lab.printed(&id).0, "begun\n");
    let id = lab.submit(&[], "exec no-such-command");
    assert_eq!(lab.ended(&id), 127);
    // Each attempt has a machine of its own.
    let id = lab.submit(&["--retries", "2"], "echo try; exit 3");
    assert_eq!(lab.ended(&id), 3);
    let attempts = lab.job(&id)["attempts"].as_array().expect("attempts").clone();
    let machines: std::collections::BTreeSet<&str> =
        attempts.iter().map(|a| a["instance"].as_str().expect("instance")).collect();
    assert_eq!((attempts.len(), machines.len()), (3, 3));
    let (out, err) = lab.printed(&id);
    assert_eq!(
        (out.as_str(), err.as_str()),
        ("try\ntry\ntry\n", "mvm: attempt 2 of 3\nmvm: attempt 3 of 3\n")
    );
    lab.ok(&["pool", "destroy", "ci/small"]);
}

#[test]
fn a_log_is_followed_while_its_job_runs() {
    let lab = Lab::new("follow");
    lab.tenant_and_pool("ci", "33");
    let id = lab.submit(&[], "echo begun; while ! test -e /work/go; do sleep 0.1; done; echo over");
    let follow = || {
        let mut command = lab.mvm(&["job", "logs", "-f", &id]);
        command.stdout(Stdio::piped()).spawn().expect("mvm")
    };
    // One follower starts before the output, and one in the middle.
    let mut early = follow();
    assert_eq!(first_line(&mut early), "begun");
    let mut late = follow();
    assert_eq!(first_line(&mut late), "begun");
    let instance = lab.job(&id)["attempts"][0]["instance"].as_str().expect("instance").to_owned();
    // The followers end with the job, before its machine does.
    lab.exec(&instance, "(sleep 1; touch /work/go) > /dev/null 2>&1 &");
    for mut follower in [early, late] {
        assert_eq!(first_line(&mut follower), "over");
        assert!(follower.wait().expect("wait").success());
    }
    assert_eq!(lab.ended(&id), 0);
    lab.ok(&["pool", "destroy", "ci/small"]);
}

/// Jobs whose machines are killed while they run, together with the agent.
#[test]
fn a_job_is_never_run_twice_by_mistake() {
    let lab = Lab::new("lost");
    lab.tenant_and_pool("ci", "34");
    lab.ok(&["tenant", "update", "ci", "--max-running", "2"]);
    lab.ok(&["pool", "scale", "ci/small", "--warm", "2", "--wait"]);
    let once = lab.submit(&[], "echo run; exec sleep 600");
    let again = lab.submit(&["--retries", "1"], "echo run; test -e /run/no || exec sleep 600");
    for id in [&once, &again] {
        lab.has_come_to(id, "running");
        wait_for("its output", || lab.printed(id).0 == "run\n");
    }
    let waits = lab.submit(&[], "echo waited");
    assert_eq!(lab.job(&waits)["state"], "queued");
    let machines = lab.ids("ci/small", "running");
    kill_with_machines(&lab, &[&once, &again]);
    assert_eq!(lab.ended(&once), 125);
    let job = lab.job(&once);
    assert_eq!(
        (job["state"].as_str(), job["attempts"].as_array().map(Vec::len)),
        (Some("lost"), Some(1))
    );
    assert_eq!(lab.printed(&once).0, "run\n");
    // The other job runs a second time, elsewhere; the waiting job runs once.
    assert_eq!(lab.ended(&waits), 0);
    lab.has_come_to(&again, "running");
    wait_for("its second run", || lab.printed(&again).0 == "run\nrun\n");
    let attempts = lab.job(&again)["attempts"].clone();
    assert_eq!(
        (attempts[0]["state"].as_str(), attempts[1]["state"].as_str()),
        (Some("lost"), None)
    );
    assert_ne!(attempts[0]["instance"], attempts[1]["instance"]);
    // Its retry is used up, so it is lost at the second kill.
    kill_with_machines(&lab, &[&again]);
    assert_eq!((lab.ended(&again), lab.job(&again)["state"].as_str()), (125, Some("lost")));
    // A job whose process was killed says so.
    let id = lab.submit(&[], "echo run; exec sleep 600");
    wait_for("its output", || lab.printed(&id).0 == "run\n");
    let instance = lab.job(&id)["attempts"][0]["instance"].as_str().expect("instance").to_owned();
    let killed = std::process::Command::new("kill").args(["-9", &lab.process(&instance)]).status();
    assert!(killed.expect("kill").success());
    assert_eq!((lab.ended(&id), lab.job(&id)["state"].as_str()), (125, Some("lost")));
    let reason = lab.job(&id)["reason"].as_str().expect("reason").to_owned();
    assert!(reason.contains("signal 9 (SIGKILL)") && reason.contains("OOM killer"), "{reason}");
    // A job whose machine is destroyed is lost as well.
    let id = lab.submit(&[], "echo run; exec sleep 600");
    wait_for("its output", || lab.printed(&id).0 == "run\n");
    let instance = lab.job(&id)["attempts"][0]["instance"].as_str().expect("instance").to_owned();
    lab.ok(&["instance", "destroy", &instance]);
    assert_eq!((lab.ended(&id), lab.job(&id)["state"].as_str()), (125, Some("lost")));
    wait_for("the pool to be as before", || {
        let pool = lab.json(&["pool", "info", "ci/small"]);
        pool["leased"] == 0 && pool["ready_counts"] == pool["desired_counts"]
    });
    let left = lab.json(&["instance", "list", "ci/small"]).to_string();
    assert!(machines.iter().all(|used| !left.contains(used)), "used machines are gone");
    lab.ok(&["pool", "destroy", "ci/small"]);
    assert_eq!(lab.machines(), 0);
}
