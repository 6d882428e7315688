//! What a flake's builders may do on a node, and what machines may do to the files that they share.

use crate::lab::{Lab, run, text, wait_for};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A builder that prints the user id that it has on the host, and makes an empty image folder if it
/// can read every file that it is given.
const PROBE: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int count, char **words) {
    FILE *map = fopen("/proc/self/uid_map", "r");
    unsigned inside = 0, outside = 0;
    if (map && fscanf(map, "%u %u", &inside, &outside) == 2 && inside == 0) outside = getuid();
    fprintf(stderr, "builder has uid %u\n", outside);
    for (int i = 1; i < count; i++) {
        if (open(words[i], O_RDONLY) < 0) { perror(words[i]); return 3; }
    }
    char bin[4096];
    snprintf(bin, sizeof bin, "%s/bin", getenv("out"));
    return mkdir(getenv("out"), 0755) || mkdir(bin, 0755);
}
"#;

/// Makes a flake whose packages are built by the probe, with an input that is in no lock file.
fn flake(lab: &Lab) -> String {
    let (dir, input) = (lab.root.join("probe"), lab.root.join("input"));
    std::fs::create_dir_all(&dir).expect("directory");
    std::fs::create_dir_all(&input).expect("directory");
    std::fs::write(input.join("file"), "").expect("file");
    std::fs::write(lab.root.join("probe.c"), PROBE).expect("source");
    let mut cc = Command::new("cc");
    cc.args(["-static", "-o"]).arg(dir.join("probe")).arg(lab.root.join("probe.c"));
    run(&mut cc);
    let text = format!(
        r#"{{ inputs.other = {{ url = "path:{input}"; flake = false; }};
        outputs = {{ self, other }}: let
          build = name: more: derivation ({{ inherit name; system = "x86_64-linux";
            builder = "${{self}}/probe"; salt = "{root} ${{other}}"; }} // more);
        in {{ packages.x86_64-linux = {{
          good = build "good" {{ args = [ ]; }};
          reads = build "reads" {{ args = [ "{root}/node.db" ]; }};
          free = build "free" {{ args = [ ]; __noChroot = true; }};
          free-reads = build "free-reads" {{ args = [ "{root}/node.db" ]; __noChroot = true; }};
        }}; }}; }}"#,
        root = lab.root.display(),
        input = input.display(),
    );
    std::fs::write(dir.join("flake.nix"), text).expect("flake");
    dir.display().to_string()
}

fn pool(lab: &Lab, flake: &str, profile: &str) -> String {
    let pool = format!("ci/{profile}");
    let shape = ["--cpus", "1", "--mem", "256"];
    let of = ["pool", "create", &pool, "--flake", flake, "--profile", profile];
    lab.ok(&[&of[..], &shape].concat());
    pool
}

/// Ends the agent, and starts one with this sandbox for builders.
fn restart(lab: &Lab, sandbox: &str) {
    lab.ok(&["agent", "stop"]);
    run(lab.mvm(&["tenant", "list"]).env("MVM_NIX_SANDBOX", sandbox));
}

#[test]
fn a_builder_reads_nothing_of_the_state_directory() {
    let lab = Lab::simulated("sandbox");
    let tenant = ["tenant", "create", "ci", "--net-id", "82", "--subnet", "10.77.82.0/24"];
    lab.ok(&[&tenant[..], &["--max-pools", "8"]].concat());
    restart(&lab, "strict");
    let flake = flake(&lab);
    let [good, reads, free, free_reads] =
        ["good", "reads", "free", "free-reads"].map(|profile| pool(&lab, &flake, profile));
    lab.ok(&["pool", "build", &good]);
    let refused = lab.refused(&["pool", "build", &reads], "flake_build_failed");
    assert!(refused.contains("node.db: No such file"), "{refused}");
    let uid =
        refused.split("builder has uid ").nth(1).and_then(|rest| rest.split_whitespace().next());
    assert!(uid.is_some_and(|uid| uid != "0"), "the builder is root, or said nothing: {refused}");
    let refused = lab.refused(&["pool", "build", &free], "sandbox_refused");
    assert!(refused.contains("--nix-sandbox relaxed"), "{refused}");
    // Without a sandbox, the builder runs as a user who may not read the files either.
    restart(&lab, "relaxed");
    lab.ok(&["pool", "build", &free]);
    let refused = lab.refused(&["pool", "build", &free_reads], "flake_build_failed");
    assert!(refused.contains("node.db: Permission denied"), "{refused}");
    assert!(!Path::new(&flake).join("flake.lock").exists(), "a lock file was written");
}

