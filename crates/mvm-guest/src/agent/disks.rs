//! Mounts and unmounts disks while the machine runs.

use super::common::guest_error;
use crate::Result;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Returns the block device whose virtio serial is `serial`, waiting for it at most for `patience`.
pub fn disk(serial: &str, patience: Duration) -> std::io::Result<PathBuf> {
    let deadline = Instant::now() + patience;
    loop {
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            let device = Path::new("/dev").join(entry.file_name());
            if found.trim() == serial && device.exists() {
                return Ok(device);
            }
        }
        if Instant::now() >= deadline {
            return Err(std::io::Error::new(
                ErrorKind::NotFound,
                format!("there is no disk {serial}"),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Mounts the disk at a folder, which is made if it is missing.
pub(super) fn mount(serial: &str, path: &str) -> Result<()> {
    let failed = |e: &std::io::Error| guest_error(&format!("mount the disk {serial} at {path}"), e);
    let device = disk(serial, Duration::ZERO).map_err(|e| failed(&e))?;
    if is_mounted(&device, path) {
        return Ok(());
    }
    // The host may have changed the disk since the kernel last read it.
    forget(&device).map_err(|e| failed(&e))?;
    fs::create_dir_all(path).map_err(|e| failed(&e))?;
    rustix::mount::mount(&device, path, "ext4", MountFlags::NOATIME, c"")
        .map_err(|e| failed(&e.into()))
}

/// Unmounts what is mounted at a folder, once everything is written.
pub(super) fn unmount(path: &str) -> Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        // Nothing is mounted there, or the folder does not exist.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(cause) => Err(guest_error(&format!("unmount {path}"), &cause.into())),
    }
}

fn is_mounted(device: &Path, path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut words = line.split(' ');
        words.next() == device.to_str() && words.next() == Some(path)
    })
}

/// Drops what the kernel has cached of a device.
fn forget(device: &Path) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    /// Defined in linux/fs.h.
    const BLKFLSBUF: libc::c_ulong = 0x1261;
    let device = File::open(device)?;
    // SAFETY: BLKFLSBUF takes no argument, and the descriptor is open for the whole call.
    match unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF as _, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
