//! The two traits that every driver implements.

use crate::{
    Condition, Description, Exit, MachineStats, OwnMemory, ProcessIdentity, RestoreMemory, Result,
    VmSpec,
};
use async_trait::async_trait;
use mvm_model::CpuModel;
use mvm_model::accelerator::Processor;
use mvm_model::footprint::Footprint;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// Called once, as soon as a machine's process exists and before anything else
/// happens to it, so that the caller can record it durably. It may block for the
/// length of one such record.
pub type OnStarted<'a> = &'a (dyn Fn(&ProcessIdentity) + Send + Sync);

/// A virtual machine monitor: makes machines, and finds those made before.
///
/// If `boot` or `restore` fails, or its future is dropped before it is done, the process that it
/// started is killed, so no machine is left without a holder. Once they have returned, machines
/// outlive both the driver and the caller's process; dropping a [`Machine`] leaves it running.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// Returns the driver's name and version, and what it runs guests on.
    fn description(&self) -> Description;

    /// Checks that new machines can have this CPU model, in full, with the present accelerator.
    /// Error: `cpu_model_unavailable`.
    async fn check_cpu_model(&self, model: &CpuModel) -> Result<()>;

    /// Starts a machine from its kernel; returns when the guest is running (not
    /// when it is ready). Errors: `invalid_spec`, `spawn_failed`, `died_at_boot`
    /// (with the last lines of `qemu.log` and `console.log`), `no_space`,
    /// `qmp_timeout`, `cpu_model_unavailable`.
    async fn boot(&self, spec: &VmSpec, started: OnStarted<'_>) -> Result<Arc<dyn Machine>>;

    /// Brings a machine back from the device state in `snapshot` and the memory in
    /// [`VmSpec::memory`], and leaves it **paused**. The paths of the disks and the tap may differ
    /// from those at the time of the snapshot; the number and order of devices, the vCPUs and the
    /// memory must be the same. The machine gets the accelerator and the CPU that it had then. Errors:
    /// those of `boot`, `kvm_unavailable`, `cpu_differs`, and `restore_failed`.
    async fn restore(
        &self,
        spec: &VmSpec,
        snapshot: &Path,
        memory: RestoreMemory,
        started: OnStarted<'_>,
    ) -> Result<Arc<dyn Machine>>;

    /// Takes over a machine that an earlier process of the caller started. Returns `None` if that
    /// process is gone, its pid was reused, or its marker is not [`VmSpec::marker`]. If the process
    /// is the right one but does not answer, the error is `qmp_timeout`; end it with
    /// [`Hypervisor::kill_stray`].
    async fn adopt(
        &self,
        spec: &VmSpec,
        process: &ProcessIdentity,
    ) -> Result<Option<Arc<dyn Machine>>>;

    /// Kills a process whose machine cannot or shall not be adopted, and waits for its end. Kills
    /// only if pid, start time and marker all match. Errors: `not_ours` if another process has the
    /// pid. A process that is already gone counts as success.
    async fn kill_stray(&self, process: &ProcessIdentity) -> Result<()>;

    /// Returns all live processes of this driver, of our user or a confined one, whose marker starts with `marker_prefix`: recovery
    /// finds machines whose record was never written.
    fn find(&self, marker_prefix: &str) -> Result<Vec<ProcessIdentity>>;
}

/// One live machine. All methods may be called at any time and by many tasks;
/// the driver puts them in order.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Returns the identity of the process that runs the machine.
    fn process(&self) -> ProcessIdentity;

    /// Returns the path of the guest channel's Unix stream socket, for one client at a time. Bytes
    /// pass unchanged to the guest's virtio port `mvm.agent.0`.
    fn channel(&self) -> PathBuf;

    /// Returns the file behind the machine's window ([`crate::VmSpec::window`]); `None` if it has
    /// none.
    fn window(&self) -> Option<PathBuf> {
        None
    }

    /// Returns the processor that the machine was started with; `None` if the driver has none.
    fn processor(&self) -> Option<Processor>;

    /// Checks that the machine can be restored on this host as it is now, so that it may be
    /// snapshotted and ended. Error: `kvm_unavailable`.
    fn check_restorable(&self) -> Result<()>;

    /// Follows whether the machine does what its caller last asked (run or pause), from its start
    /// or adoption on: a hypervisor stops the vCPUs by itself when a disk is full or broken, or
    /// when the guest has crashed. The watch channel closes with the machine.
    fn condition(&self) -> watch::Receiver<Condition>;

    /// Stops the vCPUs. Idempotent; one round trip.
    async fn pause(&self) -> Result<()>;

    /// Lets the vCPUs run. Idempotent; one round trip.
    async fn resume(&self) -> Result<()>;

    /// Lets a halted machine try again what it could not do; if that fails once more,
    /// [`Machine::condition`] says so. Does nothing to a machine that its caller has paused, even
    /// if the two calls race. Idempotent; one round trip.
    async fn retry(&self) -> Result<()>;

    /// Writes the device state of a **paused** machine to the file `to`: either all of it, durable,
    /// under that name, or nothing; and makes its memory file durable. A clone has no memory file:
    /// its memory goes to `own`, or into `to` if `own` is `None` or the driver cannot separate it.
    /// The machine stays paused. After an error (`no_space`, `snapshot_failed`, `not_paused`) it is
    /// unchanged and can be resumed. After success, either kill it and restore it later, or resume
    /// it, which makes the snapshot void (memory has moved on).
    async fn snapshot(&self, to: &Path, own: Option<&OwnMemory>) -> Result<()>;

    /// Ends the process at once without asking the guest, flushes what the guest has written to its
    /// disks, waits for the end and removes the sockets. Idempotent.
    async fn kill(&self) -> Result<()>;

    /// Returns what the host measures of the machine. Error: `gone` if it has ended.
    async fn stats(&self) -> Result<MachineStats>;

    /// Returns what the machine's process takes of the host's memory, by what it is for. Takes some
    /// milliseconds of the processor. Error: `gone` if it has ended.
    async fn footprint(&self) -> Result<Footprint>;

    /// Resolves when the process is gone; at once if it is gone already.
    async fn exited(&self) -> Exit;
}
