//! The files of a node can be read by nobody else.

use crate::lab::{Lab, run, text, wait_for};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// Returns the files that group or others have any permission for. Only the group of a confined
/// machine may pass through the machine's directory.
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
    /// Starts the agent with a command whose umask allows everything.
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

/// Simulated machines have the same files except the machines' own, so this test, with several
/// restarts, uses them. The next test has real machines.
#[test]
fn a_state_directory_is_closed_whoever_made_it_and_whatever_the_umask() {
    let lab = Lab::simulated("closed");
    set(&lab.root, 0o755);
    // The directory holds a flake, so it could be any directory.
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

    // Modes as an earlier version or a restored backup may have left them.
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
    // An unprivileged user cannot open any file, whatever the path.
    let id = running.rsplit('/').next().expect("id");
    for file in ["node.db", &format!("instances/{id}/scratch.raw"), "agent.log"] {
        let mut other = Command::new("setpriv");
        other.args(["--reuid=65534", "--regid=65534", "--clear-groups", "head", "-c1"]);
        let output = other.arg(lab.root.join(file)).output().expect("setpriv");
        assert!(!output.status.success(), "{file}");
        assert!(text(&output.stderr).contains("Permission denied"), "{output:?}");
    }
    assert_eq!(lab.exec(&running, "echo works"), "works\n");
    // A guest's own files keep their modes: the umask does not affect the image.
    let modes = lab.exec(&running, "stat -c %a / /nix /nix/store /usr/. /etc /tmp");
    assert_eq!(modes.split_whitespace().collect::<Vec<_>>()[..3], ["755", "755", "755"], "{modes}");
    lab.ok(&["instance", "wake", &asleep]);
    lab.ok(&["pool", "destroy", "ci/small"]);
}

/// Returns the files of the state directory that contain these bytes.
fn holders(lab: &Lab, bytes: &str) -> Vec<String> {
    let output = Command::new("grep").args(["-rlaF", "--", bytes]).arg(&lab.root).output();
    text(&output.expect("grep").stdout).lines().map(str::to_owned).collect()
}

/// Passes variables to jobs in every way, under one agent and across two. Afterwards no file
/// contains their values.
fn values_go(lab: &Lab, prints: &str, expected: &str) {
    const SECRETS: [&str; 3] = ["of-the-environment-4711", "of-a-file-4712", "of-the-input-4713"];
    let file = lab.root.with_extension("env");
    std::fs::write(&file, format!("# comment\nFROM_FILE={}\n", SECRETS[1])).expect("file");
    let variables = ["-e", "TOKEN", "--env-file", file.to_str().expect("path")];
    let with = |words: &[&str], script: &str| {
        let words = [words, &["ci/small"], &variables, &["--env-file", "-"]].concat();
        let mut mvm = lab.mvm(&[&words[..], &["--", "sh", "-c", script]].concat());
        mvm.env("TOKEN", SECRETS[0]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut mvm = mvm.spawn().expect("mvm");
        let mut input = mvm.stdin.take().expect("stdin");
        writeln!(input, "FROM_INPUT={}", SECRETS[2]).expect("input");
        drop(input);
        let output = mvm.wait_with_output().expect("mvm");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(with(&["run"], prints).trim(), expected);
    // An agent is killed during a run: the next one has the values for the second attempt.
    let twice = format!("sleep 3; {prints}; exit 1");
    let id = with(&["job", "submit", "--retries", "1"], &twice).trim().to_owned();
    wait_for("the command", || lab.job(&id)["state"] == "running");
    let held = holders(lab, SECRETS[0]);
    assert!(held.iter().any(|path| path.ends_with(&format!("{id}/values.json"))), "{held:?}");
    assert!(!held.iter().any(|path| path.contains("node.db")), "{held:?}");
    lab.kill_agent();
    assert_eq!(lab.ended(&id), 1);
    let job = lab.job(&id);
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(2), "{job}");
    assert_eq!(job["env"], serde_json::json!(["FROM_FILE", "FROM_INPUT", "TOKEN"]));
    assert_eq!(lab.printed(&id).0.matches(expected).count(), 2);
    wait_for("the machines to be gone", || {
        lab.json(&["instance", "list", "ci/small"]).as_array().is_some_and(Vec::is_empty)
    });
    for secret in SECRETS {
        assert_eq!(holders(lab, secret), [""; 0], "{secret}");
    }
    std::fs::remove_file(&file).expect("file");
}

#[test]
fn no_file_holds_the_values_of_an_ended_jobs_variables_on_a_simulation() {
    let lab = Lab::simulated("values");
    lab.tenant_and_pool("ci", "80");
    values_go(&lab, "echo it ran", "it ran");
    lab.ok(&["pool", "destroy", "ci/small"]);
}

#[test]
fn no_file_holds_the_values_of_an_ended_jobs_variables() {
    let lab = Lab::new("vals");
    lab.tenant_and_pool("ci", "81");
    // The lengths prove that the values arrived, without printing them.
    values_go(&lab, "echo ${#TOKEN} ${#FROM_FILE} ${#FROM_INPUT}", "23 14 17");
    let vm = lab.start("ci/small");
    let mut exec = lab.mvm(&["instance", "exec", &vm, "-e", "TOKEN", "-e", "B=c", "--"]);
    exec.args(["sh", "-c", "echo $TOKEN $B"]).env("TOKEN", "a");
    assert_eq!(text(&exec.output().expect("mvm").stdout), "a c\n");
    lab.ok(&["pool", "destroy", "ci/small"]);
}
