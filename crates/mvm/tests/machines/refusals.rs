//! Refusals: each has its error, and changes nothing.

use crate::lab::{Lab, nixpkgs, wait_for};
use std::process::Stdio;

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    let lab = Lab::new("bad");
    lab.refused(&["pool", "info", "ci/none"], "not_found");
    lab.ok(&[
        "tenant",
        "create",
        "ci",
        "--net-id",
        "40",
        "--subnet",
        "10.77.40.0/24",
        "--max-running",
        "1",
    ]);
    lab.refused(
        &["tenant", "create", "two", "--net-id", "40", "--subnet", "10.78.0.0/24"],
        "conflict",
    );
    lab.refused(
        &["tenant", "create", "two", "--net-id", "41", "--subnet", "10.77.0.0/16"],
        "conflict",
    );
    lab.refused(
        &["tenant", "create", "two", "--net-id", "41", "--subnet", "10.79.0.1/24"],
        "invalid_network",
    );
    lab.refused(
        &["pool", "create", "ci/small", "--flake", "/no/such", "--profile", "small"],
        "flake_missing",
    );
    let flake = lab.root.join("flake");
    let flake = flake.to_str().expect("path");
    let input = nixpkgs();
    lab.ok(&[
        "pool",
        "create",
        "ci/small",
        "--flake",
        flake,
        "--profile",
        "none",
        "--cpus",
        "1",
        "--mem",
        "256",
    ]);
    let words =
        lab.refused(&["pool", "build", "ci/small", "--override-input", &input], "profile_missing");
    assert!(words.contains("small"), "it lists what there is: {words}");
    lab.refused(&["instance", "create", "ci/small"], "not_built");
    lab.ok(&["pool", "update", "ci/small", "--profile", "small"]);
    lab.ok(&["pool", "build", "ci/small", "--override-input", &input]);
    let garbage = lab.root.join("garbage");
    std::fs::write(&garbage, vec![7; 100_000]).expect("write");
    lab.refused(&["kernel", "import", garbage.to_str().expect("path")], "not_a_kernel");
    let words = lab.refused(&["pool", "scale", "ci/small", "--running", "2"], "quota_exceeded");
    for part in ["max_running", "limit 1", "in use 0", "asked 2"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // An agent is killed during a boot: the next one undoes the boot, which can then be repeated.
    let vm = lab.ok(&["instance", "create", "ci/small"]).trim().to_owned();
    let mut boot = lab.mvm(&["instance", "start", &vm]).stderr(Stdio::null()).spawn().expect("mvm");
    wait_for("a process", || lab.machines() == 1);
    lab.kill_agent();
    boot.wait().expect("wait");
    assert_eq!(lab.state(&vm), "created");
    assert_eq!(lab.machines(), 0);
    lab.ok(&["instance", "start", &vm]);
    lab.refused(&["instance", "create", "ci/small", "--start"], "quota_exceeded");
}
