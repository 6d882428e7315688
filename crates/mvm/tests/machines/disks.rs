//! A disk that is full.

use crate::lab::{Lab, wait_for};
use std::io::Write;

/// Fills the lab's disk but for `left` bytes; gives the file that does.
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
    // No byte left: not even the intent can be written. Then a little: the snapshot finds no room.
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
