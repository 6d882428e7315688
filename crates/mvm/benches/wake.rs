//! The cost of a coordinator: a warm wake through it, over mutual TLS twice, compared with the same
//! wake at the agent's own socket. `cargo bench -p mvm --bench wake`; `-- NUMBER` sets the number
//! of wakes.
//!
//! Coordinator and agent are processes of this machine, in a network namespace of the bench's own;
//! the machine that is woken is simulated. Needs root, and the variables that `./test` sets.

use hdrhistogram::Histogram;
use mvm_api::types::{MoveInstance, Moved};
use mvm_api::{Client, paths};
use mvm_identity::IdentityDir;
use mvm_identity::tls::{Credentials, Expect};
use mvm_model::InstanceRef;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Set when the bench runs itself again inside its network namespace.
const INSIDE: &str = "MVM_BENCH_INSIDE";
const COORDINATOR: &str = "127.0.0.1:4433";
const NODE: &str = "127.0.0.2:4433";
const FLAKE: &str = include_str!("../../../examples/ci-flake/flake.nix");

fn main() {
    if std::env::var_os(INSIDE).is_some() {
        return measure();
    }
    let netns = format!("mvm-bench-{}", std::process::id());
    run(Command::new("ip").args(["netns", "add", &netns]));
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", &netns]).arg(std::env::current_exe().expect("itself"));
    let status = inside.args(std::env::args().skip(1)).env(INSIDE, "1").status();
    run(Command::new("ip").args(["netns", "del", &netns]));
    assert!(status.expect("itself").success());
}

/// A process that is killed when the bench ends in whatever way.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure() {
    let number = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(500);
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
    let dir = tempfile::tempdir().expect("directory");
    let (_processes, instance) = begin(dir.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let identity = IdentityDir::new(dir.path().join("alice"));
        let credentials = Credentials::open(identity).expect("identity");
        let local = Client::new(dir.path().join("node/agent.sock"));
        let fleet = mvm_identity::client(COORDINATOR, credentials, Expect::Coordinator);
        // Alternately, so that other load on this machine affects both.
        let (mut at_agent, mut through) = (times(), times());
        wake(&fleet, &instance, &mut times()).await;
        for _ in 0..number {
            wake(&local, &instance, &mut at_agent).await;
            wake(&fleet, &instance, &mut through).await;
        }
        tell("at the agent", &at_agent);
        tell("through the coordinator", &through);
    });
}

fn times() -> Histogram<u64> {
    Histogram::new(3).expect("histogram")
}

/// Wakes the warm machine and measures that, then makes it warm again.
async fn wake(client: &Client, instance: &InstanceRef, times: &mut Histogram<u64>) {
    let began = Instant::now();
    let path = paths::instance_part(instance, "wake");
    let woken: Moved = client.post(&path, &MoveInstance { lease_s: None }).await.expect("woken");
    times.record(began.elapsed().as_micros() as u64).expect("a time");
    drop(woken);
    let path = paths::instance_part(instance, "warm");
    let _: Moved = client.post(&path, &MoveInstance { lease_s: None }).await.expect("warm");
}

fn tell(what: &str, times: &Histogram<u64>) {
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    println!("{what}: p50 {:.2} ms, p99 {:.2} ms", ms(0.5), ms(0.99));
}

/// Starts a coordinator, a node of its fleet, and a warm machine there.
fn begin(dir: &Path) -> (Vec<Ends>, InstanceRef) {
    let at = |what: &str| dir.join(what).display().to_string();
    std::fs::create_dir_all(dir.join("flake")).expect("directory");
    std::fs::write(dir.join("flake/flake.nix"), FLAKE).expect("flake");
    std::fs::create_dir_all(dir.join("node")).expect("directory");
    let (ca, node, id) = (at("ca"), at("node"), at("id-c1"));
    mvm(&["ca", "init", "--dir", &ca]);
    let issue = ["ca", "issue", "--dir", &ca, "--role"];
    mvm(&[&issue[..], &["coordinator", "--name", "c1", "--out", &id]].concat());
    mvm(&[&issue[..], &["operator", "--name", "alice", "--out", &at("alice")]].concat());
    let root = at("c1");
    let serve = ["--root", &root, "coordinator", "serve", "--fleet", "bench", "--ca", &ca];
    let coordinator = start(&[&serve[..], &["--listen", COORDINATOR, "--identity", &id]].concat());
    let asks = ["--coordinator", COORDINATOR, "--identity", &at("alice")];
    wait(&[&["coordinator", "status"], &asks[..]].concat());
    let token = mvm(&[&["node", "invite", "n1"], &asks[..]].concat());
    std::fs::write(dir.join("token"), token).expect("token");
    mvm(&["--root", &node, "node", "join", "--token-file", &at("token")]);
    let kernels = std::env::var("MVM_TEST_KERNELS").expect("MVM_TEST_KERNELS: see ./test");
    run(Command::new("cp").args(["-r", &kernels, &at("node/kernels")]));
    let serve = ["--root", &node, "agent", "serve", "--hypervisor", "sim", "--listen", NODE];
    let agent = start(&serve);
    let here = |words: &[&str]| mvm(&[&["--root", &node], words].concat());
    wait(&["--root", &node, "agent", "status"]);
    here(&["tenant", "create", "ci", "--net-id", "20", "--subnet", "10.240.20.0/24"]);
    let shape = ["--cpus", "1", "--mem", "256", "--flake", &at("flake"), "--profile", "ci-runner"];
    here(&[&["pool", "create", "ci/runners"], &shape[..]].concat());
    let packages = std::env::var("MVM_TEST_DEBIAN_PKGS").expect("MVM_TEST_DEBIAN_PKGS: see ./test");
    let nixpkgs = format!("nixpkgs=path:{packages}");
    here(&["pool", "build", "ci/runners", "--override-input", &nixpkgs]);
    let instance = here(&["instance", "create", "ci/runners", "--start"]);
    let instance = instance.trim();
    here(&["instance", "warm", instance]);
    wait(&[&["instance", "info", instance], &asks[..]].concat());
    (vec![coordinator, agent], instance.parse().expect("an instance"))
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mvm"));
    command.args(words).stdin(Stdio::null()).env("MVM_NIX_SANDBOX", "relaxed");
    ["MVM_COORDINATOR", "MVM_IDENTITY", "MVM_NETNS", "MVM_ROOT"].iter().for_each(|variable| {
        command.env_remove(variable);
    });
    command
}

fn mvm(words: &[&str]) -> String {
    run(&mut command(words))
}

fn start(words: &[&str]) -> Ends {
    Ends(command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("mvm"))
}

/// Repeats the command until it succeeds.
fn wait(words: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !command(words).output().expect("mvm").status.success() {
        assert!(Instant::now() < deadline, "waited too long for mvm {words:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("start");
    let (said, why) = (output.stdout, output.stderr);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&why));
    String::from_utf8(said).expect("text")
}
