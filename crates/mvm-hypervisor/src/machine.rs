//! The two traits that every driver implements.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    Condition, Description, Exit, MachineStats, OwnMemory, ProcessIdentity, RestoreMemory, Result,
    VmSpec,
};

/// Called once, as soon as a machine's process exists and before anything else
/// happens to it, so that the caller can record it durably. It may block for the
/// length of one such record.
pub type OnStarted<'a> = &'a (dyn Fn(&ProcessIdentity) + Send + Sync);

/// A virtual machine monitor: makes machines, and finds those made before.
///
/// If `boot` or `restore` fails, or its future is dropped before it is done, the
/// process it had started is killed: no machine exists that nobody holds.
/// After they returned, machines outlive both the driver and the caller's
/// process; dropping a [`Machine`] leaves it running.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// Who the driver is, and what it runs guests on.
    fn description(&self) -> Description;

    /// Starts a machine from its kernel; returns when the guest is running (not
    /// when it is ready). Errors: `invalid_spec`, `spawn_failed`, `died_at_boot`
    /// (with the last lines of `qemu.log` and `console.log`), `no_space`,
    /// `qmp_timeout`.
    async fn boot(&self, spec: &VmSpec, started: OnStarted<'_>) -> Result<Arc<dyn Machine>>;

    /// Brings a machine back from the device state in `snapshot` and the memory
    /// in [`VmSpec::memory`], and leaves it **paused**. Disks' paths and the tap
    /// may be others than at the time of the snapshot; number and order of
    /// devices, vCPUs and memory must be the same. Errors as `boot`, and
    /// `restore_failed`.
    async fn restore(
        &self,
        spec: &VmSpec,
        snapshot: &Path,
        memory: RestoreMemory,
        started: OnStarted<'_>,
    ) -> Result<Arc<dyn Machine>>;

    /// Takes over a machine that an earlier process of the caller's started.
    /// `None` if that process is gone, its pid was reused, or the marker is not
    /// ours. A process that is ours and does not answer is an error
    /// (`qmp_timeout`): then [`Hypervisor::kill_stray`] ends it.
    async fn adopt(
        &self,
        spec: &VmSpec,
        process: &ProcessIdentity,
    ) -> Result<Option<Arc<dyn Machine>>>;

    /// Kills a process whose machine cannot or shall not be adopted, and waits
    /// for its end. Only if pid, start time and marker all match; `not_ours` if
    /// the pid lives and they don't; success if it is gone already.
    async fn kill_stray(&self, process: &ProcessIdentity) -> Result<()>;

    /// All live processes of this driver whose marker starts with
    /// `marker_prefix`: recovery finds machines whose record was never written.
    fn find(&self, marker_prefix: &str) -> Result<Vec<ProcessIdentity>>;
}

/// One live machine. All methods may be called at any time and by many tasks;
/// the driver puts them in order.
#[async_trait]
pub trait Machine: Send + Sync {
    /// The process behind it.
    fn process(&self) -> ProcessIdentity;

    /// Unix stream socket of the guest channel, to be connected to by one client
    /// at a time. Bytes pass unchanged to the guest's virtio port `mvm.agent.0`.
    fn channel(&self) -> PathBuf;

    /// The file behind its window ([`crate::VmSpec::window`]), if it has one.
    fn window(&self) -> Option<PathBuf> {
        None
    }

    /// Whether it does what it was told, followed from its start or its adoption on: a hypervisor
    /// stops the vCPUs by itself where a disk is full or broken, or where the guest has crashed. The
    /// channel closes with the machine.
    fn condition(&self) -> watch::Receiver<Condition>;

    /// Stops the vCPUs. Idempotent; one round trip.
    async fn pause(&self) -> Result<()>;

    /// Lets the vCPUs run. Idempotent; one round trip.
    async fn resume(&self) -> Result<()>;

    /// Lets a halted machine do again what it could not do: where that fails once more,
    /// [`Machine::condition`] tells. Nothing happens to one that its caller has paused, whoever comes
    /// first. Idempotent; one round trip.
    async fn retry(&self) -> Result<()>;

    /// Writes the device state of a **paused** machine to the file `to`: either
    /// all of it, durable, under that name, or nothing; and makes its memory file
    /// durable. A clone has none: it leaves its memory in `own`, or, without that or where the driver
    /// cannot, in `to`. The machine stays paused. After an error (`no_space`, `snapshot_failed`,
    /// `not_paused`) it is as it was and can be resumed. After success either kill it, and restore it
    /// later, or resume it, and then the snapshot is void (memory has moved on).
    async fn snapshot(&self, to: &Path, own: Option<&OwnMemory>) -> Result<()>;

    /// Ends the process at once, without asking the guest, flushing what the
    /// guest has written to its disks; waits for its end and removes its sockets.
    /// Idempotent.
    async fn kill(&self) -> Result<()>;

    /// What the host sees of it. `gone` if it has ended.
    async fn stats(&self) -> Result<MachineStats>;

    /// Resolves when the process is gone, at once if it is already.
    async fn exited(&self) -> Exit;
}
