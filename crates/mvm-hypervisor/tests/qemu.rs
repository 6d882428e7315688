//! The QEMU driver with real guests on the software CPU.

mod support;

use mvm_hypervisor::{
    Hypervisor, Machine, Nic, OwnMemory, Platform, ProcessIdentity, RestoreMemory, VmSpec,
};
use mvm_model::{Accelerator, Code, Mac};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Lab, accelerator, count, counts_beyond, driver, driver_with, unrecorded};

const SECOND: Duration = Duration::from_secs(1);

/// Leaves the machine as a snapshot, and ends its process.
async fn put_to_sleep(machine: &Arc<dyn Machine>, snapshot: &Path) {
    machine.pause().await.unwrap();
    machine.snapshot(snapshot, None).await.unwrap();
    machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn boots_confined_pauses_resumes_and_leaves_nothing() {
    let lab = Lab::new();
    let spec = lab.spec("a");
    let recorded = Mutex::new(Vec::new());
    let record = |process: &ProcessIdentity| recorded.lock().unwrap().push(process.clone());
    let machine = driver().await.boot(&spec, &record).await.unwrap();
    assert_eq!(*recorded.lock().unwrap(), [machine.process()]);
    assert_eq!(lab.processes().await, [machine.process()]);
    counts_beyond(&spec, 3).await;
    is_confined(machine.process().pid);

    machine.pause().await.unwrap();
    machine.pause().await.unwrap();
    let paused = machine.stats().await.unwrap();
    assert!(paused.paused && paused.resident_kib > 0 && paused.proportional_kib > 0);
    let footprint = machine.footprint().await.expect("a footprint");
    assert!(footprint.guest_kib > 0 && footprint.heap_kib > 0, "{footprint:?}");
    assert_eq!(footprint.translation_kib > 0, accelerator() == Accelerator::Tcg, "{footprint:?}");
    assert!(footprint.own_kib() <= paused.resident_kib, "{footprint:?} of {paused:?}");
    let stands = count(&spec);
    tokio::time::sleep(SECOND).await;
    assert_eq!(count(&spec), stands, "a paused guest does not count");
    let later = machine.stats().await.unwrap();
    assert!(later.cpu_time_ms - paused.cpu_time_ms < 50, "{paused:?} {later:?}");
    machine.resume().await.unwrap();
    machine.resume().await.unwrap();
    counts_beyond(&spec, stands.unwrap_or(0)).await;
    assert!(!machine.stats().await.unwrap().paused);

    let channel = machine.channel();
    tokio::net::UnixStream::connect(&channel).await.expect("the guest channel");
    machine.kill().await.unwrap();
    machine.kill().await.unwrap();
    machine.exited().await;
    assert_eq!(machine.pause().await.unwrap_err().code(), Code::Gone);
    assert_eq!(machine.stats().await.unwrap_err().code(), Code::Gone);
    assert!(lab.processes().await.is_empty());
    assert!(!std::fs::exists(format!("/proc/{}", machine.process().pid)).unwrap(), "no zombie");
    let mut left: Vec<_> =
        std::fs::read_dir(&spec.dir).unwrap().flatten().map(|file| file.file_name()).collect();
    left.sort();
    assert_eq!(left, ["console.log", "machine.lock", "qemu.log"]);
}

/// Checks that a process has its own user, no capabilities, no new privileges, a system call
/// filter, and its directory as root.
fn is_confined(pid: u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    let user = vec![support::USER.to_string(); 4].join(" ");
    assert_eq!((field("Uid:"), field("Gid:")), (user.clone(), user));
    assert_eq!(field("Groups:"), support::USER.to_string());
    assert_eq!(u64::from_str_radix(&field("CapEff:"), 16).unwrap(), 0);
    assert_eq!(u64::from_str_radix(&field("CapPrm:"), 16).unwrap(), 0);
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    let root = std::fs::read_link(format!("/proc/{pid}/root")).unwrap();
    assert!(root.ends_with("a"), "{root:?}");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("CARGO"), "no environment of ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_goes_on_counting_in_a_new_process() {
    for (name, platform) in [("pci", Platform::Pci), ("mmio", Platform::Mmio)] {
        let lab = Lab::new();
        let mut spec = lab.spec(name);
        spec.kernel.platform = platform;
        let driver = driver().await;
        let snapshot = lab.dir.join("snapshot");
        let machine = driver.boot(&spec, &unrecorded).await.unwrap();
        counts_beyond(&spec, 3).await;
        let console = std::fs::read_to_string(spec.dir.join("console.log")).unwrap();
        assert!(!console.contains(['\x1b', '\0']), "{name}: the firmware is no guest: {console:?}");
        assert!(!console.contains("SeaBIOS"), "{name}: {console:?}");
        let error = machine.snapshot(&snapshot, None).await.unwrap_err();
        assert_eq!(error.code(), Code::NotPaused);
        put_to_sleep(&machine, &snapshot).await;
        let mut last = count(&spec).unwrap();
        // Twice: the second time from the snapshot of the restored machine.
        for _ in 0..2 {
            let machine =
                driver.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded).await.unwrap();
            assert!(machine.stats().await.unwrap().paused);
            machine.resume().await.unwrap();
            let now = counts_beyond(&spec, last + 3).await;
            assert!(now < last + 30, "{name}: it went on from {last}, not anew: {now}");
            machine.pause().await.unwrap();
            machine.snapshot(&snapshot, None).await.unwrap();
            machine.kill().await.unwrap();
            last = count(&spec).unwrap();
        }
        assert!(lab.processes().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_can_go_on_after_its_snapshot_and_be_snapshotted_again() {
    let lab = Lab::new();
    let spec = lab.spec("a");
    let snapshot = lab.dir.join("snapshot");
    let machine = driver().await.boot(&spec, &unrecorded).await.unwrap();
    counts_beyond(&spec, 0).await;
    for _ in 0..3 {
        machine.pause().await.unwrap();
        machine.snapshot(&snapshot, None).await.unwrap();
        // A second snapshot, without having run in between.
        machine.snapshot(&snapshot, None).await.unwrap();
        assert!(machine.stats().await.unwrap().paused);
        machine.resume().await.unwrap();
        counts_beyond(&spec, count(&spec).unwrap()).await;
    }
    machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clones_of_one_template_live_at_once() {
    let lab = Lab::new();
    let spec = lab.spec("template");
    let driver = driver().await;
    let snapshot = lab.dir.join("snapshot");
    let machine = driver.boot(&spec, &unrecorded).await.unwrap();
    counts_beyond(&spec, 3).await;
    put_to_sleep(&machine, &snapshot).await;
    let template = std::fs::read(&spec.memory).unwrap();
    let from = count(&spec).unwrap();
    let mut clones = Vec::new();
    for name in ["one", "two"] {
        let mut clone = lab.spec(name);
        clone.memory = spec.memory.clone();
        let machine =
            driver.restore(&clone, &snapshot, RestoreMemory::Clone, &unrecorded).await.unwrap();
        machine.resume().await.unwrap();
        clones.push((clone, machine));
    }
    for (clone, _) in &clones {
        counts_beyond(clone, from + 3).await;
    }
    // One clone sleeps and wakes with memory of its own, twice, while the other goes on beside it.
    let (mut clone, machine) = clones.remove(0);
    let mut machine = machine;
    clone.memory = lab.dir.join("own");
    for sleep in ["first", "second"] {
        let asleep = lab.dir.join(sleep);
        machine.pause().await.unwrap();
        machine.snapshot(&asleep, None).await.unwrap();
        machine.kill().await.unwrap();
        let before = count(&clone).unwrap();
        machine = driver.restore(&clone, &asleep, RestoreMemory::Own, &unrecorded).await.unwrap();
        machine.resume().await.unwrap();
        counts_beyond(&clone, before).await;
    }
    for machine in [&machine, &clones[0].1] {
        machine.kill().await.unwrap();
    }
    assert!(std::fs::read(&spec.memory).unwrap() == template, "clones write nothing to it");
    // Damage deep in the memory is found at its end, and the machine does not run.
    let first = lab.dir.join("first");
    let mut bytes = std::fs::read(&first).unwrap();
    let last = bytes.len() - 1000;
    bytes[last] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    let refused = driver.restore(&clone, &first, RestoreMemory::Own, &unrecorded).await;
    assert_eq!(refused.err().unwrap().code(), Code::RestoreFailed);
    assert!(lab.processes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_leaves_its_memory_in_a_file_of_its_own() {
    for (name, platform) in [("pci", Platform::Pci), ("mmio", Platform::Mmio)] {
        let mut lab = Lab::new();
        let mut spec = lab.spec(name);
        spec.kernel.platform = platform;
        let driver = driver().await;
        let template = lab.dir.join("snapshot");
        let machine = driver.boot(&spec, &unrecorded).await.unwrap();
        counts_beyond(&spec, 3).await;
        machine.pause().await.unwrap();
        machine.snapshot(&template, None).await.unwrap();
        machine.kill().await.unwrap();
        let before = std::fs::read(&spec.memory).unwrap();
        let mut clone = lab.spec("clone");
        clone.kernel.platform = platform;
        clone.memory = spec.memory.clone();
        let machine = driver.restore(&clone, &template, RestoreMemory::Clone, &unrecorded).await;
        let machine = machine.unwrap();
        machine.resume().await.unwrap();
        counts_beyond(&clone, count(&spec).unwrap() + 3).await;
        machine.pause().await.unwrap();
        // First without space for the memory, then without the template's state: each time the
        // machine goes on as it was.
        let full = lab.tmpfs(64 << 10);
        let asleep = lab.dir.join("asleep");
        let own = |file: &str| OwnMemory { file: lab.dir.join(file), template: template.clone() };
        let error = machine.snapshot(&asleep, Some(&own("tmpfs/own"))).await.unwrap_err();
        assert_eq!(error.code(), Code::NoSpace);
        assert!(!asleep.exists() && !full.join("own").exists(), "nothing is left");
        let strange = OwnMemory { template: lab.dir.join("no such"), ..own("strange") };
        machine.snapshot(&asleep, Some(&strange)).await.unwrap();
        assert!(!strange.file.exists() && std::fs::metadata(&asleep).unwrap().len() > 1 << 20);
        machine.resume().await.unwrap();
        let last = counts_beyond(&clone, count(&clone).unwrap()).await;
        // Adopted by another agent, which knows only what the process itself shows.
        let process = machine.process();
        drop(machine);
        let machine = driver.adopt(&clone, &process).await.unwrap().expect("it is ours");
        machine.pause().await.unwrap();
        machine.snapshot(&asleep, Some(&own("own"))).await.unwrap();
        assert!(std::fs::metadata(&asleep).unwrap().len() < 1 << 20, "no memory is in it");
        // A snapshot changes nothing for the machine: it may run on, and be snapshotted again.
        machine.resume().await.unwrap();
        counts_beyond(&clone, last + 3).await;
        machine.pause().await.unwrap();
        machine.snapshot(&asleep, Some(&own("own"))).await.unwrap();
        machine.kill().await.unwrap();
        let mut last = count(&clone).unwrap();
        clone.memory = lab.dir.join("own");
        for _ in 0..2 {
            let machine = driver.restore(&clone, &asleep, RestoreMemory::Own, &unrecorded).await;
            let machine = machine.unwrap();
            machine.resume().await.unwrap();
            let now = counts_beyond(&clone, last + 3).await;
            assert!(now < last + 30, "{name}: it went on from {last}, not anew: {now}");
            machine.pause().await.unwrap();
            machine.snapshot(&asleep, None).await.unwrap();
            machine.kill().await.unwrap();
            last = count(&clone).unwrap();
        }
        assert!(std::fs::read(&spec.memory).unwrap() == before, "the template is as it was");
        assert!(lab.processes().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_wakes_with_other_disks_and_another_tap() {
    for (name, platform) in [("pci", Platform::Pci), ("mmio", Platform::Mmio)] {
        let mut lab = Lab::new();
        let mut spec = lab.spec(name);
        spec.kernel.platform = platform;
        spec.vcpus = 2;
        spec.disks = vec![lab.disk("root", true), lab.disk("scratch", false)];
        let mac = Mac::from_bytes([2, 0, 0, 0, 0, 9]);
        spec.nic = Some(Nic { tap: lab.tap(), mac });
        let driver = driver().await;
        let machine = driver.boot(&spec, &unrecorded).await.unwrap();
        counts_beyond(&spec, 1).await;
        machine.pause().await.unwrap();
        let snapshot = lab.dir.join("snapshot");
        machine.snapshot(&snapshot, None).await.unwrap();
        machine.kill().await.unwrap();

        let mut clone = lab.spec("clone");
        clone.kernel.platform = platform;
        clone.vcpus = 2;
        clone.memory = spec.memory.clone();
        clone.disks = vec![spec.disks[0].clone(), lab.disk("scratch", false)];
        clone.nic = Some(Nic { tap: lab.tap(), mac });
        let one = driver.restore(&clone, &snapshot, RestoreMemory::Clone, &unrecorded).await;
        let other = driver.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded).await;
        for (spec, machine) in [(&clone, one.unwrap()), (&spec, other.unwrap())] {
            machine.resume().await.unwrap();
            counts_beyond(spec, count(spec).unwrap_or(0)).await;
            machine.kill().await.unwrap();
        }
        // With one disk fewer, the snapshot does not fit.
        clone.disks.pop();
        let refused = driver.restore(&clone, &snapshot, RestoreMemory::Clone, &unrecorded).await;
        assert!(refused.err().unwrap().to_string().contains("disks"));
    }
}

/// Returns the accelerator that the tests' machines do not run on.
fn other() -> Accelerator {
    match accelerator() {
        Accelerator::Tcg => Accelerator::Kvm,
        Accelerator::Kvm => Accelerator::Tcg,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_machine_sleeps_and_wakes_on_its_own_processor_whatever_new_ones_get() {
    let lab = Lab::new();
    let spec = lab.spec("a");
    let snapshot = lab.dir.join("snapshot");
    let machine = driver().await.boot(&spec, &unrecorded).await.unwrap();
    counts_beyond(&spec, 3).await;
    let (process, own) = (machine.process(), machine.processor().unwrap());
    assert_eq!(own.accelerator, accelerator());
    drop(machine);
    // The next agent would start machines with the other accelerator.
    let next = driver_with(other()).await;
    assert_eq!(next.description().accelerator, other().as_str());
    let mut machine = next.adopt(&spec, &process).await.unwrap().expect("it lives");
    // Twice: the second time from the snapshot of the restored machine.
    for _ in 0..2 {
        assert_eq!(machine.processor().as_ref(), Some(&own));
        machine.check_restorable().unwrap();
        put_to_sleep(&machine, &snapshot).await;
        let last = count(&spec).unwrap();
        machine = next.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded).await.unwrap();
        machine.resume().await.unwrap();
        let now = counts_beyond(&spec, last + 3).await;
        assert!(now < last + 30, "it went on from {last}, not anew: {now}");
    }
    machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_gets_its_templates_processor_and_keeps_it() {
    let lab = Lab::new();
    let spec = lab.spec("template");
    let driver = driver().await;
    let template = lab.dir.join("snapshot");
    let machine = driver.boot(&spec, &unrecorded).await.unwrap();
    counts_beyond(&spec, 3).await;
    let own = machine.processor();
    put_to_sleep(&machine, &template).await;
    driver.switch(other());
    let clone = VmSpec { memory: spec.memory.clone(), ..lab.spec("clone") };
    let machine =
        driver.restore(&clone, &template, RestoreMemory::Clone, &unrecorded).await.unwrap();
    machine.resume().await.unwrap();
    counts_beyond(&clone, 6).await;
    assert_eq!(machine.processor(), own);
    // Its first sleep leaves its memory in a file of its own, beside the template's devices.
    let (file, sleeper) = (lab.dir.join("own.mem"), lab.dir.join("sleeper"));
    machine.pause().await.unwrap();
    let own_memory = OwnMemory { file: file.clone(), template };
    machine.snapshot(&sleeper, Some(&own_memory)).await.unwrap();
    machine.kill().await.unwrap();
    assert!(file.exists(), "its memory is not in the snapshot");
    let last = count(&clone).unwrap();
    let clone = VmSpec { memory: file, ..clone };
    let machine = driver.restore(&clone, &sleeper, RestoreMemory::Own, &unrecorded).await.unwrap();
    assert_eq!(machine.processor(), own);
    machine.resume().await.unwrap();
    counts_beyond(&clone, last).await;
    machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_of_kvm_is_refused_where_there_is_none_and_on_another_cpu() {
    let lab = Lab::new();
    let driver = driver_with(Accelerator::Tcg).await;
    if driver.kvm_probe(lab.dir.join("verdict")).against().is_none() {
        // Here it would be started.
        return;
    }
    let spec = lab.spec("a");
    let snapshot = lab.dir.join("snapshot");
    let machine = driver.boot(&spec, &unrecorded).await.unwrap();
    counts_beyond(&spec, 3).await;
    put_to_sleep(&machine, &snapshot).await;
    let mut bytes = std::fs::read(&snapshot).unwrap();
    let end = bytes.iter().position(|byte| *byte == b'\n').expect("a header");
    let header = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let other_cpu = r#""accelerator":"kvm","host_cpu":{"name":"a vast CPU","kind":"v 1 2","features":"0","microcode":[]}"#;
    for (with, code, names) in [
        (r#""accelerator":"kvm""#, Code::KvmUnavailable, "KVM"),
        (other_cpu, Code::CpuDiffers, "a vast CPU"),
    ] {
        let mut header = header.replace(r#""accelerator":"tcg""#, with).trim_end().to_owned();
        header.push_str(&" ".repeat(end - header.len()));
        bytes[..end].copy_from_slice(header.as_bytes());
        std::fs::write(&snapshot, &bytes).unwrap();
        let refused = driver.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded).await;
        let refused = refused.err().expect("a refusal");
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.to_string().contains(names), "{refused}");
        assert!(lab.processes().await.is_empty() && snapshot.exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_a_named_cpu_wakes_with_it_and_only_where_it_can_be_had() {
    let lab = Lab::new();
    let named = |name: &str| VmSpec { cpu_model: name.parse().unwrap(), ..lab.spec("a") };
    let driver = driver().await;
    for name in ["max", "Pentium9"] {
        driver.check_cpu_model(&name.parse().unwrap()).await.expect_err(name);
        let refused = driver.boot(&named(name), &unrecorded).await.err().expect("a refusal");
        assert_eq!(refused.code(), Code::CpuModelUnavailable, "{refused}");
        assert!(refused.to_string().contains(name) && refused.hint().contains("--cpu-model host"));
        assert!(!named(name).memory.exists(), "nothing is begun");
    }
    let spec = named("Nehalem");
    let snapshot = lab.dir.join("snapshot");
    let machine = driver.boot(&spec, &unrecorded).await.unwrap();
    counts_beyond(&spec, 3).await;
    let own = machine.processor().unwrap();
    assert_eq!(own.model, "Nehalem-v1", "its name and what it stands for");
    let arguments = std::fs::read(format!("/proc/{}/cmdline", machine.process().pid)).unwrap();
    assert!(String::from_utf8_lossy(&arguments).contains("-cpu\0Nehalem-v1,enforce\0"));
    // The next agent knows it as well.
    let process = machine.process();
    drop(machine);
    let machine = driver.adopt(&spec, &process).await.unwrap().expect("it is ours");
    assert_eq!(machine.processor(), Some(own.clone()));
    put_to_sleep(&machine, &snapshot).await;
    let last = count(&spec).unwrap();
    let whole = std::fs::read(&snapshot).unwrap();
    let replaced = String::from_utf8_lossy(&whole[..4096]).replace("Nehalem-v1", "Nehalem-v9");
    std::fs::write(&snapshot, [replaced.as_bytes(), &whole[4096..]].concat()).unwrap();
    let elsewhere = driver.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded).await;
    let refused = elsewhere.err().expect("a refusal");
    assert_eq!(refused.code(), Code::CpuModelUnavailable, "{refused}");
    assert!(refused.to_string().contains("Nehalem-v9"), "{refused}");
    assert!(lab.processes().await.is_empty());
    std::fs::write(&snapshot, &whole).unwrap();
    // Its pool may have another model by now.
    let spec = VmSpec { cpu_model: Default::default(), ..spec };
    let machine = driver.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded).await.unwrap();
    assert_eq!(machine.processor(), Some(own));
    machine.resume().await.unwrap();
    counts_beyond(&spec, last).await;
    machine.kill().await.unwrap();
}
