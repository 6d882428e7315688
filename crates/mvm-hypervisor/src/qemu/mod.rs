//! The QEMU driver: one `qemu-system-x86_64` process per machine, QMP over a Unix socket.
//!
//! Memory is a file that the guest's RAM maps, so that a snapshot is the device state alone
//! (`x-ignore-shared`). The driver binds the sockets and hands them over, so that they can be
//! connected to at once and outlive the driver's own process. The QEMU process drops its privileges
//! and its view of the file system after it has opened everything (`-runas`, `-chroot`), and its
//! system calls are filtered (`-sandbox`).

mod arguments;
mod binary;
mod cpu_models;
mod cpuid;
mod driver;
mod footprint;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod heard;
mod logs;
mod machine;
mod memory;
mod oom;
mod probe;
mod process;
mod qmp;
mod reading;
mod run_dir;
mod snapshot;
mod spawn;
mod stream;
mod unshare;
mod validate;

pub use binary::Version;
pub use driver::QemuDriver;
pub use logs::trim_log;
pub use probe::{KvmProbe, kept_verdict};
pub use process::{find, kill_stray};

use mvm_model::Accelerator;

/// The size in bytes to which [`trim_log`] should cut `console.log` and `qemu.log`.
pub const CONSOLE_MAX_BYTES: u64 = 1 << 20;

/// The guest's serial console, in [`crate::VmSpec::dir`]; emptied at boot, then appended to.
const CONSOLE_LOG: &str = "console.log";
/// QEMU's own output, in [`crate::VmSpec::dir`]; emptied at every start.
const QEMU_LOG: &str = "qemu.log";
