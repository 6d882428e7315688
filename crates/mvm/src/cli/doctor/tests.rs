//! Tests of what doctor says of KVM.

use super::accelerator::check;
use super::check::Status;
use super::host::Host;
use super::production;
use mvm_api::types::AgentInfo;
use mvm_model::Accelerator;
use mvm_model::accelerator::Verdict;
use serde_json::json;

fn agent(accelerator: &str, wanted: &str, standing: &str) -> AgentInfo {
    let info = json!({
        "version": "1", "pid": 1, "root": "/r", "root_id": "0000", "hypervisor": "qemu",
        "hypervisor_version": "7.2", "accelerator": accelerator, "accelerator_reason": "so",
        "accelerator_standing": standing, "accelerator_wanted": wanted, "simulated": false,
        "netns": null, "started_at": 0, "instances": 0, "desired": { "file": null, "refused": null, "in_force": false, "pending": [],
            "last_failure": null, "retry_at": null },
    });
    serde_json::from_value(info).expect("an agent")
}

/// Makes a host with KVM of the hardware kind.
fn kvm_host() -> (Host, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("dir");
    for (path, text) in [("proc/cpuinfo", "flags : fpu svm\n"), ("dev/kvm", "")] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        std::fs::write(path, text).expect("file");
    }
    (Host::at(dir.path()), dir)
}

#[test]
fn a_host_with_kvm_whose_agent_emulates_is_to_be_mended() {
    let (host, _dir) = kvm_host();
    let is = |accelerator, wanted, standing| {
        let found = check(&host, &agent(accelerator, wanted, standing));
        (found.status, found.remedy)
    };
    assert_eq!(is("kvm", "auto", "settled"), (Status::Ok, ""));
    assert_eq!(is("tcg", "auto", "trying"), (Status::Note, ""));
    for (wanted, standing, word) in [
        ("auto", "settled", "agent probe"),
        ("auto", "timed_out", "agent probe"),
        ("auto", "without_kernel", "kernel fetch"),
        ("tcg", "settled", "--accelerator tcg"),
    ] {
        let (status, remedy) = is("tcg", wanted, standing);
        assert_eq!(status, Status::Mend, "{wanted} {standing}");
        assert!(remedy.contains(word), "{remedy}");
    }
    let none = tempfile::tempdir().expect("dir");
    let emulates = agent("tcg", "auto", "settled");
    let found = check(&Host::at(none.path()), &emulates);
    assert_eq!(found.status, Status::Note, "nothing can be done here");
}

#[test]
fn production_needs_kvm_and_reads_what_the_last_agent_found() {
    let (host, _dir) = kvm_host();
    let kept = |accelerator| Some(Verdict::settled(accelerator, "it panicked"));
    let emulates = agent("tcg", "auto", "settled");
    let check = production::kvm(&host, Some(&emulates), None);
    assert_eq!(check.status, Status::Mend);
    assert!(check.remedy.contains("agent probe"), "{}", check.remedy);
    let check = production::kvm(&host, None, kept(Accelerator::Tcg));
    assert!(check.status == Status::Mend && check.detail.contains("it panicked"));
    assert_eq!(production::kvm(&host, None, kept(Accelerator::Kvm)).status, Status::Ok);
    assert_eq!(production::kvm(&host, None, None).status, Status::Ok);
    let uses = agent("kvm", "auto", "settled");
    assert_eq!(production::kvm(&host, Some(&uses), kept(Accelerator::Tcg)).status, Status::Ok);
    let none = tempfile::tempdir().expect("dir");
    let check = production::kvm(&Host::at(none.path()), Some(&emulates), None);
    assert!(check.status == Status::Mend && check.remedy.contains("firmware"));
}
