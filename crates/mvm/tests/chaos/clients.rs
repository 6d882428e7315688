//! Clients that run jobs all the time, and a record of each of their calls.

use crate::lab::{Asker, text};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a client rests between two calls.
const PAUSE: Duration = Duration::from_millis(200);
/// The pool whose machines the clients use.
pub const POOL: &str = "ci/runners";
/// The coordinators that each of the six clients knows, in the order in which it asks them.
const FRONTS: [&str; 6] = ["c1,c2,c3", "c2,c3,c1", "c3,c1,c2", "c1,c3,c2", "c2,c1,c3", "c3,c2,c1"];

/// A client's kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// `mvm run`.
    Run,
    /// `mvm run` with an input file and an output file.
    Copy,
    /// `mvm job submit`, `wait` and `logs`.
    Job,
}

const WORK: [Work; 6] = [Work::Run, Work::Copy, Work::Run, Work::Job, Work::Run, Work::Job];

/// One call, from its beginning to its end.
#[derive(Clone, Debug)]
pub struct Call {
    pub what: &'static str,
    /// The id of the call's job, which the job prints.
    pub id: String,
    /// When the call ended, counted from the start of the clients.
    pub ended: Duration,
    pub took: Duration,
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Call {
    /// Returns when the call began, counted from the start of the clients.
    pub fn began(&self) -> Duration {
        self.ended.saturating_sub(self.took)
    }

    /// Returns the whole output.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Returns the code of the error that the call ended with.
    pub fn code(&self) -> Option<&str> {
        let (_, rest) = self.stderr.split_once("error[")?;
        Some(rest.split_once(']')?.0)
    }

    fn outcome(&self) -> String {
        self.code().map_or_else(|| "answered".to_owned(), str::to_owned)
    }
}

/// A submitted job.
#[derive(Clone, Debug)]
pub struct Job {
    pub job: String,
    pub id: String,
    /// When the job was submitted, and when the following of its log ended, both counted from the
    /// start of the clients.
    pub submitted: Duration,
    pub followed: Duration,
}

/// The record of the clients' work.
#[derive(Default)]
pub struct Account {
    pub calls: Vec<Call>,
    pub jobs: Vec<Job>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    account: Mutex<Account>,
}

/// Six clients at work.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Returns the status with which the job of this id ends.
pub fn status_of(id: &str) -> i32 {
    let sum: u32 = id.bytes().map(u32::from).sum();
    if sum.is_multiple_of(3) { 7 } else { 0 }
}

/// Returns a script that prints the machine's name, leaves its own id in a file that a fresh
/// machine does not have, and prints a line at its end.
fn script(id: &str) -> String {
    let status = status_of(id);
    format!(
        "cat /etc/hostname; cat /taken; echo {id} > /taken; sleep 0.3; cat /taken; echo end {id}; \
         exit {status}"
    )
}

impl Clients {
    pub fn start(asker: &Asker, folder: &Path) -> Clients {
        let (shared, since) = (Arc::new(Shared::default()), Instant::now());
        let client = |number: usize| {
            let client = Client {
                asker: asker.clone(),
                shared: shared.clone(),
                front: FRONTS[number],
                folder: folder.join(format!("client-{number}")),
                since,
            };
            std::fs::create_dir_all(&client.folder).expect("directory");
            std::thread::spawn(move || client.work(number))
        };
        let threads = (0..WORK.len()).map(client).collect();
        Clients { shared, threads }
    }

    /// Ends the clients, each after its present call.
    pub fn finish(mut self) -> Account {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().expect("a client");
        }
        std::mem::take(&mut *self.shared.account.lock().expect("account"))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

struct Client {
    asker: Asker,
    shared: Arc<Shared>,
    front: &'static str,
    folder: PathBuf,
    since: Instant,
}

impl Client {
    fn work(&self, number: usize) {
        for round in 0.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("id-{number}-{round}");
            match WORK[number] {
                Work::Run => {
                    self.call("run", &id, &["run", POOL, "--", "sh", "-c", &script(&id)]);
                }
                Work::Copy => self.copy(&id),
                Work::Job => self.job(&id),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Sends a file to a job, and checks that it comes back unchanged.
    fn copy(&self, id: &str) {
        let (sent, back) = (self.folder.join(id), self.folder.join("back"));
        std::fs::write(&sent, id.repeat(1000)).expect("file");
        let (from, to) = (sent.display().to_string(), back.display().to_string());
        let out = format!("/work/{id}:{to}");
        let words = ["run", POOL, "--in", &from, "--out", &out, "--", "sh", "-c", &script(id)];
        let call = self.call("run", id, &words);
        if call.code().is_none() && call.status == Some(status_of(id)) {
            let came = std::fs::read_to_string(back.join(id)).unwrap_or_default();
            assert_eq!(came, id.repeat(1000), "{call:?}");
        }
        let _ = std::fs::remove_dir_all(&back);
        std::fs::remove_file(&sent).expect("file");
    }

    fn job(&self, id: &str) {
        let made = self.call("submit", id, &["job", "submit", POOL, "--", "sh", "-c", &script(id)]);
        if made.status != Some(0) {
            return;
        }
        let job = made.stdout.trim().to_owned();
        self.call("wait", id, &["job", "wait", &job, "--timeout", "60"]);
        let followed = self.call("logs", id, &["job", "logs", "-f", &job]).ended;
        let known = Job { job, id: id.to_owned(), submitted: made.began(), followed };
        self.shared.account.lock().expect("account").jobs.push(known);
    }

    fn call(&self, what: &'static str, id: &str, words: &[&str]) -> Call {
        let mut command: Command = self.asker.mvm(self.front, words);
        let began = Instant::now();
        let output = command.output().expect("mvm");
        let call = Call {
            what,
            id: id.to_owned(),
            ended: self.since.elapsed(),
            took: began.elapsed(),
            status: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        self.shared.account.lock().expect("account").calls.push(call.clone());
        call
    }
}

/// Returns how often each call had each outcome, and the longest call.
pub fn summary(calls: &[Call]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for call in calls {
        *counts.entry(format!("{} {}", call.what, call.outcome())).or_default() += 1;
    }
    let longest = calls.iter().max_by_key(|call| call.took);
    let longest = longest
        .map(|call| format!("{} {} {:.1} s", call.what, call.outcome(), call.took.as_secs_f64()));
    format!("{counts:?}, longest {}", longest.unwrap_or_default())
}

/// Returns what is wrong with the output of a job that ended with this status; `None` where nothing
/// is.
pub fn wrong(id: &str, status: Option<i32>, stdout: &str) -> Option<String> {
    let lines: Vec<&str> = stdout.lines().collect();
    let end = format!("end {id}");
    match lines[..] {
        _ if status != Some(status_of(id)) => {
            Some(format!("status {status:?}, not {}", status_of(id)))
        }
        [_, taken, last] if taken == id && last == end => None,
        _ => Some(format!("it printed {stdout:?}")),
    }
}

/// Notes the machine that a job ran on. Returns whether another job ran on it before.
pub fn given_twice(seen: &mut BTreeSet<String>, stdout: &str) -> bool {
    stdout.lines().next().is_some_and(|machine| !seen.insert(machine.to_owned()))
}
