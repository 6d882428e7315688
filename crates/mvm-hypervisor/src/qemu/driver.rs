//! Starting, restoring and adopting machines.

use super::arguments::{Setting, Start, arguments, machine_type, named, processor_of};
use super::binary::{self, Version};
use super::cpu_models::CpuModels;
use super::cpuid;
use super::machine::{QemuMachine, RequestedState, check_kvm};
use super::probe::KvmProbe;
use super::process::{self, Process};
use super::qmp::Qmp;
use super::snapshot::{self, Hardware, Memory, shows_host};
use super::spawn::{KillOnDrop, spawn};
use super::validate::{validate, validate_kernel, validate_tap};
use super::{Accelerator, CONSOLE_LOG, QEMU_LOG, logs, memory, run_dir};
use crate::{
    Description, Error, Hypervisor, Machine, OnStarted, ProcessIdentity, RestoreMemory, Result,
    VmSpec,
};
use async_trait::async_trait;
use mvm_model::CpuModel;
use mvm_model::accelerator::Processor;
use mvm_model::cpu::CpuIdentity;
use qapi::qmp::RunState;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

/// How long a new process may take until its monitor greets; under 60 ms on an idle host.
const START: Duration = Duration::from_secs(30);
/// How long an adopted process may take to greet.
const ADOPT: Duration = Duration::from_secs(10);
/// How long the device state may take to load; about 5 ms on an idle host.
const LOAD: Duration = Duration::from_secs(30);
/// How long a state with the memory in it may take to load.
const LOAD_MEMORY: Duration = Duration::from_secs(600);

/// The driver of one QEMU program. Its clones share the accelerator of new machines.
#[derive(Clone, Debug)]
pub struct QemuDriver {
    program: PathBuf,
    version: Version,
    release: String,
    accelerator: watch::Sender<Accelerator>,
    cpu: Arc<CpuIdentity>,
    models: Arc<CpuModels>,
}

impl QemuDriver {
    /// Returns the first `qemu-system-x86_64` in `PATH`. Error: `qemu_not_found`, which names the
    /// package to install.
    pub fn find_binary() -> Result<PathBuf> {
        binary::find_binary()
    }

    /// Makes a driver of this program with this accelerator. Errors: `qemu_not_found`,
    /// `qemu_unusable`.
    pub async fn new(program: PathBuf, accelerator: Accelerator) -> Result<QemuDriver> {
        let binary::Release { version, words: release } = binary::release(&program).await?;
        let accelerator = watch::Sender::new(accelerator);
        let cpu = Arc::new(cpuid::identity());
        let models = Arc::new(CpuModels::new(program.clone()));
        Ok(QemuDriver { program, version, release, accelerator, cpu, models })
    }

    /// Uses this accelerator for the machines that are started after this call.
    pub fn switch(&self, to: Accelerator) {
        self.accelerator.send_replace(to);
    }

    /// Returns the means to try KVM with this program; the file `cache` keeps the verdict.
    pub fn kvm_probe(&self, cache: PathBuf) -> KvmProbe {
        KvmProbe { program: self.program.clone(), release: self.release.clone(), cache }
    }

    fn accelerator(&self) -> Accelerator {
        *self.accelerator.borrow()
    }

    fn hardware(&self, spec: &VmSpec, processor: Processor) -> Hardware {
        let machine = machine_type(spec.kernel.platform, self.version);
        Hardware::of(spec, &machine, processor, &self.cpu)
    }

    /// Returns the processor of a new machine with this CPU model. Error: `cpu_model_unavailable`.
    async fn new_processor(&self, model: &CpuModel) -> Result<Processor> {
        let accelerator = self.accelerator();
        match model.is_host() {
            true => Ok(processor_of(accelerator)),
            false => self.models.processor(accelerator, model, &self.cpu).await,
        }
    }

