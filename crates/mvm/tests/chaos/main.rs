//! A fleet under random faults that are drawn from a seed: three coordinators, etcd, four nodes of
//! simulated machines, six clients that run jobs all the time, and a fault every few seconds. At
//! the end, no machine was given to two jobs, no answer was wrong, and nothing is left over.
//!
//! `cargo test -p mvm --test chaos -- --seed 7 --seconds 300`; docs/chaos.md says more.

mod blame;
mod check;
mod clients;
#[path = "../machines/guard.rs"]
mod guard;
#[path = "../fleet/lab.rs"]
mod lab;
#[path = "../fleet/machine_faults.rs"]
mod machine_faults;
mod plan;
mod seeds;

use check::Findings;
use clients::Clients;
use lab::{Engine, Kind, Lab, SIM, wait_for};
use plan::{COORDINATORS, FaultKind, NODES, PlannedFault, Target};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The pool's desired number of warm instances.
const WARM: u64 = 8;
/// The pool's desired number of sleeping instances.
const SLEEPING: u64 = 4;

/// The size of the disk of each etcd member, in MiB: two segments of etcd's log and little more.
const ETCD_MIB: u32 = 160;

/// The options of the command line.
struct Options {
    seed: u64,
    seconds: u64,
    members: usize,
    /// How long the fleet may take to recover after the last fault.
    quiet: Duration,
    /// Whether to run the seeds that have found a fault before.
    kept: bool,
}

fn main() {
    let Some(options) = options(std::env::args().skip(1).collect()) else { return };
    if !options.kept {
        return trial(&options);
    }
    for (seed, members, seconds, found) in seeds::KEPT {
        eprintln!("chaos: seed {seed} has found: {found}");
        trial(&Options { seed, members, seconds, ..options });
    }
}

fn trial(options: &Options) {
    let Options { seed, seconds, members, .. } = *options;
    eprintln!("chaos: seed {seed}, {seconds} s, etcd of {members}");
    let plan = plan::plan(seed, seconds, members);
    plan.iter().for_each(|fault| eprintln!("  {fault}"));
    let faults = run(options, &plan);
    if !faults.is_empty() {
        let all = faults.join("\n  ");
        eprintln!("chaos: seed {seed}, {seconds} s, etcd of {members}: this is wrong:\n  {all}");
        std::process::exit(1);
    }
    eprintln!("chaos: seed {seed}: all is well");
}

/// Parses the options; `None` if another test is asked for. The test harness's own options are
/// ignored.
fn options(words: Vec<String>) -> Option<Options> {
    let quiet = Duration::from_secs(60);
    let mut options = Options { seed: 1, seconds: 60, members: 1, quiet, kept: false };
    // cargo-nextest asks for ignored tests separately. This test is not one.
    let ignored = words.iter().any(|word| word == "--ignored");
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().and_then(|value| value.parse().ok());
            value.unwrap_or_else(|| panic!("{word} takes a number"))
        };
        match word.as_str() {
            "--seed" => options.seed = number(),
            "--seconds" => options.seconds = number(),
            "--members" => options.members = number() as usize,
            "--quiet" => options.quiet = Duration::from_secs(number()),
            "--kept" => options.kept = true,
            "--list" => {
                if !ignored {
                    println!("chaos: test");
                }
                return None;
            }
            "--test-threads" => drop(words.next()),
            flag if flag.starts_with('-') => {}
            filter if "chaos".contains(filter) => {}
            _ => return None,
        }
    }
    Some(options)
}

/// Makes a fleet that is ready for faults.
fn fleet(members: usize) -> Lab {
    let engine = if members == 1 { Engine::Etcd(1) } else { Engine::Spread(members) };
    let mut lab = Lab::with_etcd_disks("chaos", engine, Some(ETCD_MIB));
    lab.clocks = true;
    lab.small_images();
    COORDINATORS.iter().for_each(|name| lab.coordinator(name));
    NODES.iter().for_each(|node| lab.node_of(node, Kind { clock: true, ..SIM }));
    wait_for("the nodes", || NODES.iter().all(|node| lab.alive(node)));
    let counts = json!({ "warm": WARM, "sleeping": SLEEPING });
    lab.apply(&counts, &json!({ "spread": { "key": "node" } }), true);
    lab
}

/// Copies all logs to a permanent place, unless the test passes.
struct Logs {
    from: PathBuf,
    to: PathBuf,
    keep: bool,
}

impl Drop for Logs {
    fn drop(&mut self) {
        if !self.keep {
            return;
        }
        std::fs::create_dir_all(&self.to).expect("directory");
        for entry in std::fs::read_dir(&self.from).expect("directory").flatten() {
            let is_log = entry.path().extension().is_some_and(|end| end == "log" || end == "txt");
            if is_log {
                let _ = std::fs::copy(entry.path(), self.to.join(entry.file_name()));
            }
        }
        eprintln!("chaos: the logs are in {}", self.to.display());
    }
}

