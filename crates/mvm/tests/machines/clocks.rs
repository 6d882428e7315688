//! Leases, deadlines and ages count elapsed time, whatever happens to the wall clock.

use crate::lab::{Lab, is_gone, run, text, wait_for};
use serde_json::{Value, json};
use std::process::Command;

/// A step that is longer than any wait in this test, including the one day of an idempotency key,
/// in hours.
const HOURS: i64 = 26;

/// Returns the environment in which a process reads its wall clock from `lab`'s file.
fn clock(lab: &Lab) -> Vec<(&'static str, String)> {
    let library = run(Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]));
    vec![
        ("LD_PRELOAD", text(&library.stdout).trim().to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", lab.root.join("clock").display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

/// Shared memory that libfaketime has left of ended processes. With it, libfaketime fails in a new
/// process that has the id of such a process.
struct SharedMemory;

impl SharedMemory {
    /// Removes the shared memory, now and when the test ends.
    fn swept() -> SharedMemory {
        SharedMemory::sweep();
        SharedMemory
    }

    fn sweep() {
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = ["faketime_shm_", "sem.faketime_sem_"]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix)?.parse::<u64>().ok());
            if number.is_some_and(is_gone) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        SharedMemory::sweep();
    }
}

/// Sets the wall clock of the agent wrong, by this number of hours.
fn set_clock(lab: &Lab, hours: i64) {
    let new = lab.root.join("clock.new");
    std::fs::write(&new, format!("{hours:+}h\n")).expect("clock");
    std::fs::rename(new, lab.root.join("clock")).expect("clock");
}

/// Starts the agent with that clock.
fn start(lab: &Lab) {
    run(lab.mvm(&["tenant", "list"]).envs(clock(lab)));
}

/// An agent with its clock, and the time at which it says that it started.
struct Stepped<'a> {
    lab: &'a Lab,
    started_at: i64,
}

impl Stepped<'_> {
    /// Steps the clock. Returns when the agent has seen the step and made decisions after it.
    fn to(&self, hours: i64) {
        set_clock(self.lab, hours);
        self.seen(hours);
    }

    fn seen(&self, hours: i64) {
        let shift = hours * 3_600_000;
        let started = || self.lab.json(&["agent", "status"])["started_at"].as_i64();
        // The tolerance of ten minutes covers a new agent that was started a little later.
        wait_for("the agent to see its clock", || {
            started().is_some_and(|at| at.abs_diff(self.started_at + shift) < 600_000)
        });
        let before = passes(self.lab);
        wait_for("the reconciler", || passes(self.lab) >= before + 3);
    }
}

