//! Keeps the agent alive when a guest's programs take all CPU time or memory: it is scheduled
//! before them, and the kernel's OOM killer does not choose it. The programs that it starts have no
//! such privilege.

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

/// How the kernel treats a process.
#[derive(Clone, Copy)]
struct Privileges {
    /// The nice value, see setpriority(2).
    nice: i32,
    /// The text for oom_score_adj, see proc(5).
    oom: &'static [u8],
}

const AGENT: Privileges = Privileges { nice: -20, oom: b"-1000" };
const PROGRAM: Privileges = Privileges { nice: 0, oom: b"0" };

/// The agent's own oom_score_adj file, once it is protected; locked while a program is started.
static PROTECTED: OnceLock<Mutex<File>> = OnceLock::new();

/// Protects the calling process. Threads that it starts from now on need [`prefer`] of their own.
pub fn protect() {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::CLOEXEC.bits() as i32)
        .open("/proc/self/oom_score_adj");
    let Ok(file) = file else { return };
    set(&file, AGENT);
    let _ = PROTECTED.set(Mutex::new(file));
    prefer();
}

/// Has the kernel run the calling thread before all ordinary ones, see sched(7). A thread of this
/// class also gets memory from the kernel's reserve: without it, the agent waits among thousands of
/// processes of a fork bomb, and its host takes the guest for dead. What the thread starts is
/// ordinary again.
pub fn prefer() {
    let _ = rustix::process::setpriority_process(None, AGENT.nice);
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads the parameter, which outlives the call, and changes this thread alone.
    // Where it refuses, the nice value holds.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &parameter) };
}

/// While this exists, programs that this thread starts have no privilege.
pub(super) struct Ordinary(Option<MutexGuard<'static, File>>);

impl Ordinary {
    pub(super) fn begin() -> Ordinary {
        let file = PROTECTED.get().map(|file| file.lock());
        if let Some(file) = &file {
            set(file, PROGRAM);
        }
        Ordinary(file)
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            set(file, AGENT);
        }
    }
}

fn set(oom: &File, privileges: Privileges) {
    // On Linux, this changes the calling thread alone.
    let _ = rustix::process::setpriority_process(None, privileges.nice);
    let _ = oom.write_at(privileges.oom, 0);
}
