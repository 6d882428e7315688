//! PID 1 of every guest, and the guest's agent.
//!
//! As PID 1 it makes the machine usable, starts itself again as the agent, reaps what dies, and
//! ends the machine when the agent has been asked to.

mod init;
mod port;

use mvm_guest::agent::{Agent, Powers, disks, prefer, protect};
use mvm_guest::window::{self, Window};
use std::time::Duration;

fn main() {
    let first = std::env::args().nth(1);
    match first.as_deref() {
        Some("agent") => serve(),
        _ if std::process::id() == 1 => init::run(),
        _ => {
            eprintln!("mvm-guest is the first process of an mvm guest; it does nothing elsewhere");
            std::process::exit(2);
        }
    }
}

/// Runs the agent's process. Its exit status tells PID 1 what to do next.
fn serve() {
    protect();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().on_thread_start(prefer).build();
    let outcome = runtime.map(|runtime| {
        runtime.block_on(async {
            let wire = port::open()?;
            let agent = Agent::new(Powers::Guest);
            // Machines of older hosts have no window.
            let window = disks::disk(window::SERIAL, Duration::ZERO);
            let window = window.and_then(|device| Window::of_guest(&device)).ok();
            tokio::select! {
                () = agent.clone().serve(wire, window) => Ok(1),
                () = agent.shutdown.notified() => {
                    // The answer to the request may still be on its way.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(init::SHUTDOWN)
                }
            }
        })
    });
    let status = match outcome {
        Ok(Ok(status)) => status,
        Ok(Err(error)) | Err(error) => {
            eprintln!("mvm-guest: {error}");
            1
        }
    };
    std::process::exit(status);
}
