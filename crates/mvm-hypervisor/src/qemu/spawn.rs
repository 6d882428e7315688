//! Starts a process that outlives the agent and inherits only what it is given.

use super::Accelerator;
use super::process::Process;
use super::run_dir::{self, Inherited};
use crate::{Error, Result, VmSpec};
use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A new process that is killed when this is dropped before [`KillOnDrop::disarm`].
#[derive(Debug)]
pub(super) struct KillOnDrop<'a> {
    process: Option<Process>,
    spec: &'a VmSpec,
}

impl KillOnDrop<'_> {
    /// Keeps the process alive from now on.
    pub(super) fn disarm(mut self) {
        self.process = None;
    }
}

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            process.kill_now();
            run_dir::clear(&self.spec.dir);
        }
    }
}

/// Runs `program` in a session of its own with `arguments`, the inherited descriptors and `state`;
/// its output goes to the inherited log.
pub(super) fn spawn<'a>(
    program: &Path,
    accelerator: Accelerator,
    arguments: Vec<OsString>,
    inherited: &Inherited,
    state: Option<RawFd>,
    spec: &'a VmSpec,
) -> Result<(Process, KillOnDrop<'a>)> {
    let failed = |source| Error::SpawnFailed {
        id: spec.id.clone(),
        what: program.display().to_string(),
        source,
    };
    let Inherited { qmp, channel, lock, log } = inherited;
    let mut inherited = vec![qmp.as_raw_fd(), channel.as_raw_fd(), lock.as_raw_fd()];
    inherited.extend(state);
    let mut command = Command::new(program);
    command
        .args(arguments)
        // The agent's environment may hold secrets, and QEMU needs nothing of it.
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log.try_clone().map_err(failed)?);
    // SAFETY: the closure makes system calls only and allocates nothing, as must be between
    // fork(2) and execve(2); the descriptors are open until `spawn` returns.
    unsafe { command.pre_exec(move || secede(&inherited, accelerator)) };
    let child = command.spawn().map_err(failed)?;
    // The child is not waited for through `child`: the watch on its pidfd does that.
    let process = Process::of_child(child.id(), &spec.marker)?;
    Ok((process.clone(), KillOnDrop { process: Some(process), spec }))
}

/// Prepares the new process between fork(2) and execve(2): session, privileges, limits,
/// descriptors.
fn secede(inherited: &[RawFd], accelerator: Accelerator) -> std::io::Result<()> {
    // In a session of its own, it gets no signal that a terminal or service manager sends to the
    // agent's group.
    rustix::process::setsid()?;
    rustix::thread::set_no_new_privs(true)?;
    // Guest memory must not end up in core dumps.
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none)?;
    // TCG requests huge pages for the code that it translates, and a clone never fills most of
    // them.
    if accelerator == Accelerator::Tcg {
        rustix::thread::disable_transparent_huge_pages(true)?;
    }
    close_on_exec_from(3)?;
    for fd in inherited {
        // SAFETY: the caller keeps these descriptors open.
        let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    Ok(())
}

/// Marks all descriptors from `first` on as close-on-exec (close_range(2)), including those that
/// the agent's parent forgot to mark.
fn close_on_exec_from(first: libc::c_uint) -> std::io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: sets a flag on descriptors of this process, which is about to execute another
    // program; no memory is involved.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, flags) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
