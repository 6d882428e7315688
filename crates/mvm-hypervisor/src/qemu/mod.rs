//! The QEMU driver: one `qemu-system-x86_64` process a machine, QMP over a Unix socket.
//!
//! Memory is a file that the guest's RAM maps, so that a snapshot is the device state alone
//! (`x-ignore-shared`). Sockets are bound by us and handed over, so that they can be connected to at
//! once. The process drops its privileges and its view of the file system after it has opened
//! everything (`-runas`, `-chroot`), and its system calls are filtered (`-sandbox`).

mod arguments;
mod driver;
mod machine;
mod probe;
mod process;
mod qmp;

pub use driver::QemuDriver;
pub use probe::{Probe, probe};

/// What `console.log` and `qemu.log` are cut back to, in bytes.
pub const CONSOLE_MAX_BYTES: u64 = 1 << 20;

/// Cuts a log that is appended to back to its last `max_bytes` bytes, from the beginning of a line.
/// What is written between the reading and the cutting is lost.
pub fn trim_log(path: &std::path::Path, max_bytes: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom, Write};
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    if length <= max_bytes {
        return Ok(());
    }
    // Half of it, so that not every new line is a reason to cut again.
    file.seek(SeekFrom::Start(length - max_bytes / 2))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let start = tail.iter().position(|byte| *byte == b'\n').map_or(0, |index| index + 1);
    // The hypervisor appends (O_APPEND): it goes on at whatever the end is.
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&tail[start..])
}
