//! The plain types that cross the trait: what to run, and what is known of it.

use mvm_model::{CpuModel, Mac, Mib};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::PathBuf;

/// The user ids that confined hypervisors run as, one per tenant: far above those that distributions
/// assign, and below the ranges of user namespaces.
pub const CONFINED_UIDS: Range<u32> = 412_000..416_096;

/// Everything that a driver knows about one machine. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Short name for logs, e.g. `i-1a2b3c4d`.
    pub id: String,
    /// Text in the process's argument vector by which adoption recognises it:
    /// `mvm:<root-id>:<instance>`. Letters, digits and `:._-/` only.
    pub marker: String,
    /// Private existing directory for sockets, `console.log` and `qemu.log`. With
    /// [`VmSpec::confine`] it becomes the process's root directory. Its path has at most 94 bytes,
    /// since Unix socket paths end at 107 (unix(7)).
    pub dir: PathBuf,
    /// Number of virtual CPUs, 1 to 255.
    pub vcpus: u32,
    /// Guest memory in MiB, at least 16.
    pub mem_mib: Mib,
    /// The CPU model of a new machine. One that is restored keeps what it has.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// The kernel to boot.
    pub kernel: Kernel,
    /// The file that backs guest memory. `boot` replaces it with an empty, sparse one.
    pub memory: PathBuf,
    /// Whether to reserve the file's blocks before the machine runs on it, so that a disk that
    /// fills up cannot end the machine. A clone maps its template's file privately and needs no
    /// reservation.
    #[serde(default)]
    pub reserve_memory: bool,
    /// Block devices in the order in which the guest should see them.
    pub disks: Vec<Disk>,
    /// The network card, if any.
    pub nic: Option<Nic>,
    /// A disk behind all other devices, with the serial `window`, whose errors are reported to the
    /// guest: an existing raw file. A machine must be restored with a window if, and only if, it
    /// was booted with one.
    #[serde(default)]
    pub window: Option<PathBuf>,
    /// The user that the process drops its privileges to; `None` keeps the caller's.
    pub confine: Option<Confine>,
}

/// A kernel, and the bus on which it expects its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// bzImage, or an uncompressed vmlinux with a PVH note (boots twice as fast).
    pub image: PathBuf,
    /// Initial RAM disk; `None` if the kernel needs none.
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
    /// The virtio serial by which the guest finds the disk: `root`, `scratch`, `data`. 1 to 20
    /// bytes of `a-z0-9-`.
    pub id: String,
    /// Path of the raw image file, which must exist.
    pub path: PathBuf,
    /// Whether the guest may only read the disk.
    pub read_only: bool,
}

/// A network card on an existing tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Name of the tap interface in the caller's network namespace.
    pub tap: String,
    /// The MAC address. A restored machine keeps the address that it was
    /// booted with until the guest sets another.
    pub mac: Mac,
}

/// The user that a machine's process runs as, with [`VmSpec::dir`] as its root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confine {
    /// User id, not 0.
    pub uid: u32,
    /// Group id, not 0.
    pub gid: u32,
}

/// What identifies one process for good: a pid alone is reused, a pid with its start time is not,
/// and the marker proves that the process is the caller's. The caller records it durably.
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

/// What a clone needs to get a memory file of its own when it is snapshotted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnMemory {
    /// The file to write its memory to, durable before the snapshot is; [`VmSpec::memory`] from
    /// then on.
    pub file: PathBuf,
    /// The template's snapshot, from which the clone was restored.
    pub template: PathBuf,
}

/// Which driver this is, and what it runs guests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The driver's name: `qemu` or `sim`.
    pub name: String,
    /// Version of the program behind the driver, as exactly as it is known: a template made by
    /// another build is not used.
    pub version: String,
    /// What executes the guest's instructions: `kvm`, `tcg`, or `none`.
    pub accelerator: String,
    /// A digest of what the host's CPU shows to new machines; empty where they do not see it.
    #[serde(default)]
    pub cpu: String,
    /// Whether the driver only simulates machines.
    pub simulated: bool,
}

/// What the host measures of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MachineStats {
    /// CPU time of the whole process, user and system, in ms.
    pub cpu_time_ms: u64,
    /// Resident memory in KiB, shared pages counted in full.
    pub resident_kib: u64,
    /// Resident memory in KiB, shared pages divided among those that map them
    /// (Pss in `/proc/PID/smaps_rollup`).
    pub proportional_kib: u64,
    /// Whether the vCPUs are paused, as the monitor reports; `false` if it does not answer.
    pub paused: bool,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The cause, for people: `exit status 1`, `killed by signal 9`, followed by the last lines of
    /// `qemu.log` on lines of their own unless the end was orderly.
    pub reason: String,
    /// The last lines of the guest's console, or its kernel's panic; empty if it printed nothing.
    pub console: String,
    /// Whether the guest shut itself down: the process left with status 0.
    pub clean: bool,
}
