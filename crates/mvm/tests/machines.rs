//! The whole way on real machines, in a network namespace and a state directory of the test's own.
//!
//! Needs root, QEMU, Nix, nft, and the fixtures that `./test` makes: `MVM_TEST_KERNELS` (the
//! `kernels` folder of a state directory) and `MVM_TEST_DEBIAN_PKGS`.

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const FLAKE: &str = r#"{
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-24.05";
  outputs = { self, nixpkgs }: let pkgs = nixpkgs.legacyPackages.x86_64-linux; in {
    packages.x86_64-linux.small = pkgs.buildEnv {
      name = "small";
      paths = with pkgs; [ bash coreutils openssh busybox ];
    };
  };
}"#;

/// A state directory and a network namespace; all of it goes when the test ends, however it ends.
struct Lab {
    root: PathBuf,
    netns: String,
}

impl Lab {
    fn new(name: &str) -> Lab {
        let netns = format!("mvm-test-{name}-{}", std::process::id());
        let root = std::env::temp_dir().join(&netns);
        std::fs::create_dir_all(root.join("flake")).expect("directory");
        std::fs::write(root.join("flake/flake.nix"), FLAKE).expect("flake");
        run(Command::new("ip").args(["netns", "add", &netns]));
        let lab = Lab { root, netns };
        let kernels = std::env::var("MVM_TEST_KERNELS").expect("MVM_TEST_KERNELS: run ./test");
        run(Command::new("cp").args(["-r", &kernels]).arg(lab.root.join("kernels")));
        lab
    }

    fn mvm(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mvm"));
        command.arg("--root").arg(&self.root).args(words).env("MVM_NETNS", &self.netns);
        command.stdin(Stdio::null());
        command
    }

