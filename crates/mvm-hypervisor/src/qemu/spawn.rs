//! Starting a process that outlives us, inherits what it is given and nothing else.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Accelerator;
use super::place::{self, Place};
use super::process::Process;
use crate::{Error, Result, VmSpec};

/// A process that is killed when this is dropped before [`Newborn::grown`].
#[derive(Debug)]
pub(super) struct Newborn<'a> {
    process: Option<Process>,
    spec: &'a VmSpec,
}

impl Newborn<'_> {
    /// The process may live on without us.
    pub(super) fn grown(mut self) {
        self.process = None;
    }
}

impl Drop for Newborn<'_> {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            process.kill_now();
            place::clear(&self.spec.dir);
        }
    }
}

/// Runs `program` in a session of its own with `arguments`, the place's descriptors and
/// `state`; its output goes to the place's log.
pub(super) fn spawn<'a>(
    program: &Path,
    accelerator: Accelerator,
    arguments: Vec<OsString>,
    place: &Place,
    state: Option<RawFd>,
    spec: &'a VmSpec,
) -> Result<(Process, Newborn<'a>)> {
    let failed = |source| Error::SpawnFailed {
        id: spec.id.clone(),
        what: program.display().to_string(),
        source,
    };
    let mut inherited =
        vec![place.qmp.as_raw_fd(), place.channel.as_raw_fd(), place.lock.as_raw_fd()];
    inherited.extend(state);
    let mut command = Command::new(program);
    command
        .args(arguments)
        // Our environment may hold secrets, and QEMU needs nothing of it.
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(place.log.try_clone().map_err(failed)?)
        .stderr(place.log.try_clone().map_err(failed)?);
    // SAFETY: the closure makes system calls only and allocates nothing, as must be between
    // fork(2) and execve(2); the descriptors are open until `spawn` returns.
    unsafe { command.pre_exec(move || secede(&inherited, accelerator)) };
    let child = command.spawn().map_err(failed)?;
    // Not waited for through `child`: the watch on its pidfd does that.
    let process = Process::of_child(child.id(), &spec.marker)?;
    Ok((process.clone(), Newborn { process: Some(process), spec }))
}

/// What the new process does to itself before it becomes QEMU.
fn secede(inherited: &[RawFd], accelerator: Accelerator) -> std::io::Result<()> {
    // No terminal's or service manager's signal to our group reaches it.
    rustix::process::setsid()?;
    rustix::thread::set_no_new_privs(true)?;
    // Guest memory has no business in core dumps.
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none)?;
    // TCG asks for huge pages for the code that it translates, most of which a clone never fills.
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

/// close_range(2): also what somebody who started us forgot to mark.
fn close_on_exec_from(first: libc::c_uint) -> std::io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: sets a flag on descriptors of this process, which is about to execute another
    // program; no memory is involved.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, flags) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
