//! One machine through all its states.

use crate::lab::{Lab, is_gone};
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
