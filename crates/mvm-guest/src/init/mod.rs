//! PID 1 of a guest: sets the machine up, runs the agent and ends the machine.

mod fill;
mod mounts;
mod settings;

use rustix::process::{Pid, WaitOptions};
use rustix::system::RebootCommand;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// The agent's exit status that makes PID 1 shut the machine down.
pub const SHUTDOWN: i32 = 40;
/// How long programs may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Runs PID 1. Never returns: when PID 1 ends, the kernel panics.
pub fn run() -> ! {
    // Programs of an image expect a umask that lets others read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if let Err(error) = mounts::assemble() {
        say(&format!("cannot assemble the root file system: {error}"));
        end();
    }
    settings::apply();
    fill::fill_in();
    loop {
        match spawn_agent() {
            Ok(agent) => {
                let status = reap_until(agent);
                if status == Some(SHUTDOWN) {
                    end();
                }
                say(&format!("the agent ended ({status:?}); it is started again"));
            }
            Err(error) => say(&format!("cannot start the agent: {error}")),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Writes a line to the console.
pub fn say(what: &str) {
    eprintln!("mvm-guest: {what}");
}

fn spawn_agent() -> std::io::Result<Pid> {
    // The file that this process was started from has no path any more.
    let child = Command::new("/proc/self/exe").arg0("mvm-guest").arg("agent").spawn()?;
    Ok(Pid::from_child(&child))
}

/// Reaps every child until the agent has ended; returns its exit status, or `None` if a signal
/// ended it.
fn reap_until(agent: Pid) -> Option<i32> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => return status.exit_status(),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Ends all programs, writes everything to the disks, and ends the machine by a restart: without
/// ACPI that is the only end that the hypervisor sees, and it does not restart.
fn end() -> ! {
    broadcast(libc::SIGTERM);
    // Interactive shells ignore SIGTERM.
    broadcast(libc::SIGHUP);
    broadcast(libc::SIGCONT);
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Err(_) => break,
            Ok(Some(_)) => {}
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    broadcast(libc::SIGKILL);
    rustix::fs::sync();
    mounts::release();
    let _ = rustix::system::reboot(RebootCommand::Restart);
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Sends a signal to all processes but this one (kill(2) with pid -1).
fn broadcast(signal: i32) {
    // SAFETY: kill(2) takes two numbers and touches no memory.
    unsafe {
        libc::kill(-1, signal);
    }
}