/// An agent that cannot make namespaces builds nothing, rather than build outside a sandbox.
#[test]
fn without_a_sandbox_nothing_is_built() {
    let lab = Lab::simulated("nosandbox");
    lab.ok(&["tenant", "create", "ci", "--net-id", "83", "--subnet", "10.77.83.0/24"]);
    let good = pool(&lab, &flake(&lab), "good");
    lab.ok(&["agent", "stop"]);
    let weak = |words: &[&str]| {
        let mvm = lab.mvm(words);
        let mut weak = Command::new("ip");
        weak.args(["netns", "exec", &lab.netns, "setpriv", "--bounding-set=-sys_admin"]);
        weak.arg("--inh-caps=-sys_admin").arg(mvm.get_program()).args(mvm.get_args());
        for (name, value) in mvm.get_envs().filter(|(name, _)| *name != "MVM_NETNS") {
            weak.env(name, value.unwrap_or_default());
        }
        weak
    };
    // Doctor reports this before anybody builds.
    let sandbox = |output: Output| {
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        let check = checks.into_iter().find(|check| check["name"] == "build sandbox");
        check.expect("a check of the sandbox")["status"].clone()
    };
    let words = ["doctor", "-o", "json"];
    assert_eq!(sandbox(weak(&words).output().expect("mvm")), "missing");
    assert_eq!(sandbox(lab.mvm(&words).output().expect("mvm")), "ok");
    run(weak(&["tenant", "list"]).env("MVM_NIX_SANDBOX", "strict"));
    let refused = lab.refused(&["pool", "build", &good], "sandbox_unavailable");
    assert!(refused.contains("CAP_SYS_ADMIN"), "{refused}");
}

/// A killed agent leaves nothing running: the next agent ends Nix, and Nix ends its builders.
#[test]
fn what_a_killed_agent_was_building_is_ended_by_the_next() {
    let lab = Lab::simulated("endless");
    lab.ok(&["tenant", "create", "ci", "--net-id", "81", "--subnet", "10.77.81.0/24"]);
    restart(&lab, "strict");
    let dir = lab.root.join("endless");
    std::fs::create_dir_all(&dir).expect("directory");
    std::fs::write(lab.root.join("endless.c"), "int main(void) { for (;;) { } }").expect("source");
    let mut cc = Command::new("cc");
    cc.args(["-static", "-O0", "-o"]).arg(dir.join("endless")).arg(lab.root.join("endless.c"));
    run(&mut cc);
    let mark = format!("builds-for={}", lab.root.display());
    let text = format!(
        r#"{{ outputs = {{ self }}: {{ packages.x86_64-linux.endless = derivation {{
          name = "endless-mvm-test"; system = "x86_64-linux";
          builder = "${{self}}/endless"; args = [ "{mark}" ];
        }}; }}; }}"#
    );
    std::fs::write(dir.join("flake.nix"), text).expect("flake");
    let pool = pool(&lab, &dir.display().to_string(), "endless");
    let mut build = lab.mvm(&["pool", "build", &pool]);
    let mut build = build.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("mvm");
    wait_for("the builder", || running(&mark) == 1);
    let nix = format!("{}/images/.tmp-", lab.root.display());
    assert!(running(&nix) > 0, "Nix does not run");
    lab.kill_agent();
    let _ = build.kill();
    build.wait().expect("mvm");
    assert_eq!(running(&mark), 1, "the builder ended with the agent: this test tests nothing");
    lab.ok(&["tenant", "list"]);
    assert_eq!((running(&mark), running(&nix)), (0, 0), "it is still being built");
    let left = std::fs::read_dir(lab.root.join("images")).expect("images").count();
    assert_eq!(left, 0, "a work directory is left");
}

/// Returns the number of processes with an argument that begins with `word`.
fn running(word: &str) -> usize {
    let words = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).ok();
    let all = std::fs::read_dir("/proc").expect("processes").flatten().filter_map(words);
    all.filter(|line| text(line).split('\0').any(|one| one.starts_with(word))).count()
}

