//! The machines of one test: network namespaces that a bridge connects, an authority, and the
//! processes in them. Everything is removed when the test ends in whatever way.

#![allow(dead_code, reason = "not every test needs all of these")]

use crate::guard::Guard;
use mvm_store::testing::{EtcdCluster, MemberOptions};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The flake of all pools. A simulated guest has the same programs whatever the image contains.
const FLAKE: &str = include_str!("../../../../examples/ci-flake/flake.nix");
/// A flake whose image is quickly built and quickly sent.
const SMALL: &str = r#"{
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-24.05";
  outputs = { self, nixpkgs }: let pkgs = nixpkgs.legacyPackages.x86_64-linux; in {
    packages.x86_64-linux.ci-runner = pkgs.buildEnv {
      name = "small";
      paths = with pkgs; [ bash coreutils ];
    };
  };
}"#;
/// The maximum time that an expected event may take.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The store of the fleet's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// SQLite in the coordinator's state directory.
    Sqlite,
    /// An etcd cluster with this many members, all on the first machine.
    Etcd(usize),
    /// An etcd cluster with this many members, each on a machine of its own: `e1`, `e2` …
    Spread(usize),
}

/// The kind of a node.
#[derive(Clone, Debug)]
pub struct Kind {
    pub hypervisor: &'static str,
    /// The value of `mvm agent serve --capacity`.
    pub capacity: &'static str,
    /// More options of `mvm agent serve`.
    pub options: &'static [&'static str],
    /// Whether the node's clock can be set wrong.
    pub clock: bool,
    /// The size of a disk of its own for the node's state, in MiB; absent where it has none.
    pub disk: Option<u32>,
}

/// A node whose machines are simulated.
pub const SIM: Kind = Kind {
    hypervisor: "sim",
    capacity: "vcpus=16,mem=16384,disk=200",
    options: &["--label", "made=sim"],
    clock: false,
    disk: None,
};

/// A node of real machines, which are few and small.
pub const REAL: Kind = Kind {
    hypervisor: "qemu",
    capacity: "vcpus=4,mem=1024,disk=20",
    options: &["--label", "made=real"],
    ..SIM
};

/// A fleet.
pub struct Lab {
    pub root: PathBuf,
    name: String,
    /// The coordinator that is asked, or several of them: `c1,c2`.
    pub front: String,
    pub etcd: Option<EtcdCluster>,
    processes: Vec<(String, Child)>,
    machines: Vec<String>,
    kinds: BTreeMap<String, Kind>,
    /// The binary of processes that are started from now on.
    pub binary: PathBuf,
    /// Whether the coordinators' clocks can be set wrong.
    pub clocks: bool,
    /// How long a coordinator counts as present after it has died.
    pub ttl: &'static str,
    /// The maximum number of running instances of tenant `ci`.
    pub max_running: u32,
    _guard: Guard,
}

impl Lab {
    /// Makes an authority, a bridge and the store, without a coordinator or a node.
    pub fn new(name: &str, engine: Engine) -> Lab {
        Lab::with_etcd_disks(name, engine, None)
    }

    /// Like [`Lab::new`]; each member of etcd has a disk of its own, of `disk_mib` MiB.
    pub fn with_etcd_disks(name: &str, engine: Engine, disk_mib: Option<u32>) -> Lab {
        let name = format!("mvm-test-{name}-{}", std::process::id());
        let root = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(root.join("flake")).expect("directory");
        std::fs::write(root.join("flake/flake.nix"), FLAKE).expect("flake");
        let guard = Guard::new(&root, &name);
        let (processes, machines, kinds) = Default::default();
        let (front, binary) = ("c1".to_owned(), env!("CARGO_BIN_EXE_mvm").into());
        let (etcd, clocks, ttl, max_running) = (None, false, "3s", 60);
        let mut lab = Lab {
            root,
            name,
            front,
            etcd,
            processes,
            machines,
            kinds,
            binary,
            clocks,
            ttl,
            max_running,
            _guard: guard,
        };
        // The bridge that connects all machines is on a machine itself.
        lab.machine("hub");
        lab.ip(&["-n", &lab.netns("hub"), "link", "add", "br0", "type", "bridge"]);
        lab.ip(&["-n", &lab.netns("hub"), "link", "set", "br0", "up"]);
        lab.ip(&["-n", &lab.netns("hub"), "addr", "add", "10.99.0.254/24", "dev", "br0"]);
        lab.start_engine(engine, disk_mib);
        lab.ok("hub", &["ca", "init", "--dir", &lab.path("ca")]);
        let issued = |role: &str, name: &str, more: &[&str]| {
            let out = lab.path(name);
            let words = ["ca", "issue", "--dir", &lab.path("ca"), "--role", role, "--name", name];
            lab.ok("hub", &[&words[..], &["--out", &out], more].concat());
        };
        issued("operator", "alice", &[]);
        issued("tenant-operator", "bob", &["--tenant", "ci"]);
        lab
    }