/// Runs the faults. Returns the violations at the end.
fn run(options: &Options, plan: &[PlannedFault]) -> Findings {
    let began = Instant::now();
    let mut lab = fleet(options.members);
    let to = format!("chaos-{}-{}", options.seed, options.members);
    let to = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(to);
    let _ = std::fs::remove_dir_all(&to);
    let mut logs = Logs { from: lab.root.clone(), to, keep: true };
    eprintln!("chaos: set up in {:.1} s", began.elapsed().as_secs_f64());
    let clients = Clients::start(&lab.asker("hub"), &lab.root);
    inject(&mut lab, plan, options.seconds);
    let quiet = Instant::now();
    let account = clients.finish();
    eprintln!("chaos: the last call has ended after {:.1} s", quiet.elapsed().as_secs_f64());
    eprintln!("chaos: {} calls, {}", account.calls.len(), clients::summary(&account.calls));
    let calls: Vec<String> = account.calls.iter().map(|call| format!("{call:?}\n")).collect();
    std::fs::write(lab.root.join("calls.txt"), calls.concat()).expect("file");
    for call in account.calls.iter().filter(|call| call.code().is_some()) {
        eprintln!(
            "chaos: {} {} ended at {:.1} s: {}",
            call.what,
            call.id,
            call.ended.as_secs_f64(),
            call.stderr
        );
    }
    let blame = blame::FaultTimeline::new(plan, &NODES.map(|node| (node, events(&lab, node))));
    let mut seen = Default::default();
    let mut faults = check::calls(&account.calls, &blame, &mut seen);
    faults.extend(check::jobs(&lab, &account.jobs, &blame, &mut seen));
    faults.extend(check::comes_to_rest(&lab, quiet, options.quiet));
    logs.keep = !faults.is_empty();
    if logs.keep {
        keep_events(&lab);
    }
    faults
}

/// Writes each node's events beside the logs.
fn keep_events(lab: &Lab) {
    for node in NODES {
        std::fs::write(lab.root.join(format!("{node}-events.txt")), events(lab, node))
            .expect("file");
    }
}

fn events(lab: &Lab, node: &str) -> String {
    lab::text(&lab.local(node, &["events"]).output().expect("mvm").stdout)
}

/// Begins and ends each fault at its time.
fn inject(lab: &mut Lab, plan: &[PlannedFault], seconds: u64) {
    let began = Instant::now();
    let beginnings = plan.iter().map(|fault| (fault.at, true, fault));
    let ends = plan.iter().map(|fault| (fault.ends(), false, fault));
    let mut all: Vec<_> = beginnings.chain(ends).collect();
    all.sort_by_key(|(at, begins, _)| (*at, *begins));
    for (at, begins, fault) in all {
        std::thread::sleep(at.saturating_sub(began.elapsed()));
        let late = began.elapsed().saturating_sub(at);
        if late > Duration::from_secs(1) {
            eprintln!("  {:.1} s late", late.as_secs_f64());
        }
        change(lab, fault, begins);
    }
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(began.elapsed()));
}

/// Begins or ends a fault.
fn change(lab: &mut Lab, fault: &PlannedFault, begins: bool) {
    match (fault.target, fault.kind, begins) {
        (Target::Process(name), FaultKind::Kill, true) => lab.kill(name),
        (Target::Process(name), FaultKind::Kill, false) => lab.start_again(name),
        (Target::Process(name), FaultKind::Stop, stop) => lab.hold_up(name, stop),
        (Target::Process(name), FaultKind::Cut(way), true) => lab.cut(name, way),
        (Target::Process(name), FaultKind::Cut(_), false) => lab.join(name),
        (Target::Process(name), FaultKind::Clock(by), true) => lab.set_clock(name, by),
        (Target::Process(name), FaultKind::Clock(_), false) => lab.set_clock(name, "+0"),
        (Target::Process(_), FaultKind::Fill, _) => {}
        (Target::Etcd(member), kind, begins) => {
            let etcd = lab.etcd.as_mut().expect("etcd");
            match (kind, begins) {
                (FaultKind::Kill, true) => etcd.kill(member),
                (FaultKind::Kill, false) => etcd.restart(member),
                (FaultKind::Stop, true) => etcd.freeze(member),
                (FaultKind::Stop, false) => etcd.thaw(member),
                (FaultKind::Fill, true) => etcd.fill(member),
                // The member may have ended by itself.
                (FaultKind::Fill, false) => {
                    etcd.empty(member);
                    etcd.kill(member);
                    etcd.restart(member);
                }
                (FaultKind::Cut(_) | FaultKind::Clock(_), _) => {}
            }
        }
    }
}