/// Returns whether this version of QEMU can open a privately mapped file for reading only.
fn qemu_can_read_alone() -> bool {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().expect("QEMU");
    let output: Output = output;
    let version = text(&output.stdout);
    let version = version.split("version ").nth(1).unwrap_or_default();
    let mut numbers = version.split(['.', ' ']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (8, 2)
}

#[test]
fn a_machine_can_write_to_nothing_that_others_are_made_of() {
    let lab = Lab::new("readonly");
    lab.tenant_and_pool("ci", "84");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "1", "--wait"]);
    let clone = lab.ids("ci/small", "warm").remove(0);
    let pid = lab.process(&clone);
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten() {
        let Ok(path) = std::fs::read_link(entry.path()) else { continue };
        let Ok(below) = path.strip_prefix(&lab.root) else { continue };
        let number = entry.file_name().into_string().expect("a number");
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).expect("it");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
        let flags = u32::from_str_radix(flags.trim(), 8).expect("octal digits");
        let first = below.components().next().expect("a name").as_os_str().to_os_string();
        seen.push((first.into_string().expect("a name"), path, flags & 3 != 0));
    }
    let of = |folder: &str| seen.iter().filter(|(first, ..)| first == folder).count();
    assert!(of("images") > 0 && of("templates") > 0 && of("instances") > 0, "{seen:?}");
    for (first, path, writes) in &seen {
        let shared = first == "images" || first == "templates" && qemu_can_read_alone();
        assert!(!(shared && *writes), "{} is open for writing", path.display());
    }
    // The files' modes do not let a machine's user open them for writing either.
    for (_, path, _) in seen.iter().filter(|(first, ..)| first == "images" || first == "templates")
    {
        let mode = std::fs::metadata(path).expect("it").permissions().mode();
        assert_eq!(mode & 0o022, 0, "{}", path.display());
    }
    lab.ok(&["pool", "destroy", "ci/small"]);
}

/// A flake whose build never ends.
const ENDLESS: &str = r#"{
  outputs = { self }: {
    packages.x86_64-linux.small = derivation {
      name = "endless-mvm-test"; system = "x86_64-linux"; builder = "/bin/sh";
      args = [ "-c" "while :; do :; done" ];
    };
  };
}"#;

#[test]
fn a_build_goes_on_without_its_client_until_somebody_ends_it() {
    let lab = Lab::new("endless");
    std::fs::write(lab.root.join("flake/flake.nix"), ENDLESS).expect("flake");
    lab.tenant_and_unbuilt_pool("ci", "87");
    lab.refused(&["pool", "build", "ci/small", "--cancel"], "not_found");
    let builds = || !lab.json(&["pool", "info", "ci/small"])["building_since"].is_null();
    let build = || {
        let mut command = lab.mvm(&["pool", "build", "ci/small"]);
        command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("mvm")
    };
    let mut client = build();
    wait_for("the build to begin", builds);
    let said = |client: &mut std::process::Child| {
        let mut words = String::new();
        let from = client.stderr.as_mut().expect("stderr");
        std::io::Read::read_to_string(from, &mut words).expect("words");
        (client.wait().expect("wait").code(), words)
    };
    run(Command::new("kill").args(["-INT", &client.id().to_string()]));
    let (status, words) = said(&mut client);
    assert_eq!(status, Some(130), "{words}");
    assert!(words.contains("goes on") && words.contains("--cancel"), "{words}");
    assert!(builds(), "the agent builds");
    lab.ok(&["pool", "build", "ci/small", "--cancel"]);
    wait_for("no build", || !builds());
    // A client that is there when the build ends gets the reason.
    let mut other = build();
    wait_for("the next build to begin", builds);
    lab.ok(&["pool", "build", "ci/small", "--cancel"]);
    let (status, words) = said(&mut other);
    assert_eq!(status, Some(1), "{words}");
    assert!(words.contains("error[interrupted]"), "{words}");
    lab.refused(&["pool", "build", "ci/small", "--cancel"], "not_found");
    lab.ok(&["pool", "destroy", "ci/small"]);
}

#[test]
fn a_build_without_a_kernel_says_so_before_anything_is_built() {
    let lab = Lab::new("nokernel");
    std::fs::write(lab.root.join("flake/flake.nix"), ENDLESS).expect("flake");
    std::fs::remove_dir_all(lab.root.join("kernels")).expect("kernels");
    lab.tenant_and_unbuilt_pool("ci", "88");
    // If this were built, the build would never end.
    lab.refused(&["pool", "build", "ci/small"], "kernel_missing");
    lab.ok(&["pool", "destroy", "ci/small"]);
}
