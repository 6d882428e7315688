//! The plain types that cross the trait: what to run, and what is known of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything a driver is told about one machine. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Short name for logs, e.g. `i-1a2b3c4d`.
    pub id: String,
    /// Text that ends up in the process's argument vector and that adoption
    /// demands, `mvm:<root-id>:<instance>`. Letters, digits and `:._-/` only.
    pub marker: String,
    /// Private existing directory for sockets, `console.log` and `qemu.log`.
    /// With [`VmSpec::confine`] it becomes the process's root directory. Keep it
    /// under 80 bytes: Unix socket paths end at 107 (unix(7)).
    pub dir: PathBuf,
    /// Virtual CPUs, 1 or more.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub mem_mib: u64,
    /// What to boot.
    pub kernel: Kernel,
    /// The file that backs guest memory; `boot` creates it, sparse, and empties
    /// it if it exists.
    pub memory: PathBuf,
    /// Reserve the file's blocks before the machine runs on it, so that a disk that fills up cannot
    /// end the machine. A clone maps its template's file privately and needs none.
    #[serde(default)]
    pub reserve_memory: bool,
    /// Block devices in the order in which the guest should see them.
    pub disks: Vec<Disk>,
    /// The network card, if any.
    pub nic: Option<Nic>,
    /// A disk behind all other devices whose errors are the guest's to know, with the serial
    /// `window`: an existing raw file. A machine is restored with it if it was booted with it.
    #[serde(default)]
    pub window: Option<PathBuf>,
    /// Drop privileges to this user; `None` leaves the process as the caller is.
    pub confine: Option<Confine>,
}

/// A kernel and how it wants its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// bzImage, or an uncompressed vmlinux with a PVH note (boots twice as fast).
    pub image: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Appended to the driver's own kernel arguments (console and so on).
    pub append: String,
    /// Which bus the kernel has drivers for.
    pub platform: Platform,
}

/// The bus that virtio devices sit on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// A PC with PCI: any distribution's kernel.
    Pci,
    /// A microVM with virtio-mmio devices announced on the kernel command line:
    /// needs `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`.
    Mmio,
}

/// One block device, a raw file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The virtio serial by which the guest finds it: `root`, `scratch`, `data`.
    /// At most 20 bytes of `a-z0-9-`.
    pub id: String,
    /// Raw image file.
    pub path: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// A network card on an existing tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Name of the tap interface in the caller's network namespace.
    pub tap: String,
    /// `aa:bb:cc:dd:ee:ff`. A restored machine keeps the one it was booted with
    /// until the guest sets another.
    pub mac: String,
}

/// Whom a machine's process runs as, chrooted into [`VmSpec::dir`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confine {
    /// User id, not 0.
    pub uid: u32,
    /// Group id, not 0.
    pub gid: u32,
}

/// What names one process for good: a pid alone is reused, a pid with its start
/// time is not, and the marker says that it is ours. The caller's durable record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Start of the process in clock ticks after boot, field 22 of
    /// `/proc/PID/stat` (proc(5)).
    pub start_time: u64,
    /// [`VmSpec::marker`] of the machine.
    pub marker: String,
}

/// How a restored machine maps its memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestoreMemory {
    /// Shared mapping of [`VmSpec::memory`]: the machine's own file, which it
    /// writes to. It can be snapshotted again cheaply.
    Own,
    /// Private mapping of [`VmSpec::memory`]: a template's file, never written
    /// to, which any number of clones map at once. A snapshot of such a machine
    /// holds its memory, or leaves it in a file ([`OwnMemory`]), and is restored as
    /// [`RestoreMemory::Own`]: from then on it has a file of its own.
    Clone,
}

/// What a clone needs to have memory of its own when it is snapshotted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnMemory {
    /// The file that is made of its memory, durable before the snapshot; [`VmSpec::memory`] from then on.
    pub file: PathBuf,
    /// The snapshot that it was restored from.
    pub template: PathBuf,
}

/// Who the driver is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// `qemu`, `firecracker`, `sim`.
    pub name: String,
    /// Version of the program behind it, as exactly as it can be said: what was made by another is not its own.
    pub version: String,
    /// `kvm`, `tcg`, or `none`.
    pub accelerator: String,
    /// No real machine is behind it.
    pub simulated: bool,
}

/// What the host sees of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MachineStats {
    /// CPU time of the whole process, user and system, in ms.
    pub cpu_time_ms: u64,
    /// Resident memory in KiB, shared pages counted in full.
    pub resident_kib: u64,
    /// Resident memory in KiB, shared pages divided among those that map them
    /// (Pss in `/proc/PID/smaps_rollup`).
    pub proportional_kib: u64,
    /// The vCPUs are paused, as the monitor says; `false` where it does not answer.
    pub paused: bool,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// For people: `exit status 1`, `killed by signal 9`, with the last lines of `qemu.log` on lines
    /// of their own where it was no orderly end.
    pub reason: String,
    /// The last lines of the guest's console, or its kernel's panic; empty where it printed nothing.
    pub console: String,
    /// The guest ended it: the process left with status 0.
    pub clean: bool,
}
