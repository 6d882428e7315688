//! The agent goes on where the programs of a guest take all of it: it is scheduled before them, and the
//! kernel does not choose it when memory is short. What it starts is as any other program.

use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What is said to the kernel about a process.
#[derive(Clone, Copy)]
struct Standing {
    /// setpriority(2)
    nice: i32,
    /// proc(5), oom_score_adj
    oom: &'static [u8],
}

const AGENT: Standing = Standing { nice: -20, oom: b"-1000" };
const PROGRAM: Standing = Standing { nice: 0, oom: b"0" };

/// The file of the agent's own oom_score_adj, once it is protected; held while a program is started.
static PROTECTED: OnceLock<Mutex<File>> = OnceLock::new();

/// Protects the calling process. Threads that it starts from now on are scheduled as it is.
pub fn protect() {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::CLOEXEC.bits() as i32)
        .open("/proc/self/oom_score_adj");
    let Ok(file) = file else { return };
    set(&file, AGENT);
    let _ = PROTECTED.set(Mutex::new(file));
}

/// While it is there, what this thread starts is a program like any other.
pub(super) struct Ordinary(Option<MutexGuard<'static, File>>);

impl Ordinary {
    pub(super) fn begin() -> Ordinary {
        let file = PROTECTED.get().map(|file| file.lock().unwrap_or_else(PoisonError::into_inner));
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

fn set(oom: &File, standing: Standing) {
    // Of this thread alone, on Linux.
    let _ = rustix::process::setpriority_process(None, standing.nice);
    let _ = oom.write_at(standing.oom, 0);
}
