//! Finds the process that holds a state directory, whether it answers or not: its process id is in
//! the lock's file, and it has that file open.

use crate::error::CliError;
use mvm_model::Code;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// The process that holds a state directory. The kernel gives its process id to no other process
/// while this value lives.
pub struct Holder {
    /// The process id.
    pub pid: u32,
    process: OwnedFd,
}

/// Returns the process that holds `root`, if one does.
pub fn of(root: &Path) -> Option<Holder> {
    let lock = root.join("node.lock");
    let pid: u32 = std::fs::read_to_string(&lock).ok()?.trim().parse().ok()?;
    let number = Pid::from_raw(pid.try_into().ok()?)?;
    // The process is opened before it is examined, so that a later process with the same id is not
    // taken for it.
    let process = pidfd_open(number, PidfdFlags::empty()).ok()?;
    has_open(pid, &lock).then_some(Holder { pid, process })
}

/// Returns whether the process has this file open.
fn has_open(pid: u32, path: &Path) -> bool {
    let Ok(wanted) = path.metadata() else { return false };
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut open = open.filter_map(|entry| entry.path().metadata().ok());
    open.any(|meta| (meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino()))
}

impl Holder {
    /// Returns whether the process is stopped (SIGSTOP).
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 't']))
    }

    /// Sends a signal to the process. It is no error if the process has ended.
    pub fn send(&self, signal: Signal) -> Result<(), CliError> {
        match pidfd_send_signal(&self.process, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => {
                let what = format!("cannot end the agent, process {}: {error}", self.pid);
                Err(CliError::new(Code::NotPermitted, what).hint("run mvm as root (sudo mvm …)"))
            }
        }
    }

    /// Waits for the process to end, at most for `time`. Gives the holder back where it still runs.
    pub async fn ended_within(self, time: Duration) -> Result<(), Holder> {
        let waited = tokio::task::spawn_blocking(move || {
            let until = std::time::Instant::now() + time;
            loop {
                let left = until.saturating_duration_since(std::time::Instant::now());
                let left = Timespec::try_from(left).ok();
                let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
                match poll(&mut ended, left.as_ref()) {
                    Ok(0) => return Err(self),
                    Err(rustix::io::Errno::INTR) => {}
                    _ => return Ok(()),
                }
            }
        });
        waited.await.unwrap_or(Ok(()))
    }
}
