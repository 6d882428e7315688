//! Guests that stop answering are found, and busy guests are not mistaken for them.

use crate::lab::{Lab, text, wait_for};
use std::process::Output;

/// Stops the guest's agent, which is the parent of each command.
const STOP_AGENT: &str = "kill -STOP $PPID; sleep 600";
/// Halts the kernel for good, without the hypervisor's notice.
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

    // A user's instance: an open session gets the reason, and the instance shows it.
    let vm = lab.start("ci/small");
    let (status, words) = run(&lab, &["instance", "exec", &vm, "--", "sh", "-c", STOP_AGENT]);
    assert_eq!(status, Some(125), "{words}");
    assert!(words.contains("error[guest_silent]: the guest does not answer"), "{words}");
    wait_for("the record to say so", || lab.state(&vm) == "failed");
    let info = lab.json(&["instance", "info", &vm]);
    assert!(info["reason"].as_str().expect("reason").contains("does not answer"), "{info}");
    lab.ok(&["instance", "destroy", &vm]);

    // Without a liveness probe, requests still have a deadline, and the machine can be destroyed.
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
    // Uses more than all of the memory, several times. The kernel must kill the hog, not the agent,
    // and at once, instead of rereading all other programs from disk for minutes.
    let hog = "for i in 1 2 3; do tail /dev/zero; done
               echo survived, within $(cat /sys/kernel/mm/lru_gen/min_ttl_ms)";
    let (status, words) =
        run(&lab, &["run", "ci/small", "--timeout", "300", "--", "sh", "-c", hog]);
    assert_eq!(status, Some(0), "{words}");
    assert!(words.contains("survived, within 1000"), "{words}");
    // The program itself prints "Killed" at most.
    let (status, words) = run(&lab, &["run", "ci/small", "--", "tail", "/dev/zero"]);
    assert_eq!(status, Some(137), "{words}");
    assert!(words.contains("mvm: the machine was out of memory"), "{words}");
    // Starts as many processes as possible, all of them busy, for several times the timeout. When
    // memory is short, the kernel kills some of them, and not the command that the job waits for.
    let bomb = "bomb() { bomb | bomb & }; (echo 1000 > /proc/self/oom_score_adj; bomb) & \
                echo -1000 > /proc/self/oom_score_adj; exec sleep 600";
    let (status, words) =
        run(&lab, &["run", "ci/small", "--timeout", "40", "--", "sh", "-c", bomb]);
    assert_eq!(status, Some(124), "{words}");
    let metrics = lab.ok(&["metrics"]);
    assert!(!metrics.contains("mvm_guests_silent_total{"), "{metrics}");
}
