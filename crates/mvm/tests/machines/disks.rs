//! Full disks.

use crate::lab::{Lab, run, text, wait_for};
use std::io::Write;
use std::process::Command;

/// Fills the lab's disk except for `left` bytes. Returns the file that fills it.
fn fill(lab: &Lab, left: u64) -> std::path::PathBuf {
    let path = lab.root.join("filler");
    let mut file = std::fs::File::create(&path).expect("filler");
    let piece = vec![1; 64 << 10];
    while file.write_all(&piece).is_ok() {}
    let length = file.metadata().expect("length").len();
    file.set_len(length.saturating_sub(left)).expect("shorten");
    path
}

#[test]
fn a_machine_that_cannot_be_put_to_sleep_stays_as_it_was() {
    let lab = Lab::on_disk("full", 1500);
    lab.tenant_and_pool("ci", "50");
    let vm = lab.start("ci/small");
    lab.start_counter(&vm);
    lab.ok(&["instance", "warm", &vm]);
    let pid = lab.pid(&vm);
    // First not a byte is free, so not even the intent can be written. Then a little is free, but
    // not enough for the snapshot.
    for left in [0, 1 << 20] {
        let filler = fill(&lab, left);
        lab.refused(&["instance", "sleep", &vm], "no_space");
        assert_eq!((lab.state(&vm).as_str(), lab.pid(&vm)), ("warm", pid));
        lab.refused(&["instance", "create", "ci/small", "--start"], "no_space");
        std::fs::remove_file(filler).expect("remove");
    }
    let before = lab.count(&vm);
    lab.ok(&["instance", "sleep", &vm]);
    lab.ok(&["instance", "wake", &vm]);
    wait_for("the counter to go on", || lab.count(&vm) > before);
}

#[test]
fn an_image_that_finds_no_room_leaves_nothing() {
    let lab = Lab::on_disk("noimage", 400);
    lab.tenant_and_unbuilt_pool("ci", "51");
    let filler = fill(&lab, 3 << 20);
    let build = ["pool", "build", "ci/small", "--override-input", &crate::lab::nixpkgs()];
    lab.refused(&build, "no_space");
    assert_eq!(lab.json(&["image", "list"]).as_array().map(Vec::len), Some(0));
    std::fs::remove_file(filler).expect("remove");
    lab.ok(&build);
}

#[test]
fn a_full_disk_takes_no_memory_from_a_machine_that_has_slept() {
    let lab = Lab::on_ext4("fullmem", 2000);
    lab.tenant_and_pool("ci", "52");
    let vm = lab.start("ci/small");
    lab.ok(&["instance", "sleep", &vm]);
    lab.ok(&["instance", "wake", &vm]);
    let pid = lab.pid(&vm);
    let filler = fill(&lab, 36 << 20);
    // Fills pages that the guest has never written before.
    let words = "yes 0123456789 | head -c 80000000 > /run/new; sha256sum < /run/new";
    let sum = lab.exec(&vm, words);
    assert_eq!((lab.state(&vm).as_str(), lab.pid(&vm)), ("running", pid));
    std::fs::remove_file(filler).expect("remove");
    // A sleeping machine takes the space of its content only; when it is awake, all of its memory
    // is reserved.
    lab.ok(&["instance", "sleep", &vm]);
    lab.kill_agent();
    lab.ok(&["instance", "wake", &vm]);
    assert_eq!(lab.exec(&vm, "sha256sum < /run/new"), sum);
}

#[test]
fn a_guest_that_fills_the_disk_is_paused_and_goes_on_when_there_is_room() {
    let lab = Lab::on_ext4("pause", 2000);
    lab.tenant_and_pool("ci", "53");
    let vm = lab.start("ci/small");
    let paused = || lab.json(&["instance", "info", &vm])["paused"].clone();
    let write = "yes 0123456789 | head -c 60000000";
    let program = "while ! test -e /run/go; do sleep 0.1; done; WRITE > /big && sync && sha256sum /big > /run/sum";
    lab.exec(&vm, &format!("({}) > /dev/null 2>&1 &", program.replace("WRITE", write)));
    // After this, only the scratch disk has data to write, and only after the agent has answered
    // the command.
    lab.exec(&vm, "sync");
    let filler = fill(&lab, 28 << 20);
    lab.exec(&vm, "(sleep 2; touch /run/go) > /dev/null 2>&1 &");
    wait_for("the machine to be paused", || !paused().is_null());
    let words = "no space on the host for disk scratch";
    assert_eq!((&paused()["cause"], &paused()["reason"]), (&"no_space".into(), &words.into()));
    assert!(lab.ok(&["instance", "list"]).contains(&format!("running (paused: {words})")));
    assert!(
        lab.ok(&["metrics"])
            .contains("mvm_paused{tenant=\"ci\",pool=\"small\",cause=\"no_space\"} 1")
    );
    // The next agent sees the pause too. It waits for a job's space for one second only.
    lab.kill_agent();
    let restarted = lab.mvm(&["instance", "list"]).env("MVM_NO_SPACE_TIMEOUT", "1").output();
    assert!(restarted.is_ok_and(|listed| listed.status.success()));
    wait_for("the next agent to see it", || paused()["cause"] == "no_space");
    std::fs::remove_file(filler).expect("remove");
    wait_for("the machine to go on", || paused().is_null());
    wait_for("the program to end", || !lab.exec(&vm, "cat /run/sum || :").is_empty());
    let sum = run(Command::new("sh").args(["-c", &format!("{write} | sha256sum")]));
    let sum = text(&sum.stdout).split(' ').next().expect("sum").to_owned();
    assert!(lab.exec(&vm, "cat /run/sum").contains(&sum));
    let events = lab.ok(&["events"]);
    for words in [&*format!("paused: {words}"), "goes on"] {
        assert!(events.contains(words), "{words}: {events}");
    }
    // Enough space to start a machine, but not for the output of its job.
    let filler = fill(&lab, 90 << 20);
    let script = "yes | head -c 100000000 > /big; sync";
    let job = lab.mvm(&["run", "ci/small", "--", "sh", "-c", script]).output().expect("mvm");
    let words = text(&job.stderr);
    assert_eq!(job.status.code(), Some(125), "{words}");
    assert!(words.contains("no_space: it was paused for"), "{words}");
    std::fs::remove_file(filler).expect("remove");
}
