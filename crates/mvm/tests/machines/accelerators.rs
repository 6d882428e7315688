//! The accelerator: what new machines get, what a machine keeps, and what is refused.
//!
//! `MVM_TEST_ACCELERATOR=kvm` says that the host has KVM, and that it works. Elsewhere these tests
//! show that KVM is refused, and that a machine of TCG keeps what it has.

use crate::lab::{Lab, text};
use std::process::Command;

/// Returns whether the host has KVM.
fn has_kvm() -> bool {
    std::env::var_os("MVM_TEST_ACCELERATOR").is_some_and(|name| name == "kvm")
}

/// Runs a command whose agent, should it start one, uses this accelerator.
fn with(lab: &Lab, accelerator: &str, words: &[&str]) -> Command {
    let mut command = lab.mvm(words);
    command.env("MVM_ACCELERATOR", accelerator);
    command
}

/// Replaces the agent by one with this accelerator.
fn replace_agent(lab: &Lab, accelerator: &str) {
    lab.ok(&["agent", "stop"]);
    let started = with(lab, accelerator, &["tenant", "list"]).output().expect("mvm");
    assert!(started.status.success(), "{}", text(&started.stderr));
    assert_eq!(lab.json(&["agent", "status"])["accelerator"], accelerator);
}

#[test]
fn a_machine_keeps_its_accelerator_and_its_memory_under_the_next_agent() {
    let lab = Lab::new("accelerators");
    // The host with KVM may be emulated, and then no machine of TCG comes up there in time. That a
    // machine of TCG keeps what it has while new ones get KVM is shown in mvm-hypervisor's tests.
    let (own, next) = if has_kvm() { ("kvm", "tcg") } else { ("tcg", "tcg") };
    replace_agent_or_start(&lab, own);
    lab.tenant_and_pool("ci", "43");
    replace_agent(&lab, own);
    assert_eq!(lab.json(&["pool", "info", "ci/small"])["accelerator"], own);
    let vm = lab.start("ci/small");
    lab.exec(&vm, "dd if=/dev/urandom of=/dev/shm/kept bs=1M count=8 2>/dev/null");
    let sum = lab.exec(&vm, "sha256sum /dev/shm/kept");
    replace_agent(&lab, next);
    for linger in ["true", "false"] {
        let on = |state: &str| {
            let shown = lab.json(&["instance", "info", &vm]);
            assert_eq!((&shown["accelerator"], &shown["state"]), (&own.into(), &state.into()));
        };
        on("running");
        let sleep: &[&str] = match linger {
            "true" => &["instance", "sleep", &vm],
            _ => &["instance", "sleep", "--no-linger", &vm],
        };
        lab.ok(sleep);
        on("sleeping");
        lab.ok(&["instance", "wake", &vm]);
        assert_eq!(lab.exec(&vm, "sha256sum /dev/shm/kept"), sum);
    }
    let arguments = std::fs::read(format!("/proc/{}/cmdline", lab.process(&vm)));
    let arguments = text(&arguments.expect("a process"));
    assert!(arguments.contains(&format!("-accel\0{own}")), "{arguments}");
    lab.ok(&["instance", "destroy", &vm]);
}

fn replace_agent_or_start(lab: &Lab, accelerator: &str) {
    let started = with(lab, accelerator, &["tenant", "list"]).output().expect("mvm");
    assert!(started.status.success(), "{}", text(&started.stderr));
}

