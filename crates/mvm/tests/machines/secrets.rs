//! What a node holds is nobody else's to read.

use crate::lab::{Lab, run, text};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

/// What group or others may do anything with; only the way through a confined machine's directory is
/// its group's.
fn open_to_others(path: &Path) -> Vec<String> {
    let meta = std::fs::symlink_metadata(path).expect("a path");
    let mut found = Vec::new();
    let through = if meta.is_dir() && meta.gid() != 0 { 0o010 } else { 0 };
    if !meta.is_symlink() && meta.mode() & 0o077 & !through != 0 {
        found.push(format!("{} {:04o}", path.display(), meta.mode() & 0o7777));
    }
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).expect("folder") {
            found.extend(open_to_others(&entry.expect("entry").path()));
        }
    }
    found
}

fn set(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("mode");
}

impl Lab {
    /// Starts the agent by a command whose user hands out everything.
    fn start_careless(&self) {
        let mvm = self.mvm(&["tenant", "list"]);
        let mut careless = Command::new("sh");
        careless.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(mvm.get_program());
        careless.args(mvm.get_args());
        for (name, value) in mvm.get_envs() {
            careless.env(name, value.unwrap_or_default());
        }
        run(&mut careless);
    }

    fn private(&self) -> String {
        let output = self.mvm(&["doctor", "-o", "json"]).output().expect("mvm");
        let checks: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let mut checks = checks.as_array().expect("a list").iter();
        let check = checks.find(|check| check["name"] == "private").expect("a check");
        check["status"].as_str().expect("status").to_owned()
    }
}

/// Which files are there is the same with simulated machines but for the machines' own, so this goes
/// through restarts; the test after it has real ones.
#[test]
fn a_state_directory_is_closed_whoever_made_it_and_whatever_the_umask() {
    let lab = Lab::simulated("closed");
    set(&lab.root, 0o755);
    // It holds a flake, so it could be anything.
    let refused = lab.refused(&["tenant", "list"], "root_open");
    assert!(refused.contains("chmod 0700"), "{refused}");
    assert!(!lab.root.join("start.lock").exists() && !lab.root.join("node.db").exists());
    set(&lab.root, 0o700);
    set(&lab.root.join("kernels"), 0o777);
    lab.start_careless();
    assert_eq!(open_to_others(&lab.root), [""; 0]);
    lab.tenant_and_pool("ci", "78");
    lab.ok(&["run", "ci/small", "--", "true"]);
    assert_eq!(open_to_others(&lab.root), [""; 0]);
    assert_eq!(lab.private(), "ok");

    // What an earlier version, or a restored backup, has left.
    lab.ok(&["agent", "stop"]);
    run(Command::new("chmod").args(["-R", "a+rwX"]).arg(&lab.root));
    assert_eq!(lab.private(), "mend");
    lab.start_careless();
    assert_eq!(open_to_others(&lab.root), [""; 0]);
    assert_eq!(lab.private(), "ok");
    let log = std::fs::read_to_string(lab.root.join("agent.log")).expect("log");
    assert!(log.contains("the state directory was open to others"), "{log}");
    lab.ok(&["run", "ci/small", "--", "true"]);
    lab.ok(&["pool", "destroy", "ci/small"]);
}

#[test]
fn nobody_else_reads_what_a_node_with_real_machines_holds() {
    let lab = Lab::new("private");
    lab.start_careless();
    lab.tenant_and_pool("ci", "79");
    let asleep = lab.start("ci/small");
    lab.ok(&["instance", "sleep", &asleep]);
    let running = lab.start("ci/small");
    lab.ok(&["run", "ci/small", "--", "true"]);
    assert_eq!(open_to_others(&lab.root), [""; 0]);
    // And by trying: nobody's user gets at nothing, whatever the path.
    let id = running.rsplit('/').next().expect("id");
    for file in ["node.db", &format!("instances/{id}/scratch.raw"), "agent.log"] {
        let mut other = Command::new("setpriv");
        other.args(["--reuid=65534", "--regid=65534", "--clear-groups", "head", "-c1"]);
        let output = other.arg(lab.root.join(file)).output().expect("setpriv");
        assert!(!output.status.success(), "{file}");
        assert!(text(&output.stderr).contains("Permission denied"), "{output:?}");
    }
    assert_eq!(lab.exec(&running, "echo works"), "works\n");
    // A guest's own files keep their modes: its image is not the umask's.
    let modes = lab.exec(&running, "stat -c %a / /nix /nix/store /usr/. /etc /tmp");
    assert_eq!(modes.split_whitespace().collect::<Vec<_>>()[..3], ["755", "755", "755"], "{modes}");
    lab.ok(&["instance", "wake", &asleep]);
    lab.ok(&["pool", "destroy", "ci/small"]);
}
