//! One machine through all its states.

use crate::lab::{Lab, is_gone, run, text, wait_for};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[test]
fn a_machine_is_the_same_through_warmth_sleep_and_other_agents() {
    let lab = Lab::new("life");
    lab.tenant_and_pool("ci", "20");
    let vm = lab.start("ci/small");
    lab.exec(&vm, "echo kept > /dev/shm/x");
    lab.start_counter(&vm);

    lab.ok(&["instance", "warm", &vm]);
    let pid = lab.pid(&vm).expect("a warm machine has a process");
    lab.kill_agent();
    assert_eq!(lab.state(&vm), "warm", "another agent has taken it over");
    assert_eq!(lab.pid(&vm), Some(pid));
    let used = cpu_ticks(pid);
    std::thread::sleep(Duration::from_secs(2));
    assert!(cpu_ticks(pid) - used <= 10, "a warm machine uses no CPU");
    let before = lab.count(&vm);

    lab.ok(&["instance", "sleep", &vm]);
    assert!(is_gone(pid), "no process is left of a sleeper");
    assert_eq!(lab.machines(), 0);
    lab.kill_agent();
    assert_eq!(lab.state(&vm), "sleeping");
    std::thread::sleep(Duration::from_secs(2));
    lab.ok(&["instance", "wake", &vm]);
    assert!(lab.count(&vm) >= before, "the program goes on where it was");
    assert_eq!(lab.exec(&vm, "cat /dev/shm/x").trim(), "kept");
    let clock: u64 = lab.exec(&vm, "date +%s").trim().parse().expect("date");
    let now = std::time::UNIX_EPOCH.elapsed().expect("now");
    assert!(now.as_secs().abs_diff(clock) <= 2, "the clock is right again");
    assert_eq!(lab.ok(&["instance", "ssh", &vm, "--", "cat", "/dev/shm/x"]).trim(), "kept");

    lab.ok(&["instance", "stop", &vm]);
    lab.refused(&["instance", "warm", &vm], "wrong_state");
    lab.refused(&["instance", "exec", &vm, "--", "true"], "wrong_state");
    lab.ok(&["instance", "start", &vm]);
    lab.ok(&["instance", "destroy", &vm]);
    assert_eq!(lab.machines(), 0);
    lab.refused(&["instance", "info", &vm], "not_found");
}

/// Returns the CPU time of a process so far, in ticks of 10 ms. proc(5)
fn cpu_ticks(pid: u64) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

/// Returns how often the machine below is put to sleep: KVM is where registers may be lost.
fn sleeps() -> usize {
    if std::env::var_os("MVM_TEST_ACCELERATOR").is_some() { 20 } else { 6 }
}

/// Compiles the program that fills and checks memory and vector registers, for any guest.
fn compile_stress(to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/kvm-host.d/stress.c");
    let compiled = run(Command::new("cc").args(["-static", "-O2", "-o"]).arg(to).arg(source));
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
}

/// Programs are at work on their memory, vector registers and processes each time that the machine
/// is put to sleep, and a file in memory is compared with its checksum.
#[test]
fn all_that_a_machine_knows_survives_many_sleeps() {
    let lab = Lab::new("memory");
    lab.tenant_and_pool("ci", "45");
    let vm = lab.start("ci/small");
    // An emulated host of the tests has no compiler.
    let stress = lab.root.join("stress");
    match std::env::var_os("MVM_TEST_STRESS") {
        Some(compiled) => drop(std::fs::copy(compiled, &stress).expect("MVM_TEST_STRESS")),
        None => compile_stress(&stress),
    }
    lab.ok(&["instance", "cp", &stress.display().to_string(), &format!("{vm}:/tmp")]);
    lab.exec(&vm, "dd if=/dev/urandom of=/dev/shm/kept bs=1M count=16 2>/dev/null");
    let sum = lab.exec(&vm, "sha256sum /dev/shm/kept");
    lab.exec(&vm, "/tmp/stress 100000 400 >/run/said 2>&1 & echo $! >/run/pid");
    for round in 0..sleeps() {
        // Every other process is ended at once, and the next one is started from the disk.
        let lingers = round % 2 == 0;
        let words: &[&str] = if lingers { &["sleep"] } else { &["sleep", "--no-linger"] };
        lab.ok(&[&["instance"], words, &[vm.as_str()]].concat());
        lab.ok(&["instance", "wake", &vm]);
        assert_eq!(lab.exec(&vm, "sha256sum /dev/shm/kept"), sum, "after {round} sleeps");
        let said = lab.exec(&vm, "cat /run/said; kill -0 $(cat /run/pid) 2>&1 || echo wrong");
        assert!(!said.contains("wrong"), "after {round} sleeps: {said}");
    }
    lab.exec(&vm, "kill $(cat /run/pid)");
    wait_for("the programs to end", || {
        let said = lab.exec(&vm, "cat /run/said");
        assert!(!said.contains("wrong"), "at the end: {said}");
        said.contains("right")
    });
    lab.ok(&["instance", "destroy", &vm]);
}