    fn start_engine(&mut self, engine: Engine, disk_mib: Option<u32>) {
        let place = |netns: String, address: String, number: usize| MemberOptions {
            address: address.parse().expect("address"),
            port: 2379 + 2 * number as u16,
            wrapper: ["ip", "netns", "exec", &netns].map(str::to_owned).to_vec(),
            disk_mib,
        };
        let places: Vec<MemberOptions> = match engine {
            Engine::Sqlite => return,
            Engine::Etcd(members) => (0..members)
                .map(|number| place(self.netns("hub"), "10.99.0.254".to_owned(), number))
                .collect(),
            Engine::Spread(members) => (1..=members)
                .map(|number| {
                    let name = format!("e{number}");
                    self.machine(&name);
                    place(self.netns(&name), address(&name), 0)
                })
                .collect(),
        };
        self.etcd = Some(EtcdCluster::start_at(&places));
    }

    /// Returns the path of `what` in the lab's directory.
    pub fn path(&self, what: &str) -> String {
        self.root.join(what).display().to_string()
    }

    pub fn netns(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }

    /// Makes a machine on the bridge.
    pub fn machine(&mut self, name: &str) {
        let netns = self.netns(name);
        self.ip(&["netns", "add", &netns]);
        self.machines.push(name.to_owned());
        self.ip(&["-n", &netns, "link", "set", "lo", "up"]);
        if name != "hub" {
            let (hub, port, address) = (self.netns("hub"), format!("to-{name}"), address(name));
            self.ip(&[
                "-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
                &netns,
            ]);
            self.ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"]);
            self.ip(&["-n", &netns, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
            self.ip(&["-n", &netns, "link", "set", "eth0", "up"]);
        }
    }

    pub fn ip(&self, words: &[&str]) {
        run(Command::new("ip").args(words));
    }

    /// Starts a coordinator: `c1`, `c2` …
    pub fn coordinator(&mut self, name: &str) {
        self.start_coordinator(name);
        wait_for("the coordinator to serve", || self.coordinator_status(name).is_some());
    }

    /// Starts a killed coordinator or node again, without waiting for it.
    pub fn start_again(&mut self, name: &str) {
        match name.starts_with('c') {
            true => self.start_coordinator(name),
            false => self.node(name),
        }
    }

    fn start_coordinator(&mut self, name: &str) {
        if !self.machines.iter().any(|machine| machine == name) {
            self.machine(name);
            let (ca, out) = (self.path("ca"), self.path(&format!("id-{name}")));
            let issue = ["ca", "issue", "--dir", &ca, "--role", "coordinator", "--name", name];
            self.ok("hub", &[&issue[..], &["--out", &out]].concat());
        }
        let listen = format!("{}:4433", address(name));
        let (root, id, ca) = (self.path(name), self.path(&format!("id-{name}")), self.path("ca"));
        let mut words: Vec<String> = ["--root", &root, "coordinator", "serve", "--fleet", "lab"]
            .into_iter()
            .chain(["--listen", &listen, "--identity", &id, "--ttl", self.ttl])
            .map(str::to_owned)
            .collect();
        // One coordinator signs certificates for all.
        if name == "c1" {
            words.extend(["--ca".to_owned(), ca]);
        }
        if let Some(etcd) = &self.etcd {
            let (endpoints, tls) = (etcd.endpoints().join(","), etcd.options("").tls.expect("TLS"));
            let shown = |path: PathBuf| path.display().to_string();
            words.extend(["--etcd".to_owned(), endpoints]);
            words.extend(["--etcd-cacert".to_owned(), shown(tls.authority)]);
            words.extend(["--etcd-cert".to_owned(), shown(tls.certificate)]);
            words.extend(["--etcd-key".to_owned(), shown(tls.key)]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.mvm_at(&self.binary, name, &words);
        if self.clocks {
            command.envs(self.clock(name));
        }
        self.start(name, command);
    }

    /// Returns a coordinator's status; `None` where it does not answer.
    pub fn coordinator_status(&self, name: &str) -> Option<Value> {
        let mut status = self.mvm("hub", &["coordinator", "status", "-o", "json"]);
        status.env("MVM_COORDINATOR", format!("{}:4433", address(name)));
        let output = status.output().expect("mvm");
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Starts nodes, and waits until they are registered.
    pub fn nodes(&mut self, names: &[&str]) {
        names.iter().for_each(|name| self.node(name));
        wait_for("the nodes", || names.iter().all(|name| self.alive(name)));
    }

    /// Makes a machine a node and starts its agent: `n1`, `n2` … in zones `a` and `b` in turn. A
    /// node that existed before keeps its kind.
    pub fn node(&mut self, name: &str) {
        let kind = self.kinds.get(name).cloned().unwrap_or(SIM);
        self.node_of(name, kind);
    }

    /// Like [`Lab::node`], for a node of this kind.
    pub fn node_of(&mut self, name: &str, kind: Kind) {
        let root = self.path(name);
        if !self.machines.iter().any(|machine| machine == name) {
            self.machine(name);
            std::fs::create_dir_all(&root).expect("directory");
            if let Some(mib) = kind.disk {
                let size = format!("size={mib}m");
                run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "mvm-test", &root]));
            }
            let invited = self.ok("hub", &["node", "invite", name]);
            let token = self.root.join(format!("{name}.token"));
            std::fs::write(&token, invited).expect("token");
            let token = token.display().to_string();
            self.ok(name, &["--root", &root, "node", "join", "--token-file", &token]);
            if let Ok(kernels) = std::env::var("MVM_TEST_KERNELS") {
                run(Command::new("cp").args(["-r", &kernels]).arg(format!("{root}/kernels")));
            }
        }
        let number: usize = name[1..].parse().expect("a number");
        let zone = format!("zone={}", ["a", "b"][(number + 1) % 2]);
        let listen = format!("{}:4433", address(name));
        let serve = ["--root", &root, "agent", "serve", "--listen", &listen, "--label", &zone];
        let offer = ["--hypervisor", kind.hypervisor, "--capacity", kind.capacity];
        let words = [&serve[..], &offer, kind.options].concat();
        // `ip netns exec` hides the host's control groups, which real machines need.
        let mut command = match kind.hypervisor {
            "sim" => self.mvm_at(&self.binary, name, &words),
            _ => Command::new(&self.binary),
        };
        if kind.hypervisor != "sim" {
            command.args(&words).args(["--netns", &self.netns(name)]).stdin(Stdio::null());
        }
        if kind.clock {
            command.envs(self.clock(name));
        }
        // Debian's packages are unpacked by the host's tools.
        command.env("MVM_NIX_SANDBOX", "relaxed");
        self.kinds.insert(name.to_owned(), kind);
        self.start(name, command);
    }

    /// Starts an `mvm` process, with its log in the lab's directory.
    fn start(&mut self, process: &str, mut command: Command) {
        let log = self.root.join(format!("{process}.log"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("log");
        command.env_remove("MVM_COORDINATOR").env_remove("MVM_IDENTITY");
        command.stdout(log.try_clone().expect("log")).stderr(log);
        let child = command.spawn().expect("mvm");
        self.processes.push((process.to_owned(), child));
    }

    /// Returns the process id of a process.
    pub fn pid(&self, process: &str) -> u32 {
        let found = self.processes.iter().find(|(name, _)| name == process);
        found.expect("a process").1.id()
    }

    /// Sends SIGKILL to a process. Its machines run on, simulated ones as well.
    pub fn kill(&mut self, process: &str) {
        let at = self.processes.iter().position(|(name, _)| name == process).expect("a process");
        let (_, mut child) = self.processes.remove(at);
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Sends SIGTERM to a process, which [`Lab::end`] then waits for.
    pub fn ask_to_end(&self, process: &str) {
        let pid = rustix::process::Pid::from_raw(self.pid(process) as i32).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    }

    /// Sends SIGSTOP or SIGCONT to a process.
    pub fn hold_up(&self, process: &str, stop: bool) {
        use rustix::process::Signal;
        let pid = rustix::process::Pid::from_raw(self.pid(process) as i32).expect("a process");
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        rustix::process::kill_process(pid, signal).expect("signal");
    }

    /// Waits for a process that must end by itself and without an error.
    pub fn end(&mut self, process: &str) {
        let at = self.processes.iter().position(|(name, _)| name == process).expect("a process");
        wait_for(process, || self.processes[at].1.try_wait().expect("wait").is_some());
        let (_, mut child) = self.processes.remove(at);
        assert!(child.wait().expect("wait").success(), "{process} ends well");
    }

    /// Returns an `mvm` command on a machine, as the operator alice, who asks the coordinator in
    /// front.
    pub fn mvm(&self, machine: &str, words: &[&str]) -> Command {
        self.mvm_at(Path::new(env!("CARGO_BIN_EXE_mvm")), machine, words)
    }

    fn mvm_at(&self, binary: &Path, machine: &str, words: &[&str]) -> Command {
        let mut command = self.asker(machine).mvm_at(binary, &self.front, words);
        if words.starts_with(&["ca"]) {
            command.env_remove("MVM_COORDINATOR");
        }
        command
    }

    /// Returns the operator alice on a machine.
    pub fn asker(&self, machine: &str) -> Asker {
        Asker { netns: self.netns(machine), identity: self.path("alice") }
    }

    /// Runs a command that must succeed. Returns its output.
    pub fn ok(&self, machine: &str, words: &[&str]) -> String {
        let output = self.mvm(machine, words).output().expect("mvm");
        let said = text(&output.stderr);
        assert!(output.status.success(), "mvm {words:?}: {said}\n{}", self.logs());
        text(&output.stdout)
    }

    /// Returns an `mvm` command that asks the node's own agent.
    pub fn local(&self, node: &str, words: &[&str]) -> Command {
        let root = self.path(node);
        let mut command = self.mvm(node, &[&["--root", &root], words].concat());
        command.env_remove("MVM_COORDINATOR");
        command
    }

    /// Runs a command on a node with its own agent. Returns its output.
    pub fn locally(&self, node: &str, words: &[&str]) -> String {
        let output = self.local(node, words).output().expect("mvm");
        assert!(output.status.success(), "mvm {words:?} on {node}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must fail at once with this code.
    pub fn refused(&self, words: &[&str], code: &str) {
        let output = self.mvm("hub", words).env("MVM_PATIENCE", "0").output().expect("mvm");
        let said = text(&output.stderr);
        assert!(!output.status.success(), "mvm {words:?} succeeded");
        assert!(said.contains(&format!("error[{code}]")), "mvm {words:?}: {said}");
    }

    pub fn json(&self, words: &[&str]) -> Value {
        let words = [words, &["-o", "json"]].concat();
        serde_json::from_str(&self.ok("hub", &words)).expect("JSON")
    }

    /// Makes the images of all later pools small.
    pub fn small_images(&self) {
        std::fs::write(self.root.join("flake/flake.nix"), SMALL).expect("flake");
    }

    /// Applies a document with one pool `ci/runners`.
    pub fn apply(&self, counts: &Value, placement: &Value, wait: bool) {
        self.apply_pools(&[pool("runners", counts, placement)], wait);
    }

    /// Applies a document with these pools of `ci`.
    pub fn apply_pools(&self, pools: &[Value], wait: bool) {
        let file = self.root.join("fleet.json");
        let document = json!({
            "schema_version": 1, "fleet_id": "lab", "node_grace_s": 5,
            "tenants": [{
                "tenant_id": "ci",
                "network": { "tenant_net_id": 20, "ipv4_subnet": "10.240.20.0/24" },
                "quotas": {
                    "max_vcpus": 128, "max_mem_mib": 65536, "max_running": self.max_running, "max_warm": 40,
                    "max_pools": 4, "max_instances_per_pool": 100, "max_disk_gib": 200,
                },
                "pools": pools,
            }],
        });
        std::fs::write(&file, document.to_string()).expect("document");
        let (file, nixpkgs) = (file.display().to_string(), nixpkgs());
        let mut words = vec!["fleet", "apply", &file, "--override-input", &nixpkgs];
        if wait {
            words.extend(["--wait", "120"]);
        }
        self.ok("hub", &words);
    }

    /// Returns a node's numbers of warm, sleeping and leased instances, as the coordinator reports
    /// them.
    pub fn held(&self, node: &str) -> Value {
        let node = self.json(&["fleet", "nodes", node]);
        json!([node["ready_counts"]["warm"], node["ready_counts"]["sleeping"], node["leased"]])
    }

    pub fn alive(&self, node: &str) -> bool {
        let nodes = self.json(&["fleet", "nodes"]);
        let nodes = nodes.as_array().expect("nodes");
        nodes.iter().any(|n| n["node_id"] == node && n["alive"] == true)
    }

    pub fn converged(&self) -> bool {
        self.json(&["fleet", "status"])["converged"] == true
    }

    /// Returns the lines of all logs that contain `what`.
    pub fn lines_with(&self, what: &str) -> String {
        let grep =
            Command::new("grep").args(["-r", "--include=*.log", what]).arg(&self.root).output();
        text(&grep.expect("grep").stdout)
    }

    pub fn logs(&self) -> String {
        let mut all = String::new();
        for (name, _) in &self.processes {
            let log = std::fs::read_to_string(self.root.join(format!("{name}.log")));
            let lines: Vec<String> = log.unwrap_or_default().lines().map(str::to_owned).collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n");
            all.push_str(&format!("--- {name}\n{last}\n"));
        }
        all
    }
}

/// A user on a machine who asks coordinators.
#[derive(Clone, Debug)]
pub struct Asker {
    netns: String,
    identity: String,
}

impl Asker {
    /// Returns an `mvm` command that asks this coordinator.
    pub fn mvm(&self, front: &str, words: &[&str]) -> Command {
        self.mvm_at(Path::new(env!("CARGO_BIN_EXE_mvm")), front, words)
    }

    fn mvm_at(&self, binary: &Path, front: &str, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns]).arg(binary);
        command.args(words).stdin(Stdio::null());
        let fronts: Vec<String> =
            front.split(',').map(|front| format!("{}:4433", address(front))).collect();
        command.env("MVM_COORDINATOR", fronts.join(","));
        command.env("MVM_IDENTITY", &self.identity).env_remove("MVM_NETNS");
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.etcd = None;
        for machine in &self.machines {
            end_machines(&self.root.join(machine));
            let _ = Command::new("ip").args(["netns", "del", &self.netns(machine)]).status();
            let _ = Command::new("umount").args(["-q", "-l", &self.path(machine)]).output();
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Returns a pool of a document.
pub fn pool(name: &str, counts: &Value, placement: &Value) -> Value {
    json!({
        "pool_id": name, "flake_ref": "./flake", "profile": "ci-runner",
        "instance_resources": { "vcpus": 1, "mem_mib": 256, "scratch_disk_mib": 128 },
        "desired_counts": counts, "placement": placement,
    })
}

/// Ends the processes of the real machines of a node, if it has any.
fn end_machines(root: &Path) {
    let Ok(id) = std::fs::read_to_string(root.join("root-id")) else { return };
    let found = Command::new("pgrep").args(["-f", &format!("guest=mvm:{id}:")]).output();
    for pid in found.map(|o| text(&o.stdout)).unwrap_or_default().lines() {
        let _ = Command::new("kill").args(["-9", pid]).status();
    }
}

/// Returns the address of a machine: coordinators from 10.99.0.1, members of etcd from 10.99.0.51,
/// nodes from 10.99.0.101.
pub fn address(machine: &str) -> String {
    let number: u8 = machine[1..].parse().expect("a number");
    let base = match machine.as_bytes()[0] {
        b'c' => 0,
        b'e' => 50,
        _ => 100,
    };
    format!("10.99.0.{}", base + number)
}

fn nixpkgs() -> String {
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

pub fn wait_for(what: &str, done: impl FnMut() -> bool) {
    assert!(wait_at_most(PATIENCE, done), "waited too long for {what}");
}

/// Returns whether `done` became true in this time.
pub fn wait_at_most(most: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + most;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
