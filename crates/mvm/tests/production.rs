//! The parts that are installed on production machines: the units, and doctor's checks of the host.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn packaging() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("workspace");
    workspace.join("packaging")
}

fn analyze(words: &[&str], unit: &Path) -> Output {
    let output = Command::new("systemd-analyze").args(words).arg(unit).output();
    output.expect("systemd-analyze: scripts/setup installs systemd")
}

/// Writes the unit as it is installed, except for the path of the program.
fn unit(name: &str, dir: &Path) -> PathBuf {
    let text = std::fs::read_to_string(packaging().join("systemd").join(name)).expect("unit");
    assert!(text.contains("ExecStart=/usr/local/bin/mvm "), "{text}");
    let path = dir.join(name);
    std::fs::write(&path, text.replace("/usr/local/bin/mvm", env!("CARGO_BIN_EXE_mvm")))
        .expect("write");
    path
}

#[test]
fn systemd_takes_the_units_as_they_are() {
    let dir = tempfile::tempdir().expect("dir");
    for (name, most) in [("mvm-agent.service", 6.0), ("mvm-coordinator.service", 1.5)] {
        let unit = unit(name, dir.path());
        let verified = analyze(&["verify", "--man=no"], &unit);
        let said = String::from_utf8_lossy(&verified.stderr);
        // systemd-analyze may also complain about other units on this host.
        let ours: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(verified.status.success() && ours.is_empty(), "{said}");
        let judged = analyze(&["security", "--offline=true", "--no-pager"], &unit);
        let judged = String::from_utf8_lossy(&judged.stdout).into_owned();
        let exposure = judged
            .lines()
            .find_map(|line| line.split_once("Overall exposure level for")?.1.split(": ").nth(1))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        assert!(exposure.expect("a level") <= most, "{judged}");
    }
}

#[test]
fn what_the_units_start_is_a_command() {
    for name in ["mvm-agent.service", "mvm-coordinator.service"] {
        let text = std::fs::read_to_string(packaging().join("systemd").join(name)).expect("unit");
        let line = text.lines().find_map(|l| l.strip_prefix("ExecStart=")).expect("ExecStart");
        let words: Vec<&str> =
            line.split_whitespace().skip(1).filter(|word| !word.starts_with('$')).collect();
        let help = Command::new(env!("CARGO_BIN_EXE_mvm")).args(&words).arg("--help").output();
        assert!(help.expect("mvm").status.success(), "{words:?}");
        let outlived = text.contains("KillMode=process");
        assert_eq!(outlived, name == "mvm-agent.service", "machines outlive the agent");
    }
}

#[test]
fn the_doctor_says_what_why_and_the_next_step() {
    let dir = tempfile::tempdir().expect("dir");
    let root = dir.path().join("root");
    std::fs::create_dir(&root).expect("root");
    let doctor = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mvm"));
        command.arg("--root").arg(&root).arg("doctor").args(words);
        command.output().expect("mvm")
    };
    let output = doctor(&["--production", "-o", "json"]);
    let checks: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = checks.as_array().expect("a list").clone();
    let of = |status: &str| checks.iter().filter(|c| c["status"] == status).count();
    let names: Vec<&str> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
    for name in ["hardware KVM", "unit", "storage", "time", "other firewalls", "certificate"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    for check in &checks {
        if check["status"] == "mend" {
            let said = |field: &str| check[field].as_str().is_some_and(|text| text.len() > 10);
            assert!(said("why") && said("remedy"), "{check}");
        }
    }
    // No agent of a unit serves this directory, so at least one check must fail.
    assert!(of("mend") > 0);
    assert_eq!(output.status.code(), Some(1));
    let shown = doctor(&["--production"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("WHY") && shown.contains("mend"), "{shown}");
    let plain = doctor(&["-o", "json"]);
    let plain: Value = serde_json::from_slice(&plain.stdout).expect("JSON");
    assert!(plain.as_array().expect("a list").len() < checks.len());

    // The check of permissions covers the directory with everything in it.
    let state = |checks: &[Value]| {
        let found = checks.iter().find(|check| check["name"] == "permissions");
        found.expect("a check")["status"].as_str().expect("status").to_owned()
    };
    let look = || {
        let output = doctor(&["--production", "-o", "json"]);
        let checks: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        state(checks.as_array().expect("a list"))
    };
    use std::os::unix::fs::PermissionsExt;
    for (mode, status) in [(0o755, "mend"), (0o700, "ok")] {
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(mode)).expect("mode");
        assert_eq!(look(), status, "{mode:o}");
    }
}