    /// Starts the process and waits for its monitor.
    async fn start<'a>(
        &self,
        spec: &'a VmSpec,
        start: Start,
        hardware: &Hardware,
        state: Option<OwnedFd>,
        started: OnStarted<'_>,
    ) -> Result<(Process, Qmp, KillOnDrop<'a>)> {
        validate_tap(spec)?;
        let inherited = run_dir::prepare(spec, start == Start::Boot)?;
        if spec.reserve_memory && start != Start::Restore(RestoreMemory::Clone) {
            let span = tracing::info_span!("memory_reserve", id = %spec.id);
            let reserved = memory::reserve(spec).instrument(span).await;
            reserved.inspect_err(|_| run_dir::clear(&spec.dir))?;
        }
        // The span closes with its scope, so that its duration is that of the spawn stage.
        let (process, guard) = tracing::info_span!("spawn", id = %spec.id).in_scope(|| {
            let setting = Setting {
                processor: &hardware.processor(),
                version: self.version,
                machine: &hardware.machine,
                qmp: inherited.qmp.as_raw_fd(),
                channel: inherited.channel.as_raw_fd(),
            };
            let state = state.as_ref().map(AsRawFd::as_raw_fd);
            let arguments = arguments(spec, start, &setting);
            spawn(&self.program, hardware.accelerator, arguments, &inherited, state, spec)
        })?;
        started(&process.identity);
        // Only the process holds these descriptors from here on, so that they close when it ends.
        drop((inherited, state));
        let span = tracing::info_span!("qmp_ready", id = %spec.id);
        let socket = run_dir::qmp_socket(&spec.dir);
        let connect = Qmp::connect(&spec.id, &socket, START).instrument(span);
        let qmp = tokio::select! {
            qmp = connect => qmp,
            _ = process.ended() => return Err(died(spec, &process).await),
        };
        match qmp {
            Ok(qmp) => Ok((process, qmp, guard)),
            // A connection also breaks because the process is ending, and its exit status says
            // more.
            Err(Error::QmpFailed { .. }) => Err(died(spec, &process).await),
            Err(error) => Err(error),
        }
    }

    async fn load(&self, qmp: &Qmp, fd: i32, memory: Memory) -> Result<(), Error> {
        qmp.ignore_shared(memory == Memory::File).await?;
        qmp.incoming(fd).await?;
        let load = if memory == Memory::File { LOAD } else { LOAD_MEMORY };
        let ends = Instant::now() + load;
        // The status is polled, since not all versions have the event that announces the end.
        while qmp.status().await? == RunState::inmigrate {
            if Instant::now() >= ends {
                let (status, error) = qmp.migration().await?;
                let reason = format!("not loaded within {} s: {status} {error}", load.as_secs());
                let (id, command) = (String::new(), "migrate-incoming".into());
                return Err(Error::QmpFailed { id, command, reason });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

/// Says why a process ended before its machine ran, with the last lines of its logs.
async fn died(spec: &VmSpec, process: &Process) -> Error {
    let status = match tokio::time::timeout(Duration::from_secs(2), process.ended()).await {
        Ok(ending) => ending.to_string(),
        Err(_) => "it closed its monitor and was killed".to_owned(),
    };
    Error::DiedAtBoot {
        id: spec.id.clone(),
        status,
        log: logs::last_lines(&spec.dir.join(QEMU_LOG), 10),
        console: logs::last_lines(&spec.dir.join(CONSOLE_LOG), 15),
    }
}

#[async_trait]
impl Hypervisor for QemuDriver {
    fn description(&self) -> Description {
        Description {
            name: "qemu".to_owned(),
            version: self.release.clone(),
            accelerator: self.accelerator().to_string(),
            cpu: match shows_host(&processor_of(self.accelerator())) {
                true => self.cpu.digest(),
                false => String::new(),
            },
            simulated: false,
        }
    }

    async fn check_cpu_model(&self, model: &CpuModel) -> Result<()> {
        self.new_processor(model).await.map(drop)
    }

    async fn boot(&self, spec: &VmSpec, started: OnStarted<'_>) -> Result<Arc<dyn Machine>> {
        validate(spec)?;
        validate_kernel(spec)?;
        let hardware = self.hardware(spec, self.new_processor(&spec.cpu_model).await?);
        memory::create(spec)?;
        let (process, qmp, guard) = self.start(spec, Start::Boot, &hardware, None, started).await?;
        guard.disarm();
        Ok(Arc::new(QemuMachine::new(
            spec,
            process,
            qmp,
            hardware,
            RestoreMemory::Own,
            RequestedState::Run,
        )))
    }

    async fn restore(
        &self,
        spec: &VmSpec,
        snapshot: &Path,
        mapped: RestoreMemory,
        started: OnStarted<'_>,
    ) -> Result<Arc<dyn Machine>> {
        validate(spec)?;
        let failed = |reason: String| Error::RestoreFailed {
            id: spec.id.clone(),
            snapshot: snapshot.to_owned(),
            reason,
        };
        let here = self.hardware(spec, processor_of(self.accelerator()));
        let stored = snapshot::open(snapshot, &here).map_err(failed)?;
        let (hardware, from) = (stored.hardware.clone(), stored.memory());
        if let Some((was, reason)) = hardware.cpu_misfit(&self.cpu) {
            let (was, here) = (Box::new(was), Box::new(CpuIdentity::clone(&self.cpu)));
            return Err(Error::CpuDiffers { id: spec.id.clone(), was, here, reason });
        }
        check_kvm(&spec.id, &hardware)?;
        if let Some(model) = named(&hardware.cpu) {
            self.models.processor(hardware.accelerator, &model, &self.cpu).await?;
        }
        match from {
            Memory::File => check_memory(spec).map_err(failed)?,
            Memory::State => memory::create(spec)?,
        }
        // A socket pair rather than the file itself: newer versions of QEMU name a file
        // differently, and the file begins with a header.
        let (near, far) = UnixStream::pair().map_err(|e| failed(e.to_string()))?;
        let far = OwnedFd::from(far);
        let fd = far.as_raw_fd();
        // The feeding thread ends with the process, which is the only reader of the socket.
        let feeding = tokio::task::spawn_blocking(move || stored.feed(near));
        let start = Start::Restore(mapped);
        let (process, qmp, guard) =
            match self.start(spec, start, &hardware, Some(far), started).await {
                Err(Error::DiedAtBoot { status, log, .. }) => {
                    return Err(failed(format!("QEMU ended ({status}): {log}")));
                }
                other => other?,
            };
        let span = tracing::info_span!("state_load", id = %spec.id);
        if let Err(error) = self.load(&qmp, fd, from).instrument(span).await {
            process.kill_now();
            let ending = process.ended().await;
            let log = logs::last_lines(&spec.dir.join(QEMU_LOG), 5);
            return Err(failed(format!("{error}; QEMU ended ({ending}): {log}")));
        }
        if !feeding.await.unwrap_or(false) {
            process.kill_now();
            process.ended().await;
            return Err(failed("it is damaged: its checksum does not match".into()));
        }
        guard.disarm();
        Ok(Arc::new(QemuMachine::new(spec, process, qmp, hardware, mapped, RequestedState::Pause)))
    }

    async fn adopt(
        &self,
        spec: &VmSpec,
        process: &ProcessIdentity,
    ) -> Result<Option<Arc<dyn Machine>>> {
        if process.marker != spec.marker {
            return Ok(None);
        }
        let Some(process) = Process::open(process)? else { return Ok(None) };
        let Some(launched) = process::launch_options_of(process.identity.pid) else {
            return Ok(None);
        };
        let socket = run_dir::qmp_socket(&spec.dir);
        let qmp = tokio::select! {
            qmp = Qmp::connect(&spec.id, &socket, ADOPT) => qmp?,
            _ = process.ended() => return Ok(None),
        };
        // Machine type and processor are read from the argument vector: another version, or an agent
        // with another accelerator, may have started the process.
        let machine =
            launched.machine.unwrap_or_else(|| machine_type(spec.kernel.platform, self.version));
        let processor = launched.processor.unwrap_or_else(|| processor_of(self.accelerator()));
        let hardware = Hardware::of(spec, &machine, processor, &self.cpu);
        let mapped = if launched.private { RestoreMemory::Clone } else { RestoreMemory::Own };
        if mapped == RestoreMemory::Own && spec.reserve_memory {
            reserve_behind(spec);
        }
        Ok(Some(Arc::new(QemuMachine::new(
            spec,
            process,
            qmp,
            hardware,
            mapped,
            RequestedState::Unknown,
        ))))
    }

    async fn kill_stray(&self, process: &ProcessIdentity) -> Result<()> {
        process::kill_stray(process).await
    }

    fn find(&self, marker_prefix: &str) -> Result<Vec<ProcessIdentity>> {
        process::find(marker_prefix)
    }
}

/// Reserves, in the background, the memory of a machine that an earlier version of the agent may
/// have started without a reservation: it runs already and must not be held up.
fn reserve_behind(spec: &VmSpec) {
    let spec = spec.clone();
    tokio::spawn(async move {
        if let Err(error) = memory::reserve_running(&spec).await {
            tracing::warn!(id = spec.id, "its memory is not reserved: {error}");
        }
    });
}

/// Checks that the memory file of a machine to be restored exists and has the right size.
fn check_memory(spec: &VmSpec) -> Result<(), String> {
    let memory = &spec.memory;
    let length = std::fs::metadata(memory)
        .map_err(|e| format!("its memory file {}: {e}", memory.display()))?
        .len();
    if length != spec.mem_mib.bytes() {
        let (path, size) = (memory.display(), spec.mem_mib);
        return Err(format!("its memory file {path} has {length} bytes instead of {size}"));
    }
    Ok(())
}
