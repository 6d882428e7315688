//! Processes that outlast the sleep of their machine.

use crate::lab::{Lab, is_gone, run, wait_for};
use std::process::Command;

/// Returns a sleeping instance whose process lingers, with a program that counts, and a note in its
/// memory and on its disk. A clone's process does not linger, so the instance sleeps and wakes once
/// to get a memory file of its own.
fn sleeper(lab: &Lab) -> (String, u64) {
    let vm = lab.start("ci/small");
    lab.start_counter(&vm);
    lab.exec(&vm, "echo kept > /dev/shm/note");
    lab.ok(&["instance", "sleep", &vm]);
    assert_eq!((lab.pid(&vm), lab.machines()), (None, 0), "a clone's memory is not held");
    lab.ok(&["instance", "wake", &vm]);
    let count = lab.count(&vm);
    lab.ok(&["instance", "sleep", &vm]);
    (vm, count)
}

#[test]
fn a_machine_woken_soon_has_the_process_that_it_had() {
    let lab = Lab::new("linger");
    lab.tenant_and_pool("ci", "27");
    let (vm, mut count) = sleeper(&lab);
    let info = || lab.json(&["instance", "info", &vm]);
    let pid = lab.pid(&vm).expect("its process is still there");
    let kept = info();
    assert_eq!(kept["state"], "sleeping");
    let until = kept["lingers_until"].as_u64().zip(kept["state_since"].as_u64());
    assert_eq!(until.map(|(until, since)| until - since), Some(300_000));
    // Every wake uses the same process. What the machine does in between is in its last snapshot.
    for turn in 0..3 {
        lab.ok(&["instance", "wake", &vm]);
        assert_eq!((lab.pid(&vm), lab.machines()), (Some(pid), 1), "the same process");
        assert!(info()["lingers_until"].is_null());
        assert_eq!(lab.exec(&vm, "cat /dev/shm/note").trim(), "kept");
        assert!(lab.count(&vm) >= count, "the program goes on");
        count = lab.count(&vm);
        lab.exec(&vm, &format!("echo {turn} > /var/turn"));
        let clock: u64 = lab.exec(&vm, "date +%s").trim().parse().expect("date");
        let now = std::time::UNIX_EPOCH.elapsed().expect("now");
        assert!(now.as_secs().abs_diff(clock) <= 2, "the clock is right again");
        lab.ok(&["instance", "sleep", &vm]);
    }
    // The process may be ended for its memory: the snapshot holds the machine's state.
    run(Command::new("kill").args(["-9", &pid.to_string()]));
    wait_for("its end", || is_gone(pid));
    lab.ok(&["instance", "stats", &vm]);
    lab.ok(&["instance", "wake", &vm]);
    assert_ne!(lab.pid(&vm), Some(pid));
    assert_eq!(lab.exec(&vm, "cat /dev/shm/note /var/turn"), "kept\n2\n");
    assert!(lab.count(&vm) >= count, "the program goes on");
    lab.ok(&["instance", "sleep", &vm]);
    lab.ok(&["instance", "stop", &vm]);
    lab.ok(&["instance", "start", &vm]);
    assert_eq!(lab.exec(&vm, "cat /var/turn").trim(), "2", "its disk is whole");
    lab.ok(&["instance", "sleep", &vm]);
    assert_eq!(lab.machines(), 1);
    lab.ok(&["instance", "destroy", &vm]);
    assert_eq!(lab.machines(), 0);
}

#[test]
fn what_lingers_ends_in_time_and_without_loss() {
    let lab = Lab::new("lingers");
    lab.tenant_and_pool("ci", "28");
    let (vm, mut count) = sleeper(&lab);
    let lingers = || assert_eq!((lab.state(&vm).as_str(), lab.machines()), ("sleeping", 1));
    let mut wakes = |why: &str| {
        // An agent must end the process: the command starts one if none runs.
        wait_for(why, || lab.pid(&vm).is_none());
        assert_eq!((lab.state(&vm).as_str(), lab.machines()), ("sleeping", 0));
        lab.ok(&["instance", "wake", &vm]);
        assert_eq!(lab.exec(&vm, "cat /dev/shm/note").trim(), "kept", "{why}");
        let now = lab.count(&vm);
        assert!(now >= count, "the program goes on");
        count = now;
        lab.ok(&["instance", "sleep", &vm]);
    };
    lingers();
    lab.press(40);
    wakes("memory pressure to end it");
    assert_eq!(lab.machines(), 0, "under pressure nothing lingers");
    lab.press(0);
    lab.ok(&["instance", "wake", &vm]);
    lab.ok(&["instance", "sleep", &vm]);
    lingers();
    lab.kill_agent();
    wakes("the next agent to end it");
    lingers();
    lab.ok(&["agent", "stop"]);
    assert_eq!(lab.machines(), 0, "nobody is there who could wake it");
    wakes("the agent's end");
    lingers();
    lab.ok(&["pool", "update", "ci/small", "--linger", "1"]);
    wakes("its time to be over");
    lab.ok(&["pool", "update", "ci/small", "--linger", "300"]);
    lab.ok(&["instance", "wake", &vm]);
    lab.ok(&["instance", "sleep", &vm]);
    lingers();
    lab.ok(&["instance", "sleep", &vm, "--no-linger"]);
    wakes("a command");
    lingers();
    lab.ok(&["pool", "update", "ci/small", "--linger", "0"]);
    wakes("the policy");
    assert_eq!(lab.machines(), 0, "nothing lingers by this policy");
}

/// A process may be killed for its memory just when it is needed, or not answer. Until it has
/// confirmed that its guest runs, the snapshot is the machine's state.
#[test]
fn a_process_that_does_not_take_up_costs_no_memory() {
    let lab = Lab::new("unresumed");
    lab.tenant_and_pool("ci", "29");
    let (vm, mut count) = sleeper(&lab);
    let id = vm.rsplit('/').next().expect("an id");
    let (memory, mark) = {
        let dir = lab.root.join("instances").join(id);
        (dir.join("memory"), dir.join("snapshot.resuming"))
    };
    let written = || std::fs::metadata(&memory).and_then(|meta| meta.modified()).expect("memory");
    for kill in [true, false] {
        let pid = lab.pid(&vm).expect("its process is still there");
        let asleep = written();
        // A stopped process cannot act on the resume. Then it is killed, or never answers.
        run(Command::new("kill").args(["-STOP", &pid.to_string()]));
        let mut wake = lab.mvm(&["instance", "wake", &vm]).spawn().expect("mvm");
        if kill {
            wait_for("the machine to be resumed", || mark.exists());
            run(Command::new("kill").args(["-KILL", &pid.to_string()]));
        }
        assert!(wake.wait().expect("its end").success(), "killed: {kill}");
        assert!(is_gone(pid) && lab.machines() == 1 && !mark.exists());
        assert_ne!(lab.pid(&vm), Some(pid));
        assert_eq!(lab.exec(&vm, "cat /dev/shm/note").trim(), "kept");
        assert!(lab.count(&vm) >= count, "the program goes on");
        count = lab.count(&vm);
        // This distinguishes a guest that has run from one that has not.
        assert!(written() > asleep, "a guest that runs writes to its memory");
        lab.ok(&["instance", "sleep", &vm]);
    }
    let told = lab.ok(&["metrics"]);
    assert!(told.contains("mvm_lingering_unresumed_total 2"), "{told}");
}
