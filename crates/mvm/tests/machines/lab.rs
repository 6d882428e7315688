//! A state directory and a network namespace for one test, and an agent in them.

use crate::guard::Guard;
use serde_json::Value;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const FLAKE: &str = include_str!("flake/flake.nix");

/// A state directory and a network namespace, which are removed when the test ends in whatever way.
pub struct Lab {
    pub root: PathBuf,
    pub netns: String,
    /// The value of `mvm agent serve --hypervisor`.
    hypervisor: &'static str,
    _guard: Guard,
}

impl Lab {
    pub fn new(name: &str) -> Lab {
        Lab::with(name, |_| {})
    }

    fn with(name: &str, prepare: impl FnOnce(&Path)) -> Lab {
        let netns = format!("mvm-test-{name}-{}", std::process::id());
        let root = std::env::temp_dir().join(&netns);
        std::fs::create_dir_all(&root).expect("directory");
        let guard = Guard::new(&root, &netns);
        let lab = Lab { root, netns, hypervisor: "qemu", _guard: guard };
        prepare(&lab.root);
        std::fs::set_permissions(&lab.root, Permissions::from_mode(0o700)).expect("mode");
        std::fs::create_dir_all(lab.root.join("flake")).expect("directory");
        std::fs::write(lab.root.join("flake/flake.nix"), FLAKE).expect("flake");
        run(Command::new("ip").args(["netns", "add", &lab.netns]));
        let kernels = std::env::var("MVM_TEST_KERNELS").expect("MVM_TEST_KERNELS: run ./test");
        run(Command::new("cp").args(["-r", &kernels]).arg(lab.root.join("kernels")));
        // Images that were built elsewhere: building finds them.
        if let Ok(images) = std::env::var("MVM_TEST_IMAGES") {
            run(Command::new("cp").args(["-rl", &images]).arg(lab.root.join("images")));
        }
        lab
    }

    /// Makes a lab whose machines are simulated.
    pub fn simulated(name: &str) -> Lab {
        let mut lab = Lab::new(name);
        lab.hypervisor = "sim";
        lab
    }

