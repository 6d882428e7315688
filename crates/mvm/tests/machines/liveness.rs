//! Guests that stop answering are found; guests that are busy are not taken for them.

use crate::lab::{Lab, text, wait_for};
use std::process::Output;

/// The agent of the guest is the parent of what it runs.
const STOP_AGENT: &str = "kill -STOP $PPID; sleep 600";
/// What the kernel does not come back from, and the hypervisor does not hear of.
const HALT: &str = "busybox halt -f -n; sleep 600";

fn run(lab: &Lab, words: &[&str]) -> (Option<i32>, String) {
    let output: Output = lab.mvm(words).output().expect("mvm");
    (output.status.code(), text(&output.stderr) + &text(&output.stdout))
}

#[test]
fn a_guest_that_stops_answering_is_found_dead_and_recycled() {
    let lab = Lab::new("silent");
    lab.tenant_and_pool("ci", "61");
    lab.ok(&["pool", "update", "ci/small", "--guest-timeout", "3"]);
    lab.ok(&["pool", "scale", "ci/small", "--sleeping", "1", "--wait"]);
    for script in [STOP_AGENT, HALT] {
        let (status, words) = run(&lab, &["run", "ci/small", "--", "sh", "-c", script]);
        assert_eq!(status, Some(125), "{script}: {words}");
        assert!(words.contains("the guest does not answer"), "{script}: {words}");
    }
    let jobs = lab.json(&["job", "list", "ci/small"]);
    let jobs = jobs.as_array().expect("list");
    assert!(jobs.len() == 2 && jobs.iter().all(|job| job["state"] == "lost"), "{jobs:?}");
    wait_for("the pool to be as before", || {
        let pool = lab.json(&["pool", "info", "ci/small"]);
        pool["leased"] == 0 && pool["failed"] == 0 && lab.machines() == 0
    });
    let (_, events) = run(&lab, &["events"]);
    assert!(events.contains("the guest does not answer"), "{events}");
    let metrics = lab.ok(&["metrics"]);
    let counted = "mvm_guests_silent_total{tenant=\"ci\",pool=\"small\"} 2";
    assert!(metrics.contains(counted), "{metrics}");

    // A person's: who is in it is told, and the instance says why.
    let vm = lab.start("ci/small");
    let (status, words) = run(&lab, &["instance", "exec", &vm, "--", "sh", "-c", STOP_AGENT]);
    assert_eq!(status, Some(125), "{words}");
    assert!(words.contains("error[guest_silent]: the guest does not answer"), "{words}");
    wait_for("the record to say so", || lab.state(&vm) == "failed");
    let info = lab.json(&["instance", "info", &vm]);
    assert!(info["reason"].as_str().expect("reason").contains("does not answer"), "{info}");
    lab.ok(&["instance", "destroy", &vm]);

    // Where nobody watches, what is asked has an end all the same, and so has the machine.
    lab.ok(&["pool", "update", "ci/small", "--guest-timeout", "0"]);
    let vm = lab.start("ci/small");
    lab.exec(&vm, "(sleep 1; kill -STOP $PPID) > /dev/null 2>&1 &");
    wait_for("its figures to be the host's alone", || {
        let stats = lab.json(&["instance", "stats", &vm]);
        stats["resident_kib"].as_u64().is_some_and(|kib| kib > 0)
            && stats["guest"] == "does not answer"
    });
    assert_eq!(lab.state(&vm), "running");
    lab.ok(&["instance", "destroy", &vm]);
    assert_eq!(lab.machines(), 0);
}

#[test]
fn a_guest_under_heavy_load_is_not_taken_for_dead() {
    let lab = Lab::new("load");
    lab.tenant_and_pool("ci", "62");
    lab.ok(&["pool", "update", "ci/small", "--guest-timeout", "10"]);
    // More than all of its memory, again and again: the kernel ends the hog, not the agent, and at
    // once, instead of reading every other program anew from its disk for minutes.
    let hog = "for i in 1 2 3; do tail /dev/zero; done
               echo survived, within $(cat /sys/kernel/mm/lru_gen/min_ttl_ms)";
    let (status, words) =
        run(&lab, &["run", "ci/small", "--timeout", "300", "--", "sh", "-c", hog]);
    assert_eq!(status, Some(0), "{words}");
    assert!(words.contains("survived, within 1000"), "{words}");
    // Its own words are "Killed" at most.
    let (status, words) = run(&lab, &["run", "ci/small", "--", "tail", "/dev/zero"]);
    assert_eq!(status, Some(137), "{words}");
    assert!(words.contains("mvm: the machine was out of memory"), "{words}");
    // As many processes as there can be, all of them busy, for several times the timeout. The kernel
    // chooses among them when memory is short, and not the command that the job waits for.
    let bomb = "bomb() { bomb | bomb & }; (echo 1000 > /proc/self/oom_score_adj; bomb) & \
                echo -1000 > /proc/self/oom_score_adj; exec sleep 600";
    let (status, words) =
        run(&lab, &["run", "ci/small", "--timeout", "40", "--", "sh", "-c", bomb]);
    assert_eq!(status, Some(124), "{words}");
    let metrics = lab.ok(&["metrics"]);
    assert!(!metrics.contains("mvm_guests_silent_total{"), "{metrics}");
}