#[test]
fn kvm_is_tried_on_request_and_refused_where_there_is_none() {
    let lab = Lab::new("probe");
    replace_agent_or_start(&lab, "auto");
    let said = lab.mvm(&["agent", "probe"]).output().expect("mvm");
    assert!(text(&said.stderr).contains("==> starting a kernel under /dev/kvm"), "it takes long");
    let quiet = lab.mvm(&["agent", "probe", "-o", "json"]).output().expect("mvm");
    assert!(!text(&quiet.stderr).contains("==>"), "{}", text(&quiet.stderr));
    let probed: serde_json::Value = serde_json::from_slice(&quiet.stdout).expect("JSON");
    let status = lab.json(&["agent", "status"]);
    let found = if has_kvm() { "kvm" } else { "tcg" };
    assert_eq!(probed["verdict"], found, "{probed}");
    assert_eq!((&probed["accelerator"], &status["accelerator"]), (&found.into(), &found.into()));
    assert_eq!(status["accelerator_reason"], probed["reason"]);
    assert_eq!(
        (&status["accelerator_standing"], &status["accelerator_wanted"]),
        (&"settled".into(), &"auto".into())
    );
    let doctor = lab.mvm(&["doctor", "-o", "json"]).output().expect("mvm");
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let check = checks.iter().find(|check| check["name"] == "accelerator").expect("a check");
    assert_eq!(check["status"], if has_kvm() { "ok" } else { "note" }, "{check}");
    lab.ok(&["agent", "stop"]);
    let wanted = with(&lab, "kvm", &["agent", "serve"]);
    if has_kvm() {
        replace_agent_or_start(&lab, "kvm");
        assert_eq!(lab.json(&["agent", "status"])["accelerator_wanted"], "kvm");
        return;
    }
    let refused = { wanted }.output().expect("mvm");
    let words = text(&refused.stderr);
    assert!(!refused.status.success() && words.contains("error[kvm_unavailable]"), "{words}");
}

#[test]
fn a_pool_gives_its_machines_a_named_cpu_in_full_or_not_at_all() {
    let lab = Lab::new("cpus");
    lab.tenant_and_pool("ci", "44");
    let pool = || lab.json(&["pool", "info", "ci/small"]);
    let before = pool();
    assert_eq!(before["cpu_model"], "host");
    let malformed = lab.mvm(&["pool", "update", "ci/small", "--cpu-model", "EPYC,+svm"]);
    let malformed = { malformed }.output().expect("mvm");
    assert!(
        text(&malformed.stderr).contains("not a valid CPU model") && !malformed.status.success()
    );
    for name in ["Pentium9", "max", "qemu32"] {
        let update = ["pool", "update", "ci/small", "--cpu-model", name];
        lab.refused(&update, "cpu_model_unavailable");
    }
    assert_eq!(pool()["cpu_model"], "host", "nothing is changed");
    // QEMU does not translate all of this one.
    if !has_kvm() {
        let flake = lab.root.join("flake").display().to_string();
        let mut new = vec!["pool", "create", "ci/new", "--flake", &flake, "--profile", "small"];
        new.extend(["--cpu-model", "Skylake-Server"]);
        let refused = lab.refused(&new, "cpu_model_unavailable");
        assert!(refused.contains("avx512") && refused.contains("--cpu-model host"), "{refused}");
        lab.refused(&["pool", "info", "ci/new"], "not_found");
    }
    lab.ok(&["pool", "update", "ci/small", "--cpu-model", "Nehalem"]);
    let document = lab.json(&["agent", "desired"]);
    assert_eq!(document["tenants"][0]["pools"][0]["cpu_model"], "Nehalem", "{document}");
    let vm = lab.start("ci/small");
    let has = || lab.json(&["instance", "info", &vm])["cpu_model"].clone();
    assert_eq!(has(), "Nehalem-v1");
    let sees = |what: &str| lab.exec(&vm, "cat /proc/cpuinfo").contains(what);
    assert!(sees("Nehalem") && !sees(" avx"));
    lab.ok(&["pool", "update", "ci/small", "--cpu-model", "host"]);
    lab.ok(&["instance", "sleep", "--no-linger", &vm]);
    assert_eq!(has(), "Nehalem-v1");
    lab.ok(&["instance", "wake", &vm]);
    assert!(has() == "Nehalem-v1" && sees("Nehalem"), "it keeps what it has");
    let other = lab.start("ci/small");
    let other = lab.json(&["instance", "info", &other])["cpu_model"].clone();
    assert!(other != "Nehalem-v1" && !other.is_null(), "{other}: new ones have the pool's");
}