    /// Runs it; it must succeed. Gives what it printed.
    fn ok(&self, words: &[&str]) -> String {
        let output = self.mvm(words).output().expect("mvm");
        assert!(output.status.success(), "mvm {words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs it; it must be refused with this code. Gives its words.
    fn refused(&self, words: &[&str], code: &str) -> String {
        let output = self.mvm(words).output().expect("mvm");
        let words_of = text(&output.stderr);
        assert!(!output.status.success(), "mvm {words:?} succeeded");
        assert!(words_of.contains(&format!("error[{code}]")), "mvm {words:?}: {words_of}");
        words_of
    }

    fn json(&self, words: &[&str]) -> Value {
        let mut words = words.to_vec();
        words.extend(["-o", "json"]);
        serde_json::from_str(&self.ok(&words)).expect("JSON")
    }

    fn exec(&self, instance: &str, script: &str) -> String {
        self.ok(&["instance", "exec", instance, "--", "sh", "-c", script])
    }

    fn state(&self, instance: &str) -> String {
        self.json(&["instance", "info", instance])["state"].as_str().expect("state").to_owned()
    }

    fn pid(&self, instance: &str) -> Option<u64> {
        self.json(&["instance", "info", instance])["pid"].as_u64()
    }

    fn tenant_and_pool(&self, tenant: &str, net: &str) {
        let subnet = format!("10.77.{net}.0/24");
        self.ok(&["tenant", "create", tenant, "--net-id", net, "--subnet", &subnet]);
        let flake = self.root.join("flake");
        let pool = format!("{tenant}/small");
        let flake = flake.to_str().expect("path");
        self.ok(&[
            "pool",
            "create",
            &pool,
            "--flake",
            flake,
            "--profile",
            "small",
            "--cpus",
            "1",
            "--mem",
            "256",
            "--data-disk",
            "64",
            "--scratch-disk",
            "128",
        ]);
        let packages = std::env::var("MVM_TEST_DEBIAN_PKGS").expect("MVM_TEST_DEBIAN_PKGS");
        let input = format!("nixpkgs=path:{packages}");
        self.ok(&["pool", "build", &pool, "--override-input", &input]);
    }

    fn start(&self, pool: &str) -> String {
        self.ok(&["instance", "create", pool, "--start"]).trim().to_owned()
    }

    /// SIGKILL to the agent; the next command starts another.
    fn kill_agent(&self) {
        let pid = self.json(&["agent", "status"])["pid"].as_u64().expect("pid");
        run(Command::new("kill").args(["-9", &pid.to_string()]));
        wait_for("the agent to end", || is_gone(pid));
    }

    /// Processes of machines of this lab.
    fn machines(&self) -> usize {
        let id = std::fs::read_to_string(self.root.join("root-id")).expect("root-id");
        let mark = format!("guest=mvm:{id}:");
        let found = Command::new("pgrep").args(["-fc", &mark]).output().expect("pgrep");
        text(&found.stdout).trim().parse().expect("number")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let agent = self.mvm(&["agent", "status", "-o", "json"]).output();
        if let Some(status) = agent.ok().filter(|output| output.status.success()) {
            let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
            let pid = status["pid"].to_string();
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
        if let Ok(id) = std::fs::read_to_string(self.root.join("root-id")) {
            let found = Command::new("pgrep").args(["-f", &format!("guest=mvm:{id}:")]).output();
            for pid in found.map(|o| text(&o.stdout)).unwrap_or_default().lines() {
                let _ = Command::new("kill").args(["-9", pid]).status();
            }
        }
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).status();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("start");
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    output
}

/// Whether the process has ended; one that nobody has waited for yet (a zombie) has.
fn is_gone(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_machine_is_the_same_through_warmth_sleep_and_other_agents() {
    let lab = Lab::new("life");
    lab.tenant_and_pool("ci", "20");
    let vm = lab.start("ci/small");
    lab.exec(&vm, "echo kept > /dev/shm/x; (while :; do n=$((n+1)); echo $n > /run/n; sleep 0.1; done) >/dev/null 2>&1 & while ! test -s /run/n; do sleep 0.1; done");
    let count = |lab: &Lab| lab.exec(&vm, "cat /run/n").trim().parse::<u64>().expect("count");

    lab.ok(&["instance", "warm", &vm]);
    let pid = lab.pid(&vm).expect("a warm machine has a process");
    lab.kill_agent();
    assert_eq!(lab.state(&vm), "warm", "another agent has taken it over");
    assert_eq!(lab.pid(&vm), Some(pid));
    let before = count(&lab);

    lab.ok(&["instance", "sleep", &vm]);
    assert!(is_gone(pid), "no process is left of a sleeper");
    assert_eq!(lab.machines(), 0);
    lab.kill_agent();
    assert_eq!(lab.state(&vm), "sleeping");
    std::thread::sleep(Duration::from_secs(2));
    lab.ok(&["instance", "wake", &vm]);
    assert!(count(&lab) >= before, "the program goes on where it was");
    assert_eq!(lab.exec(&vm, "cat /dev/shm/x").trim(), "kept");
    let clock: u64 = lab.exec(&vm, "date +%s").trim().parse().expect("date");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now");
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

#[test]
fn a_job_gets_a_machine_of_its_own_and_leaves_nothing() {
    let lab = Lab::new("run");
    lab.tenant_and_pool("ci", "21");
    lab.ok(&["pool", "scale", "ci/small", "--warm", "1", "--sleeping", "1", "--wait"]);
    // Ids of those for which it holds.
    let ids = |lab: &Lab, holds: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let all = lab.json(&["instance", "list", "ci/small"]);
        let all = all.as_array().expect("list").iter().filter(|i| holds(i));
        all.map(|i| i["instance_id"].as_str().expect("id").to_owned()).collect()
    };
    // The first job gets the warm one.
    let mut used = ids(&lab, &|i| i["state"] == "warm");
    assert_eq!(used.len(), 1);
    std::fs::write(lab.root.join("input"), "from outside").expect("input");
    let input = lab.root.join("input");
    let out = lab.root.join("out");
    let back = format!("/work/result:{}", out.display());
    let input = input.to_str().expect("path");
    let job = [
        "run",
        "ci/small",
        "--in",
        input,
        "--out",
        &back,
        "--",
        "sh",
        "-c",
        "cat input > result; echo said; exit 7",
    ];
    let output = lab.mvm(&job).output().expect("mvm");
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "said\n");
    assert_eq!(std::fs::read_to_string(out.join("result")).expect("result"), "from outside");
    let timed =
        lab.mvm(&["run", "ci/small", "--timeout", "1", "--", "sleep", "60"]).output().expect("mvm");
    assert_eq!(timed.status.code(), Some(124));
    // A client that is killed gives its machine back as well.
    let mut killed = lab.mvm(&["run", "ci/small", "--", "sleep", "60"]).spawn().expect("mvm");
    wait_for("a lease", || {
        let leased = ids(&lab, &|i| !i["lease"].is_null());
        used.extend(leased.iter().cloned());
        !leased.is_empty()
    });
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    wait_for("the pool to be as before", || {
        let pool = lab.json(&["pool", "info", "ci/small"]);
        pool["leased"] == 0 && pool["ready_counts"] == pool["desired_counts"]
    });
    // Their destruction goes on beside the refill.
    wait_for("the used machines to be gone", || {
        ids(&lab, &|_| true).iter().all(|id| !used.contains(id)) && lab.machines() == 1
    });
    lab.ok(&["pool", "destroy", "ci/small"]);
    lab.ok(&["tenant", "destroy", "ci"]);
    assert_eq!(lab.machines(), 0);
    let links = text(&run(Command::new("ip").args(["-n", &lab.netns, "-o", "link"])).stdout);
    assert!(!links.contains(" mv"), "{links}");
}

#[test]
fn tenants_do_not_reach_each_other_nor_the_host() {
    let lab = Lab::new("net");
    lab.tenant_and_pool("a", "30");
    lab.tenant_and_pool("b", "31");
    let (one, two, other) = (lab.start("a/small"), lab.start("a/small"), lab.start("b/small"));
    let address = |vm: &str| {
        lab.json(&["instance", "info", vm])["address"].as_str().expect("address").to_owned()
    };
    let pings = |from: &str, to: &str| {
        let mut ping =
            lab.mvm(&["instance", "exec", from, "--", "busybox", "ping", "-c", "2", "-W", "2", to]);
        ping.stdout(Stdio::null()).status().expect("mvm").success()
    };
    assert!(pings(&one, "10.77.30.1"), "its gateway");
    assert!(pings(&one, &address(&two)), "its sibling");
    assert!(!pings(&one, &address(&other)), "another tenant's guest");
    assert!(!pings(&one, "10.77.31.1"), "another tenant's gateway");
    // Port 1 of the gateway has no listener: what is let through is refused at once, what is
    // dropped is not answered at all.
    let began = Instant::now();
    let port = lab
        .mvm(&["instance", "exec", &one, "--", "busybox", "nc", "-w", "3", "10.77.30.1", "1"])
        .output();
    assert!(!port.expect("mvm").status.success());
    assert!(began.elapsed() >= Duration::from_secs(2), "a port that is not named answered");
    // With a neighbour's address a guest is heard by nobody.
    lab.exec(&one, "busybox ip addr add 10.77.30.99/24 dev $(basename /sys/class/net/e*)");
    let spoofed = lab
        .mvm(&[
            "instance",
            "exec",
            &one,
            "--",
            "busybox",
            "ping",
            "-I",
            "10.77.30.99",
            "-c",
            "2",
            "-W",
            "2",
            "10.77.30.1",
        ])
        .output();
    assert!(!spoofed.expect("mvm").status.success(), "a false address was let through");
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    let lab = Lab::new("bad");
    lab.refused(&["pool", "info", "ci/none"], "not_found");
    lab.ok(&[
        "tenant",
        "create",
        "ci",
        "--net-id",
        "40",
        "--subnet",
        "10.77.40.0/24",
        "--max-running",
        "1",
    ]);
    lab.refused(
        &["tenant", "create", "two", "--net-id", "40", "--subnet", "10.78.0.0/24"],
        "conflict",
    );
    lab.refused(
        &["tenant", "create", "two", "--net-id", "41", "--subnet", "10.77.0.0/16"],
        "conflict",
    );
    lab.refused(
        &["tenant", "create", "two", "--net-id", "41", "--subnet", "10.79.0.1/24"],
        "invalid_network",
    );
    lab.refused(
        &["pool", "create", "ci/small", "--flake", "/no/such", "--profile", "small"],
        "flake_missing",
    );
    let flake = lab.root.join("flake");
    let flake = flake.to_str().expect("path");
    let packages = std::env::var("MVM_TEST_DEBIAN_PKGS").expect("MVM_TEST_DEBIAN_PKGS");
    let input = format!("nixpkgs=path:{packages}");
    lab.ok(&[
        "pool",
        "create",
        "ci/small",
        "--flake",
        flake,
        "--profile",
        "none",
        "--cpus",
        "1",
        "--mem",
        "256",
    ]);
    let words =
        lab.refused(&["pool", "build", "ci/small", "--override-input", &input], "profile_missing");
    assert!(words.contains("small"), "it lists what there is: {words}");
    lab.refused(&["instance", "create", "ci/small"], "not_built");
    lab.ok(&["pool", "update", "ci/small", "--profile", "small"]);
    lab.ok(&["pool", "build", "ci/small", "--override-input", &input]);
    let garbage = lab.root.join("garbage");
    std::fs::write(&garbage, vec![7; 100_000]).expect("write");
    lab.refused(&["kernel", "import", garbage.to_str().expect("path")], "not_a_kernel");
    let words = lab.refused(&["pool", "scale", "ci/small", "--running", "2"], "quota_exceeded");
    for part in ["max_running", "limit 1", "in use 0", "asked 2"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // Killed in the middle of a boot: the next agent undoes it, and it can be done again.
    let vm = lab.ok(&["instance", "create", "ci/small"]).trim().to_owned();
    let mut boot = lab.mvm(&["instance", "start", &vm]).stderr(Stdio::null()).spawn().expect("mvm");
    wait_for("a process", || lab.machines() == 1);
    lab.kill_agent();
    boot.wait().expect("wait");
    assert_eq!(lab.state(&vm), "created");
    assert_eq!(lab.machines(), 0);
    lab.ok(&["instance", "start", &vm]);
    lab.refused(&["instance", "create", "ci/small", "--start"], "quota_exceeded");
}
