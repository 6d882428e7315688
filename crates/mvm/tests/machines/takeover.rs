//! Jobs while their agent is replaced, by an upgrade or after a kill.

use crate::lab::{Lab, text, wait_for};
use std::process::Stdio;

/// Prints numbered lines until a file tells it to stop.
const COUNTS: &str = "echo run >> runs; n=0; until test -e go; do n=$((n+1)); echo line $n; \
                      echo odd $n >&2; done; cat runs; exit 7";

/// Returns the complete output of such a job that printed `n` lines.
fn whole(n: usize) -> String {
    (1..=n).map(|n| format!("line {n}\n")).collect::<String>() + "run\n"
}

/// Returns how many lines such a job has printed.
fn count(printed: &str) -> usize {
    printed.lines().filter(|line| line.starts_with("line ")).count()
}

#[test]
fn jobs_go_on_while_their_agent_is_replaced() {
    let lab = Lab::new("takeover");
    lab.tenant_and_pool("ci", "35");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "2", "--wait"]);
    let id = lab.submit(&["--artifact", "runs"], COUNTS);
    let mut logs = lab.mvm(&["job", "logs", "-f", &id]);
    let logs = logs.stdout(Stdio::piped()).spawn().expect("mvm");
    let out = lab.root.join("out");
    let back = format!("runs:{}", out.display());
    let run = ["run", "ci/small", "--out", &back, "--", "sh", "-c", COUNTS];
    let mut run = lab.mvm(&run);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mvm");
    let followers = [logs, run]
        .map(|child| std::thread::spawn(move || child.wait_with_output().expect("output")));
    let both = || -> Vec<String> {
        let jobs = lab.json(&["job", "list", "ci/small", "--state", "running"]);
        let jobs = jobs.as_array().expect("jobs").iter();
        jobs.map(|job| job["job_id"].as_str().expect("id").to_owned()).collect()
    };
    wait_for("both to run", || both().len() == 2);
    let grows = |what: &str| {
        let far: Vec<usize> = both().iter().map(|id| count(&lab.printed(id).0)).collect();
        let ahead = || both().iter().zip(&far).all(|(id, n)| count(&lab.printed(id).0) > n + 20);
        wait_for(what, ahead);
    };
    grows("lines before");
    lab.ok(&["agent", "stop"]);
    let all = || lab.json(&["job", "list", "ci/small"]);
    assert_eq!(both().len(), 2, "an upgrade ends none: {:#}", all());
    grows("lines after an upgrade");
    lab.kill_agent();
    assert_eq!(both().len(), 2, "a killed agent ends none: {:#}", all());
    grows("lines after an agent was killed");
    for id in both() {
        let instance = lab.job(&id)["attempts"][0]["instance"].as_str().expect("it").to_owned();
        lab.exec(&instance, "(sleep 1; touch /work/go) > /dev/null 2>&1 &");
    }
    assert_eq!(lab.ended(&id), 7);
    let job = lab.job(&id);
    assert_eq!((job["state"].as_str(), job["exit_status"].as_i64()), (Some("failed"), Some(7)));
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1));
    // The output is complete and in order, and the command has run once.
    let (printed, errors) = lab.printed(&id);
    let n = count(&printed);
    assert!(printed == whole(n), "{printed}");
    let odd: String = (1..=n).map(|n| format!("odd {n}\n")).collect();
    assert!(errors == odd, "{errors}");
    let kept = lab.root.join("kept");
    lab.ok(&["job", "artifacts", &id, kept.to_str().expect("path")]);
    let [logs, run] = followers.map(|follower| follower.join().expect("a follower"));
    assert!(logs.status.success(), "{:?}", logs.status);
    assert!(text(&logs.stdout) == printed, "{}\nof:\n{printed}", text(&logs.stdout));
    let said = text(&run.stdout);
    assert_eq!(run.status.code(), Some(7), "{}", text(&run.stderr));
    assert!(said == whole(count(&said)), "{said}");
    for folder in [kept, out] {
        assert_eq!(std::fs::read_to_string(folder.join("runs")).expect("runs"), "run\n");
    }
    wait_for("the pool to be as before", || {
        let pool = lab.json(&["pool", "info", "ci/small"]);
        pool["leased"] == 0 && pool["ready_counts"] == pool["desired_counts"]
    });
    lab.ok(&["pool", "destroy", "ci/small"]);
    assert_eq!(lab.machines(), 0);
}

/// Deadlines and cancellations hold across agents.
#[test]
fn a_job_that_was_taken_up_again_ends_as_any_other() {
    let lab = Lab::new("takeend");
    lab.tenant_and_pool("ci", "36");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "2", "--wait"]);
    let timed = lab.submit(&["--timeout", "20"], "echo begun; exec sleep 600");
    let canceled = lab.submit(&[], "trap 'echo told; exit 5' TERM; echo begun; sleep 600 & wait");
    for id in [&timed, &canceled] {
        wait_for("its output", || lab.printed(id).0 == "begun\n");
    }
    lab.kill_agent();
    lab.ok(&["job", "cancel", &canceled]);
    assert_eq!((lab.ended(&canceled), lab.job(&canceled)["state"].as_str()), (5, Some("canceled")));
    assert_eq!(lab.printed(&canceled).0, "begun\ntold\n");
    assert_eq!((lab.ended(&timed), lab.job(&timed)["state"].as_str()), (124, Some("timed_out")));
    lab.ok(&["pool", "destroy", "ci/small"]);
    assert_eq!(lab.machines(), 0);
}
