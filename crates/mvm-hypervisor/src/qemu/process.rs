//! Processes: starting one that outlives us, recognising one of ours, and learning of its end.

use crate::{Error, Exit, ProcessIdentity, Result, VmSpec};
use procfs::process::Process;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::RawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// What the end of a process is told through.
pub type ExitWatch = watch::Receiver<Option<Exit>>;

/// Starts `program` in a session of its own, with `fds` and nothing else inherited, its output
/// appended to `qemu.log`.
pub fn start(
    program: &Path,
    arguments: &[String],
    fds: &[RawFd],
    spec: &VmSpec,
) -> Result<(ProcessIdentity, ExitWatch)> {
    let failed = |what: &str, source: std::io::Error| Error::SpawnFailed {
        id: spec.id.clone(),
        what: what.to_owned(),
        source,
    };
    let path = spec.dir.join("qemu.log");
    let log = std::fs::File::create(&path).map_err(|e| failed("its log", e))?;
    let errors = log.try_clone().map_err(|e| failed("its log", e))?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    let inherited = fds.to_vec();
    // SAFETY: setsid(2), setrlimit(2), prctl(2), close_range(2) and fcntl(2) are async-signal-safe; the closure only reads
    // numbers that it owns, and the descriptors are open until the process has been started.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
            rustix::process::setrlimit(rustix::process::Resource::Core, none)?;
            rustix::thread::set_no_new_privs(true)?;
            // What whoever started us forgot to mark is not for a guest's process.
            let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
            if libc::close_range(3, libc::c_uint::MAX, flags) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            for fd in &inherited {
                let fd = BorrowedFd::borrow_raw(*fd);
                rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|e| failed(&program.display().to_string(), e))?;
    let identity = child.id().and_then(|pid| identity_of(pid, &spec.marker)).ok_or_else(|| {
        failed("the process, which ended at once", std::io::ErrorKind::Other.into())
    })?;
    let (tell, exit) = watch::channel(None);
    let log = spec.dir.join("qemu.log");
    tokio::spawn(async move {
        let status = child.wait().await;
        let clean = status.as_ref().is_ok_and(std::process::ExitStatus::success);
        let mut reason = match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (_, Some(signal)) => format!("killed by signal {signal}"),
                _ => status.to_string(),
            },
            Err(error) => error.to_string(),
        };
        if !clean {
            let last = tail(&log, 3);
            if !last.is_empty() {
                reason = format!("{reason}: {last}");
            }
        }
        let _ = tell.send(Some(Exit { reason, clean }));
    });
    Ok((identity, exit))
}

/// Watches a process that is not our child.
pub fn watch_adopted(process: &ProcessIdentity) -> Result<ExitWatch> {
    let handle = open(process)?;
    let (tell, exit) = watch::channel(None);
    let told =
        Exit { reason: "it ended while another agent's process watched".to_owned(), clean: false };
    let Some(handle) = handle else {
        let _ = tell.send(Some(told));
        return Ok(exit);
    };
    // SAFETY: an OwnedFd stays open, and the same, for as long as the AsyncFd owns it.
    let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }
        .map_err(|e| Error::io("watch a process")(e.into()))?;
    tokio::spawn(async move {
        let _ = handle.readable().await;
        let reason = "its process, started by an earlier agent, has ended".to_owned();
        let _ = tell.send(Some(Exit { reason, ..told }));
    });
    Ok(exit)
}

/// A pidfd of exactly this process; `None` if it is gone.
fn open(process: &ProcessIdentity) -> Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    let handle = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(e) => {
            return Err(Error::Io { what: format!("open process {pid:?}"), source: e.into() });
        }
    };
    // Checked after the handle was taken, so that it can be no later process with that number.
    Ok(is_alive(process).then_some(handle))
}

/// Sends SIGKILL, if the process is exactly the one that is meant.
pub fn kill(process: &ProcessIdentity) -> Result<()> {
    let Some(handle) = open(process)? else { return Ok(()) };
    match rustix::process::pidfd_send_signal(handle.as_fd(), Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => {
            Err(Error::Io { what: format!("kill process {}", process.pid), source: e.into() })
        }
    }
}

/// Pid, start time and marker of a live process.
pub fn identity_of(pid: u32, marker: &str) -> Option<ProcessIdentity> {
    let process = Process::new(pid.try_into().ok()?).ok()?;
    let start_time = process.stat().ok()?.starttime;
    Some(ProcessIdentity { pid, start_time, marker: marker.to_owned() })
}

/// Whether the process lives, and is the one that was recorded.
pub fn is_alive(process: &ProcessIdentity) -> bool {
    let Ok(pid) = i32::try_from(process.pid) else { return false };
    let Ok(found) = Process::new(pid) else { return false };
    let Ok(stat) = found.stat() else { return false };
    // A zombie has no arguments any more.
    stat.starttime == process.start_time
        && marker_of(&found).as_deref() == Some(process.marker.as_str())
}

/// Live processes whose marker begins with `prefix`.
pub fn find(prefix: &str) -> Result<Vec<ProcessIdentity>> {
    let processes = procfs::process::all_processes().map_err(|e| Error::Io {
        what: "list the processes".to_owned(),
        source: std::io::Error::other(e.to_string()),
    })?;
    let mut found = Vec::new();
    // One that ends while we look is simply not there.
    for process in processes.flatten() {
        let Some(marker) = marker_of(&process).filter(|marker| marker.starts_with(prefix)) else {
            continue;
        };
        if let Some(identity) =
            u32::try_from(process.pid).ok().and_then(|p| identity_of(p, &marker))
        {
            found.push(identity);
        }
    }
    Ok(found)
}

/// The marker in a QEMU process' arguments: the value of `-name guest=`.
fn marker_of(process: &Process) -> Option<String> {
    let arguments = process.cmdline().ok()?;
    if !arguments.first()?.contains("qemu-system") {
        return None;
    }
    let name = arguments.iter().position(|argument| argument == "-name")?;
    arguments.get(name + 1)?.strip_prefix("guest=").map(str::to_owned)
}

/// The last lines of a log.
pub fn tail(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
