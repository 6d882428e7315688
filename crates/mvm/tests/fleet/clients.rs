//! Clients that use machines all the time, and a record of each of their calls.

use crate::lab::{Asker, text};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a client rests between two calls.
const PAUSE: Duration = Duration::from_millis(200);

/// One call, from its beginning to its end.
#[derive(Clone, Debug)]
pub struct Call {
    pub what: &'static str,
    /// The call's own id, which its command prints.
    pub id: String,
    /// The coordinator that was asked.
    #[allow(dead_code, reason = "for whoever reads what was asserted")]
    pub front: &'static str,
    pub began: Instant,
    pub ended: Instant,
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Call {
    /// Returns the code of the error that the call ended with.
    pub fn code(&self) -> Option<&str> {
        let (_, rest) = self.stderr.split_once("error[")?;
        Some(rest.split_once(']')?.0)
    }
}

/// The state that the clients share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    calls: Mutex<Vec<Call>>,
    /// The calls that have not ended yet, and when each began.
    open: Mutex<BTreeMap<String, Instant>>,
    /// The ids of submitted jobs, each with the id of its call.
    jobs: Mutex<Vec<(String, String)>>,
}

/// Clients at work.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Returns a script that prints the machine's name, whether another command was there before, and a
/// line at its end.
fn script(id: &str) -> String {
    format!("cat /etc/hostname; cat taken; echo {id} > taken; sleep 0.5; cat taken; echo end {id}")
}

impl Clients {
    /// Starts one client per pool that runs commands, and one that submits jobs to the first pool.
    /// They ask the coordinators in turn.
    pub fn start(
        asker: &Asker,
        pools: &[&'static str],
        fronts: &'static [&'static str],
    ) -> Clients {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for (number, pool) in pools.iter().copied().enumerate() {
            let (asker, shared) = (asker.clone(), shared.clone());
            threads.push(std::thread::spawn(move || {
                shared.each(fronts, number, |id, front| {
                    let script = script(id);
                    let words = ["run", pool, "--", "sh", "-c", &script];
                    shared.call("run", id, front, asker.mvm(front, &words));
                });
            }));
        }
        let (asker, pool) = (asker.clone(), pools[0]);
        let jobs = shared.clone();
        threads.push(std::thread::spawn(move || {
            jobs.each(fronts, 99, |id, front| {
                let script = script(id);
                let words = ["job", "submit", pool, "--", "sh", "-c", &script];
                let made = jobs.call("submit", id, front, asker.mvm(front, &words));
                if made.success {
                    let job = made.stdout.trim().to_owned();
                    jobs.jobs.lock().expect("jobs").push((job.clone(), id.to_owned()));
                    let words = ["job", "wait", &job, "--timeout", "20"];
                    jobs.call("wait", id, front, asker.mvm(front, &words));
                }
            });
        }));
        Clients { shared, threads }
    }

    /// Returns the ended calls that began at this time or later.
    pub fn since(&self, time: Instant) -> Vec<Call> {
        let calls = self.shared.calls.lock().expect("calls");
        calls.iter().filter(|call| call.began >= time).cloned().collect()
    }

    /// Returns the number of commands that began at this time or later and have succeeded.
    pub fn served_since(&self, time: Instant) -> usize {
        self.since(time).iter().filter(|call| call.what == "run" && call.success).count()
    }

    /// Returns whether all calls that began before this time have ended.
    pub fn ended_before(&self, time: Instant) -> bool {
        self.shared.open.lock().expect("calls").values().all(|began| *began >= time)
    }

    /// Ends the clients, each after its present call. Returns all calls, and the jobs with the ids
    /// of their calls.
    pub fn finish(mut self) -> (Vec<Call>, Vec<(String, String)>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().expect("client");
        }
        let calls = std::mem::take(&mut *self.shared.calls.lock().expect("calls"));
        (calls, std::mem::take(&mut *self.shared.jobs.lock().expect("jobs")))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn each(&self, fronts: &[&'static str], number: usize, call: impl Fn(&str, &'static str)) {
        for round in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            call(&format!("call-{number}-{round}"), fronts[(number + round) % fronts.len()]);
            std::thread::sleep(PAUSE);
        }
    }

    fn call(
        &self,
        what: &'static str,
        id: &str,
        front: &'static str,
        mut command: std::process::Command,
    ) -> Call {
        let began = Instant::now();
        self.open.lock().expect("calls").insert(id.to_owned(), began);
        // Longer than an election takes, and shorter than the default of a minute, which would
        // prolong each fault for a client whose only coordinator is gone.
        let output = command.env("MVM_PATIENCE", "20s").output().expect("mvm");
        let call = Call {
            what,
            id: id.to_owned(),
            front,
            began,
            ended: Instant::now(),
            success: output.status.success(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        self.calls.lock().expect("calls").push(call.clone());
        self.open.lock().expect("calls").remove(id);
        call
    }
}

/// Checks that every call ended with its result or with an error that has a code, and that no
/// machine was given to two calls. `seen` are the machines that were given so far.
pub fn check(calls: &[Call], seen: &mut BTreeSet<String>) {
    for call in calls {
        if call.success {
            if call.what == "run" {
                check_output(&call.id, &call.stdout, seen);
            }
            continue;
        }
        // A job that failed says why, which is its result.
        if call.what == "wait" && call.stdout.starts_with("failed: ") {
            continue;
        }
        assert!(call.code().is_some(), "an error without a code: {call:?}");
        // The first line of a failed command shows which machine it had.
        if let Some(machine) = call.stdout.lines().next().filter(|_| call.what == "run") {
            assert!(seen.insert(machine.to_owned()), "given twice: {call:?}");
        }
    }
}

/// Checks the output of a command that has succeeded: it was alone on a machine that no command had
/// before.
pub fn check_output(id: &str, stdout: &str, seen: &mut BTreeSet<String>) {
    let lines: Vec<&str> = stdout.lines().collect();
    let [machine, taken, end] = lines[..] else { panic!("{id} printed {stdout:?}") };
    assert_eq!((taken, end), (id, &*format!("end {id}")), "on {machine}");
    assert!(seen.insert(machine.to_owned()), "{machine} was given twice, the second time to {id}");
}

/// Returns how often each error came, and the longest call.
pub fn summary(calls: &[Call]) -> String {
    let mut codes: BTreeMap<String, usize> = BTreeMap::new();
    for call in calls {
        let code = if call.success { "ok" } else { call.code().unwrap_or("?") };
        *codes.entry(format!("{} {code}", call.what)).or_default() += 1;
    }
    let longest = calls.iter().max_by_key(|call| call.ended - call.began);
    let longest = longest.map(|call| {
        let code = if call.success { "ok" } else { call.code().unwrap_or("?") };
        format!("{} {code} {:.1} s", call.what, (call.ended - call.began).as_secs_f64())
    });
    format!("{codes:?}, longest {}", longest.unwrap_or_default())
}
