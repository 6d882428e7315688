//! PID 1.

mod fill;
mod mounts;
mod settings;

use rustix::process::{Pid, WaitOptions};
use rustix::system::RebootCommand;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// The agent's exit status when the machine is to end.
pub const SHUTDOWN: i32 = 40;
/// How long programs may take to end on SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Never returns: when PID 1 ends, the kernel panics.
pub fn run() -> ! {
    // Programs of an image expect a file mode mask that lets others read.
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

/// Says something on the console.
pub fn say(what: &str) {
    eprintln!("mvm-guest: {what}");
}

fn spawn_agent() -> std::io::Result<Pid> {
    // The file that this process was started from is not to be found by any path any more.
    let child = Command::new("/proc/self/exe").arg0("mvm-guest").arg("agent").spawn()?;
    Ok(Pid::from_child(&child))
}

/// Reaps every child until the agent has ended; gives its exit status.
fn reap_until(agent: Pid) -> Option<i32> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => return status.exit_status(),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Ends all programs, writes everything to the disks, and ends the machine. A restart is asked for:
/// without ACPI it is the only end that the hypervisor sees, and it does not restart.
fn end() -> ! {
    broadcast(libc::SIGTERM);
    // Interactive shells do not listen to SIGTERM.
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

/// kill(2) with pid -1: all processes but this one.
fn broadcast(signal: i32) {
    // SAFETY: kill(2) takes two numbers and touches no memory.
    unsafe {
        libc::kill(-1, signal);
    }
}