fn passes(lab: &Lab) -> u64 {
    let metrics = lab.ok(&["metrics"]);
    let line = metrics.lines().find(|line| line.starts_with("mvm_reconcile_passes_total "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("passes")
}

/// Submits a job with an idempotency key. Returns the head and body of the answer.
fn submit(lab: &Lab, key: &str) -> (String, Value) {
    let socket = lab.root.join("agent.sock");
    let body = json!({ "spec": { "argv": ["true"] } }).to_string();
    let answer = run(Command::new("curl")
        .args(["-sS", "-i", "-X", "POST", "-H", "content-type: application/json"])
        .args(["-H", &format!("idempotency-key: {key}"), "-d", &body, "--unix-socket"])
        .arg(socket)
        .arg("http://mvm/v1/tenants/ci/pools/small/jobs"));
    let answer = text(&answer.stdout);
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.to_lowercase(), serde_json::from_str(body).expect("JSON"))
}

/// Puts an instance to sleep so that its process lingers: a clone's lingers from the second sleep
/// on.
fn lie_down(lab: &Lab, vm: &str) {
    for move_to in ["sleep", "wake", "sleep"] {
        lab.ok(&["instance", move_to, vm]);
    }
}

#[test]
fn a_step_of_the_wall_clock_ends_nothing_and_holds_nothing_up() {
    let _swept = SharedMemory::swept();
    let lab = Lab::simulated("clocks");
    // Built by an agent with the system's clock: libfaketime cannot bear as many programs as Nix
    // starts.
    lab.tenant_and_pool("ci", "72");
    lab.ok(&["agent", "stop"]);
    set_clock(&lab, 0);
    start(&lab);
    let policy = ["--warm-after", "7200", "--sleep-after", "7200", "--linger", "3600"];
    lab.ok(&[&["pool", "update", "ci/small", "--max-age", "7200"], &policy[..]].concat());
    let create = || lab.start("ci/small");
    let (leased, idle, warm, asleep) = (create(), create(), create(), create());
    lab.ok(&["lease", "release", &idle]);
    lab.ok(&["instance", "warm", &warm]);
    lie_down(&lab, &asleep);
    let job = |words: &[&str]| {
        let words = [&["job", "submit", "ci/small"], words, &["--", "sleep", "1000"]].concat();
        lab.ok(&words).trim().to_owned()
    };
    let jobs = [job(&[]), job(&["--timeout", "900"])];
    let job_state = |job: &str| lab.json(&["job", "info", job])["state"].clone();
    wait_for("the jobs", || jobs.iter().all(|job| job_state(job) == "running"));
    let (_, first) = submit(&lab, "once");
    let started_at = lab.json(&["agent", "status"])["started_at"].as_i64().expect("a time");
    let lasting = |vm: &str| {
        let lease = lab.json(&["instance", "info", vm])["lease"].clone();
        lease["expires_at"].as_i64().zip(lease["since"].as_i64()).map(|(end, since)| end - since)
    };
    let (length, lingers) = (lasting(&leased), &lab.json(&["instance", "info", &asleep]));
    assert!(!lingers["lingers_until"].is_null(), "its process lingers");
    let pid = lab.pid(&asleep);
    let as_before = || {
        let states = [&leased, &idle, &warm, &asleep].map(|vm| lab.state(vm));
        assert_eq!(states, ["running", "running", "warm", "sleeping"]);
        assert_eq!(lasting(&leased), length);
        assert_eq!(jobs.each_ref().map(|job| job_state(job)), ["running", "running"]);
        let (head, again) = submit(&lab, "once");
        assert!(head.contains("idempotency-replayed: true"), "{head}");
        assert_eq!(again["job_id"], first["job_id"]);
    };
    as_before();
    let stepped = Stepped { lab: &lab, started_at };
    for hours in [HOURS, -HOURS] {
        stepped.to(hours);
        as_before();
        assert_eq!(lab.pid(&asleep), pid, "its process lingers");
        what_is_due_comes(&lab, hours);
    }
    // The next agent continues the same timeline, whatever the clock says when it starts.
    lab.kill_agent();
    set_clock(&lab, HOURS);
    start(&lab);
    stepped.seen(HOURS);
    assert_eq!(lasting(&leased), length);
    assert_eq!([&idle, &warm].map(|vm| lab.state(vm)), ["running", "warm"]);
}

/// Deadlines pass in their time, and events have the time of the wall clock.
fn what_is_due_comes(lab: &Lab, hours: i64) {
    let timed = ["run", "ci/small", "--timeout", "1", "--", "sleep", "1000"];
    assert_eq!(lab.mvm(&timed).output().expect("mvm").status.code(), Some(124));
    // The pool was never scaled: an instance that loses its lease is kept, and cools down by the
    // policy.
    let short = lab.ok(&["instance", "create", "ci/small"]).trim().to_owned();
    lab.ok(&["instance", "start", &short, "--lease", "1"]);
    wait_for("the lease to end", || lab.json(&["instance", "info", &short])["lease"].is_null());
    lab.ok(&["instance", "destroy", &short]);
    let events = lab.json(&["events"]);
    let last = events.as_array().and_then(|all| all.last()?["at"].as_i64()).expect("an event");
    let wall = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_millis() as i64;
    let off = last - wall - hours * 3_600_000;
    assert!(off.abs() < 600_000, "an event of {off} ms from now");
}