    /// Makes a lab whose state directory is a disk of its own, of `mib` MiB.
    pub fn on_disk(name: &str, mib: u32) -> Lab {
        Lab::with(name, |root| {
            let size = format!("size={mib}m");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "mvm-test"]).arg(root));
        })
    }

    /// Like [`Lab::on_disk`], with ext4 on a loop device. One percent of the disk is reserved for
    /// root, and no machine can use it.
    pub fn on_ext4(name: &str, mib: u32) -> Lab {
        Lab::with(name, |root| {
            let image = image_of(root);
            let file = std::fs::File::create(&image).expect("image");
            file.set_len(u64::from(mib) << 20).expect("image");
            run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "1"]).arg(&image));
            run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(root));
        })
    }

    pub fn mvm(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mvm"));
        command.arg("--root").arg(&self.root).args(words);
        command.env("MVM_NETNS", &self.netns).env("MVM_HYPERVISOR", self.hypervisor);
        // No agent starts that cannot use it.
        if let Some(accelerator) = std::env::var_os("MVM_TEST_ACCELERATOR") {
            command.env("MVM_ACCELERATOR", accelerator);
        }
        // Debian's packages are unpacked by the host's tools.
        command.env("MVM_NIX_SANDBOX", "relaxed");
        // The host's own memory pressure must not affect the tests.
        command.env("MVM_PRESSURE", self.pressure());
        command.stdin(Stdio::null());
        command
    }

    /// Starts an agent for which this file is the host's resolv.conf.
    pub fn agent_with_names(&self, file: &Path) -> std::process::Child {
        let script = format!(
            "mount --bind {} /etc/resolv.conf && exec \"$0\" --root {} agent serve",
            file.display(),
            self.root.display()
        );
        let serve = self.mvm(&[]);
        let mut agent = Command::new("unshare");
        agent.args(["--mount", "sh", "-c", &script]).arg(serve.get_program());
        agent.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let agent = agent.stdin(Stdio::null()).spawn().expect("agent");
        wait_for("the agent", || self.root.join("agent.sock").exists());
        agent
    }

    fn pressure(&self) -> PathBuf {
        self.root.join("pressure")
    }

    /// Sets the memory pressure that the agent reads, in percent of the time, in the kernel's
    /// format.
    pub fn press(&self, percent: u32) {
        let line = |kind| format!("{kind} avg10={percent}.00 avg60=0.00 avg300=0.00 total=0\n");
        let new = self.root.join("pressure.new");
        std::fs::write(&new, line("some") + &line("full")).expect("pressure");
        std::fs::rename(new, self.pressure()).expect("pressure");
    }

    /// Runs a command that must succeed. Returns its output.
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.mvm(words).output().expect("mvm");
        assert!(output.status.success(), "mvm {words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must fail with this code. Returns its error output.
    pub fn refused(&self, words: &[&str], code: &str) -> String {
        let output = self.mvm(words).output().expect("mvm");
        let words_of = text(&output.stderr);
        assert!(!output.status.success(), "mvm {words:?} succeeded");
        assert!(words_of.contains(&format!("error[{code}]")), "mvm {words:?}: {words_of}");
        words_of
    }

    pub fn json(&self, words: &[&str]) -> Value {
        let mut words = words.to_vec();
        words.extend(["-o", "json"]);
        serde_json::from_str(&self.ok(&words)).expect("JSON")
    }

    pub fn exec(&self, instance: &str, script: &str) -> String {
        self.ok(&["instance", "exec", instance, "--", "sh", "-c", script])
    }

    pub fn state(&self, instance: &str) -> String {
        self.json(&["instance", "info", instance])["state"].as_str().expect("state").to_owned()
    }

    pub fn pid(&self, instance: &str) -> Option<u64> {
        self.json(&["instance", "info", instance])["pid"].as_u64()
    }

    /// Returns the references of a pool's instances in this state.
    pub fn ids(&self, pool: &str, state: &str) -> Vec<String> {
        let all = self.json(&["instance", "list", pool]);
        let all = all.as_array().expect("list").iter().filter(|i| i["state"] == state);
        all.map(|i| i["reference"].as_str().expect("reference").to_owned()).collect()
    }

    /// Returns the number of ready instances in a pool, by state.
    pub fn ready(&self, pool: &str) -> Value {
        self.json(&["pool", "info", pool])["ready_counts"].clone()
    }

    /// Makes a tenant and its pool `small`, and builds the pool.
    pub fn tenant_and_pool(&self, tenant: &str, net: &str) {
        self.tenant_and_unbuilt_pool(tenant, net);
        self.build(&format!("{tenant}/small"));
    }

    pub fn build(&self, pool: &str) {
        self.ok(&["pool", "build", pool, "--override-input", &nixpkgs()]);
    }

    /// Starts a program in the guest that counts in /run/n as long as it lives.
    pub fn start_counter(&self, instance: &str) {
        self.exec(
            instance,
            "(while :; do n=$((n+1)); echo $n > /run/m; mv /run/m /run/n; sleep 0.1; done) \
             >/dev/null 2>&1 & while ! test -s /run/n; do sleep 0.1; done",
        );
    }

    /// Returns the count of that program.
    pub fn count(&self, instance: &str) -> u64 {
        self.exec(instance, "cat /run/n").trim().parse().expect("count")
    }

    /// Returns the names of mvm's links in the namespace.
    pub fn links(&self) -> Vec<String> {
        let all = run(Command::new("ip").args(["-n", &self.netns, "-o", "link"]));
        let name = |line: &str| line.split(": ").nth(1).unwrap_or_default().to_owned();
        text(&all.stdout).lines().map(name).filter(|name| name.starts_with("mv")).collect()
    }

    pub fn tenant_and_unbuilt_pool(&self, tenant: &str, net: &str) {
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
    }

    pub fn start(&self, pool: &str) -> String {
        self.ok(&["instance", "create", pool, "--start"]).trim().to_owned()
    }

    /// Sends SIGKILL to the agent. The next command starts another one.
    pub fn kill_agent(&self) {
        let pid = self.json(&["agent", "status"])["pid"].as_u64().expect("pid");
        run(Command::new("kill").args(["-9", &pid.to_string()]));
        wait_for("the agent to end", || is_gone(pid));
    }

    /// Returns the process id of a machine, found by its marker.
    pub fn process(&self, instance: &str) -> String {
        let id = instance.rsplit('/').next().expect("id");
        let found = Command::new("pgrep").args(["-f", &format!("{}{id}", self.mark())]).output();
        text(&found.expect("pgrep").stdout).trim().to_owned()
    }

    fn mark(&self) -> String {
        let id = std::fs::read_to_string(self.root.join("root-id")).expect("root-id");
        format!("guest=mvm:{id}:")
    }

    /// Returns the number of hypervisor processes of this lab.
    pub fn machines(&self) -> usize {
        let mark = self.mark();
        let found = Command::new("pgrep").args(["-fc", &mark]).output().expect("pgrep");
        text(&found.stdout).trim().parse().expect("number")
    }
}

impl Lab {
    /// Prints the last lines of the agents' and machines' logs, which help to find why a test
    /// failed.
    fn tell_logs(&self) {
        let instances = std::fs::read_dir(self.root.join("instances")).into_iter().flatten();
        let consoles = instances.flatten().map(|at| at.path().join("vm/console.log"));
        for log in consoles.chain([self.root.join("agent.log")]) {
            let said = std::fs::read(&log).map(|bytes| text(&bytes)).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("{}:\n{last}\n", log.display());
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_logs();
        }
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
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.root).output();
        let _ = std::fs::remove_dir_all(&self.root);
        let _ = std::fs::remove_file(image_of(&self.root));
    }
}

/// Returns the file of the disk of [`Lab::on_ext4`].
fn image_of(root: &Path) -> PathBuf {
    root.with_extension("img")
}

/// Returns the flake input with the packages.
pub fn nixpkgs() -> String {
    let packages = std::env::var("MVM_TEST_DEBIAN_PKGS").expect("MVM_TEST_DEBIAN_PKGS: run ./test");
    format!("nixpkgs=path:{packages}")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn run(command: &mut Command) -> Output {
    let output = command.output().expect("start");
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    output
}

/// Returns whether the process has ended with all its threads. A process that was not waited for
/// yet (a zombie) has ended.
pub fn is_gone(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads <= 1
        && stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

/// Returns how many times as long as usual may be waited on this machine: `MVM_TEST_PATIENCE`.
fn patience() -> u32 {
    let said = std::env::var("MVM_TEST_PATIENCE").ok();
    said.map_or(1, |said| said.parse().expect("MVM_TEST_PATIENCE: a number"))
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60) * patience();
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
