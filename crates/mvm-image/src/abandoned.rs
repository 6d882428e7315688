//! Ends programs that a killed agent left running.
//!
//! Every program that works for a work directory carries that directory's mark in its environment
//! from its first moment on. So no record has to be written in time, and none can point to a later
//! process that got the same number.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The environment variable that says for which work directory a program works.
pub(crate) const MARK: &str = "MVM_WORKS_FOR";
/// How long a program may take to end by itself, together with what it has started.
const ASKED: Duration = Duration::from_secs(3);
/// How long the kernel may take to end a killed program.
const KILLED: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A process that runs now, identified by what no later process shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    /// Start of the process, in clock ticks since boot.
    begun: u64,
}

/// Returns the mark of a work directory, which does not depend on the path used; `None` if the
/// directory does not exist.
pub(crate) fn mark_of(dir: &Path) -> Option<String> {
    let meta = std::fs::metadata(dir).ok()?;
    Some(format!("{}:{}:{}", meta.dev(), meta.ino(), dir.file_name()?.to_string_lossy()))
}

/// Ends the programs that work for a directory, and what they have started: first with SIGTERM,
/// then with SIGKILL. Blocks until they have ended, five seconds at most. No live agent may be
/// using the directory.
pub(crate) fn end(dir: &Path) {
    let Some(mark) = mark_of(dir) else { return };
    let entry = format!("{MARK}={mark}");
    let mut living = family(&[], &entry);
    if living.is_empty() {
        return;
    }
    tracing::info!(path = %dir.display(), count = living.len(), "ending programs of a killed agent");
    living.iter().filter(|process| has(process, &entry)).for_each(|p| signal(p, Signal::TERM));
    let began = Instant::now();
    while !living.is_empty() && began.elapsed() < ASKED + KILLED {
        if began.elapsed() > ASKED {
            living.iter().for_each(|process| signal(process, Signal::KILL));
        }
        std::thread::sleep(LOOK_AGAIN);
        living = family(&living, &entry);
    }
    for Process { pid, .. } in living {
        tracing::warn!(pid, path = %dir.display(), "a program of a killed agent does not end");
    }
}

/// Returns the processes with this entry in their environment, those of `known` that still live,
/// and their children.
fn family(known: &[Process], entry: &str) -> Vec<Process> {
    let (mut found, mut others): (Vec<_>, Vec<_>) = all().into_iter().partition(|process| {
        has(process, entry)
            || known.iter().any(|k| (k.pid, k.begun) == (process.pid, process.begun))
    });
    loop {
        let is_child = |process: &Process| found.iter().any(|p| p.pid == process.parent);
        let (children, rest): (Vec<_>, Vec<_>) = others.into_iter().partition(is_child);
        if children.is_empty() {
            return found;
        }
        found.extend(children);
        others = rest;
    }
}

fn has(process: &Process, entry: &str) -> bool {
    let environ = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
    environ.split(|byte| *byte == 0).any(|variable| variable == entry.as_bytes())
}

/// Returns all processes that have not ended.
fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| look_at(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Reads a process from /proc/PID/stat (proc_pid_stat(5)); the fields follow the name, which may
/// contain anything.
fn look_at(pid: i32) -> Option<Process> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (state, parent, begun) = (fields.first()?, fields.get(1)?, fields.get(19)?);
    if ["Z", "X"].contains(state) {
        return None;
    }
    Some(Process { pid, parent: parent.parse().ok()?, begun: begun.parse().ok()? })
}

/// Sends a signal to that process, and never to a later one with the same number.
fn signal(process: &Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if look_at(process.pid).is_some_and(|now| now.begun == process.begun) {
        let _ = pidfd_send_signal(&handle, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn program(dir: &Path, script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(dir);
        command.env(MARK, mark_of(dir).expect("a mark")).spawn().expect("sh")
    }

    fn wait_for(path: &Path) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !path.exists() {
            assert!(Instant::now() < deadline, "{} does not come", path.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_is_ended_with_what_it_has_started_and_another_is_not() {
        let root = tempfile::tempdir().expect("directory");
        let (dir, other) = (root.path().join(".tmp-a"), root.path().join(".tmp-b"));
        std::fs::create_dir(&dir).expect("directory");
        std::fs::create_dir(&other).expect("directory");
        // The program obeys SIGTERM and leaves a child behind that has another environment and
        // ignores the signal.
        let child = "trap '' TERM; echo $$ > child.new; mv child.new child; \
                     while :; do sleep 0.05; done";
        let script = format!("env -i PATH=\"$PATH\" setsid sh -c \"{child}\" & wait");
        let mut first = program(&dir, &script.replace("$$", "\\$\\$"));
        let mut second = program(&other, "touch begun; exec sleep 1000");
        wait_for(&dir.join("child"));
        wait_for(&other.join("begun"));
        let pid = std::fs::read_to_string(dir.join("child")).expect("a number");
        let pid: i32 = pid.trim().parse().expect("a number");
        assert!(look_at(pid).is_some());
        end(&dir);
        assert!(first.try_wait().expect("status").is_some(), "the program lives");
        assert_eq!(look_at(pid), None, "its child lives");
        assert!(second.try_wait().expect("status").is_none(), "another's has been ended");
        end(&other);
        assert!(second.try_wait().expect("status").is_some(), "the other lives");
    }
}
