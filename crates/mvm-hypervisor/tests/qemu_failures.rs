//! The QEMU driver when calls fail, and when another process has the recorded pid.

mod support;

use mvm_hypervisor::{Confine, Hypervisor, Machine, ProcessIdentity, RestoreMemory, VmSpec};
use mvm_model::Mib;
use mvm_model::{Code, Mac};
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use support::{Lab, count, counts_beyond, driver, unrecorded};

/// A paused machine whose guest has counted a little.
async fn paused(spec: &VmSpec) -> std::sync::Arc<dyn Machine> {
    let machine = driver().await.boot(spec, &unrecorded).await.unwrap();
    counts_beyond(spec, 2).await;
    machine.pause().await.unwrap();
    machine
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_adopted_by_who_comes_later_and_by_nobody_else() {
    let lab = Lab::new();
    let spec = lab.spec("a");
    let machine = driver().await.boot(&spec, &unrecorded).await.unwrap();
    counts_beyond(&spec, 0).await;
    let process = machine.process();
    drop(machine);
    let driver = driver().await;
    let found = driver.find(&spec.marker).unwrap();
    assert_eq!(found.as_slice(), std::slice::from_ref(&process));

    // Another start time, another marker, or another process altogether: none is adopted.
    let later = ProcessIdentity { start_time: process.start_time + 1, ..process.clone() };
    assert!(driver.adopt(&spec, &later).await.unwrap().is_none());
    assert_eq!(driver.kill_stray(&later).await.unwrap_err().code(), Code::NotOurs);
    let other = ProcessIdentity { marker: "mvm:hvtest-other".into(), ..process.clone() };
    assert!(driver.adopt(&spec, &other).await.unwrap().is_none());
    assert_eq!(driver.kill_stray(&other).await.unwrap_err().code(), Code::NotOurs);
    let mut foreign = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let start_time = procfs::process::Process::new(foreign.id() as i32).unwrap().stat().unwrap();
    let identity = ProcessIdentity {
        pid: foreign.id(),
        start_time: start_time.starttime,
        marker: spec.marker.clone(),
    };
    assert!(driver.adopt(&spec, &identity).await.unwrap().is_none());
    assert_eq!(driver.kill_stray(&identity).await.unwrap_err().code(), Code::NotOurs);
    assert!(foreign.try_wait().unwrap().is_none(), "it is left alone");
    foreign.kill().unwrap();
    foreign.wait().unwrap();

    let adopted = driver.adopt(&spec, &process).await.unwrap().expect("it is ours");
    assert_eq!(adopted.process(), process);
    counts_beyond(&spec, count(&spec).unwrap()).await;
    adopted.pause().await.unwrap();
    let snapshot = lab.dir.join("snapshot");
    adopted.snapshot(&snapshot, None).await.unwrap();
    adopted.kill().await.unwrap();
    adopted.exited().await;
    assert!(driver.adopt(&spec, &process).await.unwrap().is_none());
    driver.kill_stray(&process).await.unwrap();
    let again = driver.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded).await.unwrap();
    again.resume().await.unwrap();
    counts_beyond(&spec, count(&spec).unwrap()).await;
    driver.kill_stray(&again.process()).await.unwrap();
    again.exited().await;
    assert!(lab.processes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_clone_is_still_known_to_be_one() {
    let lab = Lab::new();
    let spec = lab.spec("template");
    let machine = paused(&spec).await;
    let snapshot = lab.dir.join("snapshot");
    machine.snapshot(&snapshot, None).await.unwrap();
    machine.kill().await.unwrap();
    let mut clone = lab.spec("clone");
    clone.memory = spec.memory.clone();
    let driver = driver().await;
    let machine =
        driver.restore(&clone, &snapshot, RestoreMemory::Clone, &unrecorded).await.unwrap();
    let process = machine.process();
    drop(machine);
    let adopted = driver.adopt(&clone, &process).await.unwrap().expect("it is ours");
    let asleep = lab.dir.join("asleep");
    adopted.snapshot(&asleep, None).await.unwrap();
    adopted.kill().await.unwrap();
    clone.memory = lab.dir.join("own");
    let again = driver.restore(&clone, &asleep, RestoreMemory::Own, &unrecorded).await.unwrap();
    again.resume().await.unwrap();
    counts_beyond(&clone, count(&spec).unwrap()).await;
    again.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_the_machine_paused_and_able_to_go_on() {
    let mut lab = Lab::new();
    let spec = lab.spec("a");
    let machine = paused(&spec).await;
    // First too small for the reserved space; then, once another file is gone, too small for the
    // state.
    let full = lab.tmpfs(256 << 10);
    for _ in 0..2 {
        let error = machine.snapshot(&full.join("snapshot"), None).await.unwrap_err();
        assert_eq!(error.code(), Code::NoSpace, "{error}");
        assert_eq!(std::fs::read_dir(&full).unwrap().count(), 0, "no half of it is left");
        assert!(machine.stats().await.unwrap().paused);
    }
    let nowhere = machine.snapshot(Path::new("/nonexistent/snapshot"), None).await.unwrap_err();
    assert_eq!(nowhere.code(), Code::SnapshotFailed, "{nowhere}");
    machine.resume().await.unwrap();
    counts_beyond(&spec, count(&spec).unwrap()).await;
    machine.pause().await.unwrap();
    machine.snapshot(&lab.dir.join("snapshot"), None).await.unwrap();
    machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_kernel_is_told_with_what_was_said() {
    let lab = Lab::new();
    let driver = driver().await;
    let mut spec = lab.spec("text");
    spec.kernel.image = lab.dir.join("text.kernel");
    std::fs::write(&spec.kernel.image, "no kernel at all\n".repeat(100)).unwrap();
    let error = refused(&driver.boot(&spec, &unrecorded).await);
    assert!(error.starts_with("invalid_spec") && error.contains("no Linux kernel"), "{error}");

    // The file begins like a kernel, so only QEMU itself finds the fault.
    let mut spec = lab.spec("cut");
    let whole = std::fs::read(support::kernel()).unwrap();
    spec.kernel.image = lab.dir.join("cut.kernel");
    std::fs::write(&spec.kernel.image, &whole[..20_000]).unwrap();
    let console = spec.dir.join("console.log");
    std::fs::write(&console, "earlier words\n").unwrap();
    let error = refused(&driver.boot(&spec, &unrecorded).await);
    assert!(error.starts_with("died_at_boot") && error.contains("exit status 1"), "{error}");
    assert!(error.contains("--- qemu.log") && !error.contains("earlier words"), "{error}");

    // The kernel boots and finds no root: an ended machine reports so, with the kernel's last
    // words.
    let mut spec = lab.spec("rootless");
    spec.kernel.initrd = None;
    let machine = driver.boot(&spec, &unrecorded).await.unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(60), machine.exited()).await.unwrap();
    assert!(!exit.clean && exit.reason.contains("kernel panicked"), "{exit:?}");
    assert!(exit.console.starts_with("Kernel panic"), "{exit:?}");
    assert_eq!(machine.resume().await.unwrap_err().code(), Code::Gone);
    machine.kill().await.unwrap();
    assert!(lab.processes().await.is_empty());
}

fn refused<T>(result: &mvm_hypervisor::Result<T>) -> String {
    let error = result.as_ref().err().expect("an error");
    format!("{}: {error}", error.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_snapshot_is_told_and_leaves_no_process() {
    let lab = Lab::new();
    let spec = lab.spec("a");
    let machine = paused(&spec).await;
    let snapshot = lab.dir.join("snapshot");
    machine.snapshot(&snapshot, None).await.unwrap();
    machine.kill().await.unwrap();
    let whole = std::fs::read(&snapshot).unwrap();
    let driver = driver().await;
    let restore = async |spec: &VmSpec| {
        let restored = driver.restore(spec, &snapshot, RestoreMemory::Own, &unrecorded).await;
        let error = refused(&restored);
        assert!(lab.processes().await.is_empty(), "{error}");
        error
    };
    std::fs::write(&snapshot, &whole[..whole.len() / 2]).unwrap();
    assert!(restore(&spec).await.contains("cut off"));
    std::fs::write(&snapshot, b"QEVM").unwrap();
    assert!(restore(&spec).await.contains("not an mvm snapshot"));
    std::fs::remove_file(&snapshot).unwrap();
    assert!(restore(&spec).await.contains("No such file"));

    // A state with the right checksum that QEMU cannot load: the error has QEMU's own words.
    let state = b"this is no device state".repeat(100);
    write_with_header(&snapshot, &whole, &state);
    let error = restore(&spec).await;
    assert!(error.starts_with("restore_failed") && error.contains("QEMU ended"), "{error}");
    assert!(error.contains("migration"), "{error}");

    std::fs::write(&snapshot, &whole).unwrap();
    let mut larger = spec.clone();
    larger.mem_mib = Mib(256);
    assert!(restore(&larger).await.contains("MiB of memory"));
    let memory = std::fs::OpenOptions::new().write(true).open(&spec.memory).unwrap();
    memory.set_len(1 << 20).unwrap();
    assert!(restore(&spec).await.contains("instead of"));
    memory.set_len(spec.mem_mib.bytes()).unwrap();
    let restored = driver.restore(&spec, &snapshot, RestoreMemory::Own, &unrecorded).await;
    restored.unwrap().kill().await.unwrap();
}

/// Writes the header of `whole`, changed to fit another state.
fn write_with_header(path: &Path, whole: &[u8], state: &[u8]) {
    use sha2::Digest;
    let end = whole.iter().position(|byte| *byte == b'\n').unwrap();
    let start = whole.iter().position(|byte| *byte == b'{').unwrap();
    let mut header: serde_json::Value = serde_json::from_slice(&whole[start..end]).unwrap();
    let sum = sha2::Sha256::digest(state);
    header["length"] = state.len().into();
    header["sha256"] = sum.iter().map(|b| format!("{b:02x}")).collect::<String>().into();
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&whole[..start]).unwrap();
    file.write_all(header.to_string().as_bytes()).unwrap();
    file.write_all(b"\n").unwrap();
    file.write_all(state).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_second_process_enters_a_live_machines_directory() {
    let lab = Lab::new();
    let spec = lab.spec("a");
    let machine = paused(&spec).await;
    let mut other = spec.clone();
    other.memory = lab.dir.join("other.mem");
    let second = driver().await.boot(&other, &unrecorded).await;
    assert!(refused(&second).starts_with("already_running"));
    machine.resume().await.unwrap();
    counts_beyond(&spec, count(&spec).unwrap()).await;
    assert_eq!(lab.processes().await, [machine.process()]);
    machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_that_is_given_up_leaves_nothing() {
    let lab = Lab::new();
    for after in [0, 5, 20, 40] {
        let spec = lab.spec(&format!("after-{after}"));
        let driver = driver().await;
        let boot = driver.boot(&spec, &unrecorded);
        let _ = tokio::time::timeout(Duration::from_millis(after), boot).await;
        for _ in 0..200 {
            if lab.processes().await.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // A boot that finished in time returned a machine before it was dropped, so that machine
        // lives on by design.
        for process in lab.processes().await {
            assert!(after >= 20, "given up after {after} ms");
            driver.kill_stray(&process).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn specifications_that_cannot_run_are_refused_before_anything_starts() {
    let lab = Lab::new();
    let driver = driver().await;
    let mut spec = lab.spec("a");
    spec.confine = Some(Confine { uid: 0, gid: 0 });
    assert!(refused(&driver.boot(&spec, &unrecorded).await).contains("other than 0"));
    let mut spec = lab.spec("a");
    spec.memory = "memory".into();
    assert!(refused(&driver.boot(&spec, &unrecorded).await).contains("not absolute"));
    let mut spec = lab.spec("a");
    spec.nic = Some(mvm_hypervisor::Nic {
        tap: "mvmnone0".into(),
        mac: Mac::from_bytes([2, 0, 0, 0, 0, 9]),
    });
    spec.confine = None;
    let error = refused(&driver.boot(&spec, &unrecorded).await);
    assert!(error.starts_with("invalid_spec") && error.contains("mvmnone0"), "{error}");
    assert!(lab.processes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_stopped_holds_nobody_up() {
    let lab = Lab::new();
    let spec = lab.spec("a");
    let machine = driver().await.boot(&spec, &unrecorded).await.unwrap();
    counts_beyond(&spec, 0).await;
    let pid = rustix::process::Pid::from_raw(machine.process().pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // What the kernel counts is still reported.
    let stats = machine.stats().await.unwrap();
    assert!(stats.resident_kib > 0 && !stats.paused, "{stats:?}");
    // While one call waits for its deadline, others do not wait behind it for ever.
    let looks = futures::future::join_all((0..8).map(|_| machine.stats()));
    let calls = async { tokio::join!(machine.pause(), looks) };
    let calls = tokio::time::timeout(Duration::from_secs(60), calls).await;
    let (paused, looks) = calls.expect("no call hangs");
    assert_eq!(paused.unwrap_err().code(), Code::QmpTimeout);
    assert!(looks.iter().all(Result::is_ok), "{looks:?}");
    machine.kill().await.unwrap();
    assert!(lab.processes().await.is_empty());
}
