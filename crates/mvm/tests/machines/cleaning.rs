//! The remains of a state directory that is gone for good are removed, and nothing of a living one.

use crate::lab::{Lab, is_gone, run, text, wait_for};
use serde_json::Value;
use std::process::Command;

/// A process that is killed when the test ends.
struct Mortal(u64);

impl Drop for Mortal {
    fn drop(&mut self) {
        if !is_gone(self.0) {
            let _ = Command::new("kill").args(["-9", &self.0.to_string()]).status();
        }
    }
}

#[test]
fn orphans_are_removed_and_nothing_of_a_root_that_lives() {
    let (gone, mut lives) = (Lab::new("gone"), Lab::simulated("lives"));
    let own = std::mem::replace(&mut lives.netns, gone.netns.clone());
    lives.ok(&["tenant", "create", "b", "--net-id", "43", "--subnet", "10.77.43.0/24"]);
    gone.tenant_and_pool("a", "42");
    let vm = gone.start("a/small");
    let id = std::fs::read_to_string(gone.root.join("root-id")).expect("id");
    let process = Mortal(gone.pid(&vm).expect("a process"));
    let of_gone = |words: &[&str]| {
        let output = lives.mvm(&[words, &["-o", "json"]].concat()).output().expect("mvm");
        let items: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let items = items.as_array().cloned().unwrap_or_default().into_iter();
        let ours = items.filter(|item| item["owner"] == id[..4]).collect::<Vec<_>>();
        let other = std::fs::read_to_string(lives.root.join("root-id")).expect("id");
        assert!(!text(&output.stdout).contains(&other[..4]), "one that lives is named");
        (ours, output)
    };
    let lists_nothing = |why: &str| {
        let (ours, _) = of_gone(&["net", "clean", "--yes"]);
        assert!(ours.is_empty(), "{why}: {ours:?}");
        assert!(!is_gone(process.0), "{why}");
    };
    lists_nothing("it is there");
    // A missing path proves nothing by itself: the folder may have been moved.
    let elsewhere = gone.root.with_extension("moved");
    std::fs::rename(&gone.root, &elsewhere).expect("moved");
    lists_nothing("it was moved, and its agent lives");
    std::fs::rename(&elsewhere, &gone.root).expect("moved");
    gone.kill_agent();
    std::fs::rename(&gone.root, &elsewhere).expect("moved");
    lists_nothing("it was moved, and its machine has its files");
    std::fs::rename(&elsewhere, &gone.root).expect("moved");

    // An agent may still have the lock open, although the directory is deleted.
    gone.ok(&["tenant", "list"]);
    let again = Mortal(gone.json(&["agent", "status"])["pid"].as_u64().expect("pid"));
    run(Command::new("rm").arg("-rf").arg(&gone.root));
    let (ours, _) = of_gone(&["net", "clean", "--yes"]);
    let told = format!("agent pid {} has its lock open: end it first", again.0);
    assert!(ours.len() == 1 && ours[0]["name"] == told.as_str(), "{ours:?}");
    assert!(ours[0]["verdict"] == "lives" && !is_gone(process.0), "{ours:?}");
    let words = ["tenant", "create", "c", "--net-id", "45", "--subnet", "10.77.42.0/24"];
    let said = lives.refused(&words, "subnet_taken");
    assert!(said.contains(&told), "{said}");
    run(Command::new("kill").args(["-9", &again.0.to_string()]));
    wait_for("the agent to end", || is_gone(again.0));
    drop(again);

    let links = gone.links();
    let (ours, output) = of_gone(&["net", "clean"]);
    let kinds: Vec<&str> = ours.iter().filter_map(|item| item["kind"].as_str()).collect();
    for kind in ["process", "bridge", "tap", "table"] {
        assert!(kinds.contains(&kind), "{kind}: {ours:?}");
    }
    assert!(ours.iter().all(|item| item["verdict"] == "orphan" && item["removed"] == false));
    assert!(text(&output.stderr).contains("not_confirmed"), "{}", text(&output.stderr));
    assert!(!output.status.success() && gone.links() == links && !is_gone(process.0));

    let (ours, output) = of_gone(&["net", "clean", "--yes"]);
    assert!(output.status.success() && ours.iter().all(|item| item["removed"] == true), "{ours:?}");
    assert!(is_gone(process.0));
    let left = gone.links();
    assert!(left.len() == 1 && left[0].ends_with("-b43"), "{left:?}");
    let tables =
        run(Command::new("ip").args(["netns", "exec", &gone.netns, "nft", "list", "tables"]));
    assert!(!text(&tables.stdout).contains(&id[..4]), "{}", text(&tables.stdout));
    assert!(of_gone(&["net", "clean"]).0.is_empty());
    // The agent's rules have excluded the other tenant's subnet until now.
    wait_for("the rules", || lives.mvm(&["net", "verify"]).output().expect("mvm").status.success());
    run(Command::new("ip").args(["netns", "del", &own]));
}
