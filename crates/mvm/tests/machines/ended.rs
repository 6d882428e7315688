//! A killed test leaves nothing behind, although its destructors do not run.

use crate::lab::{Lab, run, text, wait_for};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
#[ignore = "the other test of this file runs it, and kills it"]
fn a_test_that_does_not_end() {
    let lab = Lab::simulated("killed");
    lab.tenant_and_unbuilt_pool("ci", "43");
    println!("\nlab {}", lab.root.display());
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_killed_test_leaves_no_process_no_namespace_and_no_folder() {
    let own = std::env::current_exe().expect("the test's program");
    let mut test = Command::new(own);
    test.args(["ended::a_test_that_does_not_end", "--exact", "--ignored", "--nocapture"]);
    let mut test = test.stdout(Stdio::piped()).spawn().expect("test");
    let mut lines = BufReader::new(test.stdout.take().expect("output")).lines();
    let root = lines.find_map(|line| Some(line.expect("a line").strip_prefix("lab ")?.to_owned()));
    let root = root.expect("the lab's folder");
    let name = root.rsplit('/').next().expect("a name").to_owned();
    let namespaces = || text(&run(Command::new("ip").args(["netns", "list"])).stdout);
    let served = || Command::new("pgrep").args(["-f", "--", &format!("--root {root} ")]).output();
    assert!(namespaces().contains(&name), "there is something to remove");
    assert!(served().expect("pgrep").status.success(), "there is an agent to end");

    test.kill().expect("kill");
    test.wait().expect("wait");
    wait_for("the folder to go", || !Path::new(&root).exists());
    assert!(!namespaces().contains(&name));
    assert!(!served().expect("pgrep").status.success());
}
